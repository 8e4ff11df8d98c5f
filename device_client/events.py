"""A job as server-sent events: what is new since the last one, as often as somebody can use it.

A watcher that reads slowly gets fewer and larger events; the drawing never waits for it. The last event is
always `done`, `error` or `cancelled`. Knows nothing of requests and their headers.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from typing import Any

from PIL import Image

from device_client.jobs import Job, Picture
from device_client.loop import Progress, Source
from device_client.tiles import Tiles
from device_client.timeline import Round

UPDATE_S = 0.02  # the shortest time between two looks at a job
HEARTBEAT_S = 10.0  # proxies close what is silent for a minute
MAX_PARTIALS = 60
PARTIAL_QUALITY = 85
SCORE_DIGITS = 4

Event = tuple[str, Mapping[str, Any]]
Tell = Callable[[Job], Awaitable[Sequence[Event]]]
Describe = Callable[[Picture], Mapping[str, Any]]
Complain = Callable[[BaseException], Mapping[str, Any]]


def frame(name: str, data: Mapping[str, Any]) -> bytes:
    """One event as it travels; JSON has no line breaks of its own."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


async def stream(job: Job, tell: Tell) -> AsyncIterator[bytes]:
    """What `tell` finds new about a job, until it is over, with a comment now and then while nothing is.

    Ending it early takes this watcher away.
    """
    with job.watching():
        while True:
            over, seen = job.over, job.version  # before telling: what happens meanwhile is told next time
            for name, data in await tell(job):
                yield frame(name, data)
            if over:
                return
            await asyncio.sleep(UPDATE_S)
            while not await _news(job, seen):
                yield b": still at work\n\n"


async def _news(job: Job, seen: int) -> bool:
    """Whether something changed before the next heartbeat was due."""
    try:
        await asyncio.wait_for(job.news(seen), HEARTBEAT_S)
    except TimeoutError:
        return False
    return True


@dataclass
class Teller:
    """What one watcher knows already, and how the rest is told: the events of POST /generate.

    describe  a finished picture as the JSON form shows it
    complain  an error as the JSON form shows it
    tiles     for partial pictures; None where there are to be none
    partials  partial pictures per picture, spread evenly over its tokens
    """

    describe: Describe
    complain: Complain
    tiles: Tiles | None = None
    partials: int = 0
    _tokens: tuple[int, ...] = ()
    _rounds: int = 0
    _partials: int = 0
    _pictures: int = field(default=-1)  # -1: not even greeted

    async def __call__(self, job: Job) -> list[Event]:
        """Everything new, in order."""
        events: list[Event] = []
        if self._pictures < 0:
            self._pictures = 0
            events.append(("job", _greeting(job)))
        while self._pictures < len(job.pictures):
            events += self._finished(job.pictures[self._pictures])
        if job.latest is not None:
            events += self._delta(job.latest, job.rounds)
            events += self._partial(job.latest)
        if job.over:
            events.append(self._farewell(job))
        return events

    def _delta(self, now: Progress, rounds: Sequence[Round]) -> list[Event]:
        """The tokens behind what is known already; a decoder that takes tokens back is believed."""
        known = _common(self._tokens, now.tokens)
        new_rounds = rounds[self._rounds :]
        if known == len(now.tokens) == len(self._tokens) and not new_rounds:
            return []
        self._tokens, self._rounds = now.tokens, len(rounds)
        data = {
            "picture": self._pictures,
            "from": known,
            "tokens": now.tokens[known:],
            "sources": source_names(now.sources[known:]),
            "scores": [_rounded(score) for score in now.scores[known:]],
            "rounds": [asdict(one) for one in new_rounds],
            "counters": now.counters.as_dict(),
        }
        return [("progress", data)]

    def _partial(self, now: Progress) -> list[Event]:
        """The mosaic, whenever another share of the tokens is there."""
        due = partials_due(now, self.partials)
        if due <= self._partials or self.tiles is None:
            return []
        self._partials = due
        file = BytesIO()
        unfinished(self.tiles, now).save(file, "JPEG", quality=PARTIAL_QUALITY)
        image = base64.b64encode(file.getvalue()).decode("ascii")
        data = {"picture": self._pictures, "tokens": len(now.tokens), "media_type": "image/jpeg"}
        return [("partial", {**data, "image": image})]

    def _finished(self, picture: Picture) -> list[Event]:
        """The picture, behind its last tokens for the watcher who was not quick enough to see them."""
        events = self._delta(picture.progress, picture.rounds)
        events.append(("picture", {"picture": self._pictures, **self.describe(picture)}))
        self._pictures += 1
        self._tokens, self._rounds, self._partials = (), 0, 0
        return events

    def _farewell(self, job: Job) -> Event:
        if job.error is not None:
            return "error", self.complain(job.error)
        return ("done" if job.state == "done" else "cancelled"), {"id": job.id}


def partials_due(now: Progress, partials: int) -> int:
    """How many of the partial pictures of one picture should have been shown; none at its end."""
    if now.done:
        return 0
    return min(partials, len(now.tokens) * (partials + 1) // now.counters.image_tokens)


def unfinished(tiles: Tiles, now: Progress) -> Image.Image:
    """The picture so far, as a square mosaic."""
    side = math.isqrt(now.counters.image_tokens)
    return tiles.mosaic(now.tokens, side, side)


def source_names(sources: Sequence[int]) -> list[str]:
    """Who decided each token, in words."""
    return [Source(source).name.lower() for source in sources]


def _greeting(job: Job) -> Mapping[str, Any]:
    plan = job.plans[0]
    return {"id": job.id, "pictures": len(job.plans), "prompt": plan.request.prompt, "mode": plan.policy.mode}


def _common(before: tuple[int, ...], now: tuple[int, ...]) -> int:
    """How many tokens both begin with; all of the earlier ones, nearly always."""
    if now[: len(before)] == before:
        return len(before)
    return next(
        (place for place, (old, new) in enumerate(zip(before, now, strict=False)) if old != new),
        min(len(before), len(now)),
    )


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, SCORE_DIGITS)
