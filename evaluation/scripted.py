"""Devices without models: they send again what a real device sent once, and want the same answers.

By the keyed noise they get them; so a few processes can be many devices, each as slow as a real one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from device_client.cloud import Request
from device_client.link import CloudLink
from device_client.loop import decode
from device_client.owned import Owned
from device_client.policy import Policy
from evaluation.mangled import said
from evaluation.relay import Relay
from shared.errors import CiarError, Overloaded
from shared.messages import Draft, Open, Opened, Verdict
from shared.models.zoo import DevicePackage

_DEADLINE_S = 120.0


@dataclass(frozen=True, eq=False)
class Turn:
    """One round as it went. `think_s`: the processor seconds the device drew for, however busy it was."""

    draft: Draft
    verdict: Verdict
    think_s: float


@dataclass(frozen=True, eq=False)
class Script:
    """One image as it went."""

    order: Open
    opened: Opened
    turns: tuple[Turn, ...]

    def ending(self, rounds: int) -> Script:
        """The image from its last `rounds` rounds on, resumed from everything before."""
        kept = self.turns[-rounds:]
        owned = Owned(self.order)
        owned.begin(self.opened)
        for turn in self.turns[: len(self.turns) - len(kept)]:
            owned.pending.append(turn.draft)
            owned.settle(turn.verdict)
        order = replace(owned.order(), prefix_tokens=0)
        return Script(order, replace(self.opened, prefix=self.opened.prefix[:0]), kept)


class _Recorder(Relay):
    """A `Cloud` that notes what passes. One round in flight at a time."""

    def __init__(self, link: CloudLink) -> None:
        super().__init__(link)
        self._turns: list[Turn] = []
        self._answered_s = 0.0

    async def open(self, order: Open) -> Opened:
        """Note the order and its answer."""
        self._order, self._opened = order, await self._link.open(order)
        self._answered_s = time.thread_time()
        return self._opened

    async def send(self, draft: Draft) -> None:
        """Note the draft and how long it took."""
        self._draft, self._think_s = draft, time.thread_time() - self._answered_s
        await self._link.send(draft)

    async def receive(self) -> Verdict:
        """Note the verdict."""
        verdict = await self._link.receive()
        self._answered_s = time.thread_time()
        self._turns.append(Turn(self._draft, verdict, self._think_s))
        return verdict

    def script(self) -> Script:
        """All of it."""
        return Script(self._order, self._opened, tuple(self._turns))


async def record(package: DevicePackage, target: str, request: Request, policy: Policy) -> Script:
    """Draw one image for real and keep how it went."""
    async with CloudLink(target, deadline_s=_DEADLINE_S) as link:
        recorder = _Recorder(link)
        async for _ in decode(package, request, policy, recorder):
            pass
    return recorder.script()


@dataclass(frozen=True)
class Played:
    """One image sent again: seconds per round, seconds of the whole, and the waits it was told."""

    rounds_s: tuple[float, ...]
    total_s: float
    told_s: tuple[float, ...]


async def play(target: str, script: Script, *, think: bool = True, leave_after: int | None = None) -> Played:
    """Send a script again; with `think` as slowly as it was drawn.

    With `leave_after` the device is gone after so many rounds without a word. Raises CiarError where an
    answer differs from the one before.
    """
    began_s, told_s = time.perf_counter(), []
    async with CloudLink(target, deadline_s=_DEADLINE_S, retry_s=0.0) as link:
        while True:
            try:
                opened = await link.open(script.order)
                break
            except Overloaded as full:
                told_s.append(full.retry_after_s)
                await asyncio.sleep(full.retry_after_s)
        _same(opened.prefix.tolist(), script.opened.prefix.tolist())
        turns = script.turns[:leave_after]
        rounds_s = [await _round(link, turn, think=think) for turn in turns]
        if leave_after is None:
            await link.finish()
    return Played(tuple(rounds_s), time.perf_counter() - began_s, tuple(told_s))


async def _round(link: CloudLink, turn: Turn, *, think: bool) -> float:
    await asyncio.sleep(turn.think_s if think else 0.0)
    sent_s = time.perf_counter()
    await link.send(turn.draft)
    verdict = await link.receive()
    _same(said(verdict), said(turn.verdict))
    return time.perf_counter() - sent_s


def _same(now: object, then: object) -> None:
    if now != then:
        raise CiarError(f"the cloud answered {now}", f"it answered {then} before")


async def record_all(
    package: DevicePackage, target: str, requests: Sequence[Request], policy: Policy
) -> list[Script]:
    """One script per request."""
    return [await record(package, target, request, policy) for request in requests]
