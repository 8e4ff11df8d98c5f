"""What is decided of an image and what it has cost, whatever draws it. Knows no models and no gRPC."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TypeVar

from device_client.cloud import Cloud
from device_client.progress import Counters, Progress, Source, Trip
from shared.errors import CiarError

AnswerT = TypeVar("AnswerT")


class Ledger:
    """One image of `size` tokens, drawn with the help of `cloud`; None: without any."""

    def __init__(self, size: int, cloud: Cloud | None) -> None:
        self.size, self.cloud = size, cloud
        self._asked = cloud
        self.tokens: list[int] = []
        self._sources: list[Source] = []
        self._scores: list[float | None] = []
        self._shown = 0
        self._trips: list[Trip] = []
        self._counters = Counters(size)
        self._started_s = time.perf_counter()
        self._before = self._traffic()

    @property
    def done(self) -> bool:
        """Whether all T tokens are decided."""
        return len(self.tokens) >= self.size

    @property
    def grew(self) -> bool:
        """Whether tokens were decided since the last `progress`."""
        return len(self.tokens) > self._shown

    def progress(self) -> Progress:
        """A snapshot."""
        self._shown = len(self.tokens)
        up, down, resumes = (now - then for now, then in zip(self._traffic(), self._before, strict=True))
        counters = replace(
            self._counters, bytes_up=up, bytes_down=down, resumes=resumes, total_s=self._now_s()
        )
        seen = tuple(self.tokens), tuple(self._sources), tuple(self._scores)
        return Progress(*seen, counters, self.done, tuple(self._trips))

    async def waiting(self, answer: Awaitable[AnswerT]) -> AnswerT:
        """Await the cloud."""
        with self._timed("wait_s"):
            return await answer

    async def close(self) -> None:
        """End the session; an image is not lost because its cloud was."""
        if self.cloud is not None:
            with suppress(CiarError):
                await self.cloud.finish()

    def _enter(self, tokens: Sequence[int], source: Source, scores: Sequence[float] = ()) -> None:
        """Append tokens to the image, with the scores that the device's drafts for these places had."""
        self.tokens.extend(tokens)
        self._sources.extend([source] * len(tokens))
        given = scores or [math.nan] * len(tokens)
        self._scores.extend(score if math.isfinite(score) else None for score in given)

    def _traffic(self) -> tuple[int, int, int]:
        """Of all images this cloud object has served."""
        return (link.bytes_up, link.bytes_down, link.resumes) if (link := self._asked) else (0, 0, 0)

    def _now_s(self) -> float:
        """Seconds since the image began."""
        return time.perf_counter() - self._started_s

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
