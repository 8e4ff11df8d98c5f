"""One image whose stages can be heard of and acted upon: where a fault is put, and how long it cost.

Knows nothing of what the faults are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from device_client.cloud import Request
from device_client.link import CloudLink
from device_client.loop import decode
from device_client.policy import Policy
from device_client.progress import Progress
from evaluation.relay import Relay
from shared.messages import Draft, Open, Opened, Usage, Verdict
from shared.models.zoo import DevicePackage

STAGES = ("opening", "prefix", "drafting", "awaiting", "between rounds", "finishing")
ANSWERED = "answered"  # what a Hook also hears: the cloud has said something
Hook = Callable[[str], Awaitable[None]]
ROUND = 2  # stages of a round are those of this one, the first being 0


class Staged(Relay):
    """A `Cloud` that tells `at` which stage begins, and goes on when `at` returns.

    opening         connected or not, the order has not been sent
    prefix          the order is sent, the cloud draws
    drafting        the device has drawn a span and not sent it
    awaiting        the span is sent, the cloud judges
    between rounds  the verdict is here
    finishing       the image is complete, the cloud does not know
    """

    def __init__(self, link: CloudLink, at: Hook) -> None:
        super().__init__(link)
        self._at, self._round = at, -1

    async def open(self, order: Open) -> Opened:
        """Stages opening and prefix."""
        await self._at("opening")
        before = self._link.bytes_up
        opening = asyncio.create_task(self._link.open(order))
        try:
            while self._link.bytes_up == before and not opening.done():
                await asyncio.sleep(0.001)
            await self._at("prefix")
            opened = await opening
            await self._at(ANSWERED)
            return opened
        finally:
            opening.cancel()

    async def send(self, draft: Draft) -> None:
        """Stage drafting."""
        self._round += 1
        await self._in_round("drafting")
        await self._link.send(draft)

    async def receive(self) -> Verdict:
        """Stages awaiting and between rounds."""
        await self._in_round("awaiting")
        verdict = await self._link.receive()
        await self._at(ANSWERED)
        await self._in_round("between rounds")
        return verdict

    async def finish(self) -> Usage:
        """Stage finishing."""
        await self._at("finishing")
        usage = await self._link.finish()
        await self._at(ANSWERED)
        return usage

    async def _in_round(self, stage: str) -> None:
        if self._round == ROUND:
            await self._at(stage)


@dataclass
class Fault:
    """Something to be done once, at one stage; a Hook.

    done_s      when it was done
    answered_s  when the cloud next answered; both on the clock of time.monotonic
    """

    stage: str
    act: Callable[[], Awaitable[None] | None]
    done_s: float | None = field(default=None, init=False)
    answered_s: float | None = field(default=None, init=False)

    async def __call__(self, stage: str) -> None:
        """Act if this is the stage, or note the first answer behind it."""
        if stage == ANSWERED and self.done_s is not None and self.answered_s is None:
            self.answered_s = time.monotonic()
        if stage == self.stage and self.done_s is None:
            waiting = self.act()
            if waiting is not None:
                await waiting
            self.done_s = time.monotonic()


@dataclass(frozen=True)
class Drawn:
    """A finished image and the seconds from the fault to the cloud's next answer, or to the end without."""

    last: Progress
    recovery_s: float


async def draw_staged(
    package: DevicePackage, request: Request, policy: Policy, link: CloudLink, fault: Fault
) -> Drawn:
    """Draw one image through a fault. Raises what `decode` raises."""
    steps = [step async for step in decode(package, request, policy, Staged(link, fault))]
    answered_s = fault.answered_s or time.monotonic()
    return Drawn(steps[-1], answered_s - (fault.done_s or answered_s))
