"""Many images with clients that are killed and devices that vanish: does the server grow or lose places?

Knows no flags. The devices are scripted; they draw only the last rounds of each image, resumed from the rest.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np

from evaluation.processes import ServerProcess
from evaluation.scripted import Script, play
from shared.errors import CiarError

HEADER = ("images", "left in the middle", "clients killed", "RSS MiB", "descriptors", "sessions")
CLIENTS = 2  # processes
_LOOK_S = 0.1
_STILL_S = 300.0  # clients that bring no image for so long are stuck
_DONE, _LEFT = 0, 1
Generator = np.random.Generator


@dataclass(frozen=True)
class Plan:
    """How long and how rough.

    images      to finish in all
    devices     at a time, in each client process
    leave       share of images that a device leaves in the middle, without a word
    kill_every  images between two kills of a client process
    samples     lines of the table
    """

    images: int = 2000
    devices: int = 4
    leave: float = 0.2
    kill_every: int = 50
    samples: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """The server after so many images."""

    images: int
    left: int
    killed: int
    resident_mib: float
    descriptors: int
    sessions: int


def line(sample: Sample) -> list[str]:
    """The cells under HEADER."""
    counts = [str(sample.images), str(sample.left), str(sample.killed), f"{sample.resident_mib:.1f}"]
    return [*counts, str(sample.descriptors), str(sample.sessions)]


def growth(samples: Sequence[Sample]) -> float:
    """How much more resident memory the last sample has than the first, as a share."""
    return samples[-1].resident_mib / samples[0].resident_mib - 1


@dataclass
class _Crowd:
    """The client processes; those that were killed stay in the counts."""

    target: str
    scripts: tuple[Script, ...]
    plan: Plan
    chance: Generator
    killed: int = 0
    _counts: list[Any] = field(default_factory=list)
    _alive: list[SpawnProcess] = field(default_factory=list)

    def add(self) -> None:
        """One more process."""
        spawn = multiprocessing.get_context("spawn")
        counts = spawn.RawArray("i", 2)  # without a lock, which a killed process would keep
        seed = (self.plan.seed, len(self._counts))
        task = (self.target, self.scripts, self.plan, seed, counts)
        client = spawn.Process(target=_work, args=task, daemon=True)
        client.start()
        self._counts.append(counts)
        self._alive.append(client)

    def kill_one(self) -> None:
        """SIGKILL, at whatever its devices are doing, and another in its place."""
        victim = self._alive.pop(int(self.chance.integers(len(self._alive))))
        victim.kill()
        victim.join()
        self.killed += 1
        self.add()

    def stop(self) -> None:
        """Kill them all."""
        for client in self._alive:
            client.kill()
            client.join()
        self._alive.clear()

    def count(self, what: int) -> int:
        """Of all processes there were."""
        return sum(counts[what] for counts in self._counts)

    def check(self) -> None:
        """Raise CiarError if one ended by itself: it got a wrong answer or none."""
        if any(client.exitcode is not None for client in self._alive):
            raise CiarError("a client ended by itself", "its words are above")


async def run(server: ServerProcess, scripts: Sequence[Script], plan: Plan) -> AsyncIterator[Sample]:
    """Samples as they come; the first when a tenth is done, the last when all clients are gone."""
    crowd = _Crowd(server.target, tuple(scripts), plan, np.random.default_rng(plan.seed))
    marks = np.linspace(plan.images / 10, plan.images, plan.samples)[:-1]
    try:
        for _ in range(CLIENTS):
            crowd.add()
        for mark in marks:
            await _reach(crowd, mark)
            yield await _sample(server, crowd)
        await _reach(crowd, plan.images)
    finally:
        crowd.stop()
    await server.emptied()
    yield await _sample(server, crowd)


async def _reach(crowd: _Crowd, images: float) -> None:
    """Wait for so many finished images, and for the kills that are due by then."""
    waited_s, before, due = 0.0, crowd.count(_DONE), int(images // crowd.plan.kill_every)
    while (done := crowd.count(_DONE)) < images or crowd.killed < due:
        crowd.check()
        if done // crowd.plan.kill_every > crowd.killed:
            crowd.kill_one()
        waited_s, before = (0.0 if done > before else waited_s + _LOOK_S), done
        if waited_s > _STILL_S:
            raise CiarError(f"no image for {_STILL_S:g} s", f"{done} were finished before")
        await asyncio.sleep(_LOOK_S)


async def _sample(server: ServerProcess, crowd: _Crowd) -> Sample:
    counts = (crowd.count(_DONE), crowd.count(_LEFT), crowd.killed)
    return Sample(*counts, server.resident_mib(), server.descriptors(), await server.sessions())


def _work(
    target: str,
    scripts: tuple[Script, ...],
    plan: Plan,
    seed: tuple[int, int],
    counts: Any,  # noqa: ANN401
) -> None:
    """A client process: devices that draw until it is killed."""

    async def device(number: int) -> None:
        chance = np.random.default_rng((*seed, number))
        while True:
            script = scripts[int(chance.integers(len(scripts)))]
            leaves = chance.random() < plan.leave
            after = int(chance.integers(len(script.turns))) if leaves else None
            await play(target, script, think=False, leave_after=after)
            counts[_LEFT if leaves else _DONE] += 1

    async def all_devices() -> None:
        await asyncio.gather(*(device(number) for number in range(plan.devices)))

    asyncio.run(all_devices())
