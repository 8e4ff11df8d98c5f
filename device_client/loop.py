"""THE algorithm (SPEC section 6): a device draws an image and asks the cloud where it is unsure.

`decode` yields a Progress per decision; every consumer reads that one iterator. Knows no gRPC, no pictures.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from device_client.drafter import Drafter, Step
from device_client.pacing import Situation, pace, pacing_for
from device_client.policy import Policy
from device_client.progress import Counters, Progress, Source
from shared.decoding.warp import Warp
from shared.errors import CiarError, InvalidRequest, ModelMismatch
from shared.messages import Draft, Features, Open, Opened, Proposal, Tokens, Usage, Verdict
from shared.models.zoo import DevicePackage

__all__ = ["Cloud", "Counters", "Progress", "Request", "Source", "decode"]

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True)
class Request:
    """What to draw: one image per (prompt, seed, warp)."""

    prompt: str
    seed: int  # 0 <= seed < 2**64
    warp: Warp


class Cloud(Protocol):
    """The other side of one image. Every method may raise CiarError; lost connections are its own affair."""

    @property
    def bytes_up(self) -> int:
        """Bytes sent since it exists."""

    @property
    def bytes_down(self) -> int:
        """Bytes received since it exists."""

    @property
    def resumes(self) -> int:
        """Sessions rebuilt after a loss since it exists."""

    async def open(self, order: Open) -> Opened:
        """Begin one image."""

    async def verify(self, draft: Draft) -> Verdict:
        """Judge one round."""

    async def finish(self) -> Usage:
        """End the image, complete or not."""


async def decode(
    package: DevicePackage, request: Request, policy: Policy, cloud: Cloud | None
) -> AsyncGenerator[Progress, None]:
    """Algorithm 1: draw; keep what is sure; send what is not, with guesses behind it; settle; go on.

    Yields once the session is open, after every kept token and every round; the last Progress is complete.
    The session ends with the iteration, early or not. `cloud` may be None where the policy does not use it.
    Raises InvalidPrompt, InvalidRequest, ModelMismatch, and whatever `cloud` raises.
    """
    image = _Image(package, request, policy, cloud)
    try:
        if image.cloud is not None:
            image.begin(await image.waiting(image.cloud.open(image.order())))
            yield image.progress()
        while not image.done:
            step = await image.draw()
            if image.cloud is None or not image.asks(step):
                image.keep(step)
            else:
                span = await _draw_span(image, step)
                draft = image.draft(span)
                verdict = await image.waiting(image.cloud.verify(draft))
                image.settle(draft, span, verdict)
                image.drafter.rewind(len(image.tokens) - 1)  # the cloud's own token was never fed
            yield image.progress()
    finally:
        await image.close()


async def _draw_span(image: _Image, first: Step) -> list[Step]:
    """`first` and guesses behind it, whatever their scores: at most policy.span tokens and never beyond T.

    Adaptive spans end with the token that makes "all of it is accepted" less likely than the floor.
    """
    policy, span = image.policy, [first]
    floor = policy.adaptive_floor
    table = None if floor is None else image.package.calibration.table(image.package.calibration.default_gate)
    longest = min(policy.span, image.size - len(image.tokens))
    chance = 1.0
    while len(span) < longest:
        if table is not None and floor is not None:
            chance *= table.agreement(span[-1].doubt)
            if chance < floor:
                break
        span.append(await image.draw([step.token for step in span]))
    return span


class _Image:
    """The image so far and its cost. `base` tokens are committed by the cloud; those behind were kept."""

    def __init__(self, package: DevicePackage, request: Request, policy: Policy, cloud: Cloud | None) -> None:
        if policy.use_cloud and cloud is None:
            raise InvalidRequest(f"mode {policy.mode!r} needs a cloud", "only device-only works without one")
        self.package, self.request, self.policy = package, request, policy
        self.cloud = cloud if policy.use_cloud else None
        self.size = package.model.base.config.image_tokens
        self.tokens: list[int] = []
        self.base = 0
        self._sources: list[Source] = []
        self._scores: list[float | None] = []
        self._kept: list[Step] = []  # behind `base`
        self._counters = Counters(self.size)
        self._pace = pace(policy.pacing)
        self._pacing = pacing_for(
            policy.threshold, policy.budget, policy.gate, package.calibration, self.size
        )
        self._opened_s = 0.0  # of `wait_s`
        self._started_s = time.perf_counter()
        self._before = self._traffic()
        with self._timed("device_s"):
            self.drafter = Drafter(
                package,
                request.prompt,
                request.seed,
                request.warp,
                gate=policy.gate,
                acceptance=policy.acceptance,
            )

    @property
    def done(self) -> bool:
        """Whether all T tokens are there."""
        return len(self.tokens) >= self.size

    def order(self) -> Open:
        """What opens the session."""
        package, request, policy = self.package, self.request, self.policy
        return Open(
            model=package.name,
            cloud_digest=package.cloud_digest,
            codebook_size=package.model.base.config.vocab_size,
            prompt=request.prompt,
            seed=request.seed,
            warp=request.warp,
            prefix_tokens=policy.prefix_tokens(self.size),
            acceptance=policy.acceptance,
            relaxation=policy.relaxation,
        )

    def begin(self, opened: Opened) -> None:
        """Take over the prefix. Raises ModelMismatch where the cloud draws images of another size."""
        if opened.image_tokens != self.size:
            raise ModelMismatch(
                f"the cloud draws images of {opened.image_tokens} tokens", f"this device draws {self.size}"
            )
        self._commit(opened.prefix.tolist(), Source.PREFIX, [None] * len(opened.prefix))
        self.base = len(self.tokens)
        self._count(cloud_forwards=opened.cloud_forwards, cloud_s=opened.cloud_s)
        self._opened_s = self._counters.wait_s

    async def draw(self, guesses: Sequence[int] = ()) -> Step:
        """The device's draft behind the image and the guesses."""
        await asyncio.sleep(0)  # other images on this event loop want to move as well
        with self._timed("device_s"):
            return self.drafter.step([*self.tokens, *guesses])

    def asks(self, step: Step) -> bool:
        """Whether the gate's score is above the threshold of this moment."""
        now = Situation(len(self.tokens), self._counters, self._opened_s)
        return step.score > self._pace(self._pacing, now)

    def keep(self, step: Step) -> None:
        """Nobody is asked about this token."""
        self._kept.append(step)
        self._commit([step.token], Source.KEPT, [step.score])
        self._count(kept=1)

    def draft(self, span: Sequence[Step]) -> Draft:
        """One round: what was kept since the last one, with its features, and the span."""
        with self._timed("device_s"):
            return Draft(
                round=self._counters.rounds + 1,
                base=self.base,
                span=_ids([step.token for step in span]),
                catch_up=_ids(self.tokens[self.base :]),
                features=_features(self.drafter, self._kept) if self.policy.features else None,
                proposal=_proposal(span),
            )

    def settle(self, draft: Draft, span: Sequence[Step], verdict: Verdict) -> None:
        """Commit what the cloud accepted, then its own token: the correction, or the bonus."""
        accepted, whole = verdict.accepted, verdict.accepted == len(span)
        self._commit([s.token for s in span[:accepted]], Source.VERIFIED, [s.score for s in span[:accepted]])
        if verdict.token is not None:
            source, score = (Source.BONUS, None) if whole else (Source.CORRECTED, span[accepted].score)
            self._commit([verdict.token], source, [score])
        self.base, self._kept = len(self.tokens), []
        up = len(draft.catch_up) + len(span)
        self._count(cloud_forwards=1, rounds=1, tokens_up=up, judged=len(span), accepted=accepted)
        self._count(cloud_s=verdict.cloud_s)

    def progress(self) -> Progress:
        """A snapshot."""
        up, down, resumes = (now - then for now, then in zip(self._traffic(), self._before, strict=True))
        counters = replace(
            self._counters,
            bytes_up=up,
            bytes_down=down,
            resumes=resumes,
            total_s=time.perf_counter() - self._started_s,
        )
        return Progress(tuple(self.tokens), tuple(self._sources), tuple(self._scores), counters, self.done)

    async def waiting(self, answer: Awaitable[AnswerT]) -> AnswerT:
        """Await the cloud."""
        with self._timed("wait_s"):
            return await answer

    async def close(self) -> None:
        """End the session; an image is not lost because its cloud was."""
        if self.cloud is not None:
            with suppress(CiarError):
                await self.cloud.finish()

    def _commit(self, tokens: Sequence[int], source: Source, scores: Sequence[float | None]) -> None:
        self.tokens.extend(tokens)
        self._sources.extend([source] * len(tokens))
        self._scores.extend(s if s is not None and math.isfinite(s) else None for s in scores)

    def _traffic(self) -> tuple[int, int, int]:
        """Of all images this cloud object has served."""
        return (self.cloud.bytes_up, self.cloud.bytes_down, self.cloud.resumes) if self.cloud else (0, 0, 0)

    def _count(self, **more: float) -> None:
        sums = {name: getattr(self._counters, name) + value for name, value in more.items()}
        self._counters = replace(self._counters, **sums)

    @contextmanager
    def _timed(self, counter: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._count(**{counter: time.perf_counter() - start})


def _ids(tokens: Sequence[int]) -> Tokens:
    return np.array(tokens, dtype=np.int32)


def _features(drafter: Drafter, kept: Sequence[Step]) -> Features | None:
    """The features of all catch-up tokens: each of them was drawn by the device."""
    if not kept:
        return None
    codes, scale = drafter.features(kept)
    return Features(np.arange(len(kept), dtype=np.uint16), codes, scale)


def _proposal(span: Sequence[Step]) -> Proposal | None:
    """The sparse q of every span token, where the acceptance rule needs it."""
    drawn_from = [step.proposal for step in span if step.proposal is not None]
    if not drawn_from:
        return None
    ids, probabilities = zip(*drawn_from, strict=True)
    return Proposal(np.stack(ids), np.stack(probabilities))
