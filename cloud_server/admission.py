"""Who gets a place, and when: bounded sessions, a bounded queue in order of arrival, limits per caller.

Whoever is refused is told when to come again. Knows nothing of models, streams or the wire.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shared.errors import Overloaded

CALLERS = 4096  # remembered for their rate; more push out the ones that were quiet longest
_NEXT_STEP = "try again shortly, or use another server"
_SHORTEST_RETRY_S, _LONGEST_RETRY_S = 0.2, 30.0
_FIRST_GUESS_S = 1.0  # how long until a place is free, before any image was finished


@dataclass(frozen=True)
class Doors:
    """How many come in.

    max_sessions  images drawn at a time
    max_queue     orders that wait for a place, first come first served; one more is refused
    queue_s       seconds that an order waits at most
    per_caller    images of one caller at a time, waiting ones included; 0: any number
    per_minute    images one caller may begin in a minute; 0: any number
    """

    max_sessions: int = 8
    max_queue: int = 0
    queue_s: float = 10.0
    per_caller: int = 0
    per_minute: int = 0


class Admission:
    """The door of one server, on its event loop."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self._places = asyncio.Semaphore(doors.max_sessions)
        self._inside: Counter[str] = Counter()
        self._allowance: OrderedDict[str, tuple[float, float]] = OrderedDict()  # images left, and when
        self._mean_s = 0.0
        self.queued = 0

    @asynccontextmanager
    async def place(self, caller: str) -> AsyncIterator[None]:
        """A place for one image, waited for if need be. Raises Overloaded."""
        self._count_in(caller)
        try:
            self._check_rate(caller)
            await self._wait()
            began_s = time.monotonic()
            try:
                yield
            finally:
                self._places.release()
                self._learn(time.monotonic() - began_s)
        finally:
            self._count_out(caller)

    async def _wait(self) -> None:
        doors = self._doors
        if not self._places.locked():
            await self._places.acquire()  # at once
            return
        why = f"all {doors.max_sessions} sessions of this server are in use"
        if self.queued >= doors.max_queue:
            waiting = f", and {self.queued} wait for one" if self.queued else ""
            raise self._full(f"{why}{waiting}")
        self.queued += 1
        try:
            async with asyncio.timeout(doors.queue_s):
                await self._places.acquire()
        except TimeoutError:
            raise self._full(f"{why}, and none became free within {doors.queue_s:g} s") from None
        finally:
            self.queued -= 1

    def _full(self, why: str) -> Overloaded:
        """Come again when so many images will probably be done that it would be your turn."""
        wait_s = self._mean_s * (self.queued + 1) / self._doors.max_sessions or _FIRST_GUESS_S
        retry_s = min(max(wait_s, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
        return Overloaded("the server has no free session", why, _NEXT_STEP, retry_s)

    def _learn(self, image_s: float) -> None:
        self._mean_s = image_s if not self._mean_s else 0.9 * self._mean_s + 0.1 * image_s

    def _count_in(self, caller: str) -> None:
        limit = self._doors.per_caller
        if limit and self._inside[caller] >= limit:
            why = f"allowed: {limit} images of one caller at a time"
            raise Overloaded(f"{limit} images are being drawn for this caller", why, _NEXT_STEP, 1.0)
        self._inside[caller] += 1

    def _count_out(self, caller: str) -> None:
        self._inside[caller] -= 1
        if not self._inside[caller]:
            del self._inside[caller]

    def _check_rate(self, caller: str) -> None:
        """A bucket that holds a minute's images and fills steadily."""
        limit = self._doors.per_minute
        if not limit:
            return
        now_s = time.monotonic()
        left, then_s = self._allowance.pop(caller, (float(limit), now_s))
        left = min(limit, left + (now_s - then_s) * limit / 60)
        self._allowance[caller] = (left - (left >= 1), now_s)
        if len(self._allowance) > CALLERS:
            self._allowance.popitem(last=False)
        if left < 1:
            why = f"allowed: {limit} images a minute for one caller"
            raise Overloaded("this caller asks too often", why, "slow down", (1 - left) * 60 / limit)
