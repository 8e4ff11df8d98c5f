"""Many devices against one server: images and rounds a second, who waits, who is refused. Knows no flags.

The devices are scripted (evaluation/scripted.py) and live in a few processes; what they share is the server.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from statistics import median

from evaluation.processes import ServerProcess
from evaluation.scripted import Played, Script, play
from shared.errors import CiarError

HEADER = (
    "devices", "places", "images", "images/s", "server busy", "round p50 ms", "p95 ms", "max/median",
    "refused", "told s",
)  # fmt: skip
_PATIENCE_S = 900.0


@dataclass(frozen=True)
class Device:
    """One device's images, in its order."""

    number: int
    images: tuple[Played, ...]


@dataclass(frozen=True)
class Load:
    """What `devices` devices saw of one server; `wall_s` from the first order to the last image.

    worked_s  processor seconds of the server meanwhile
    """

    places: int
    wall_s: float
    devices: tuple[Device, ...]
    worked_s: float = 0.0

    @property
    def images(self) -> int:
        """Finished ones."""
        return sum(len(device.images) for device in self.devices)

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.wall_s

    @property
    def rounds_s(self) -> list[float]:
        """Of all rounds, ascending: from the send to the verdict."""
        return sorted(s for device in self.devices for image in device.images for s in image.rounds_s)

    @property
    def unfairness(self) -> float:
        """The slowest device's seconds over the median device's, waits for a place included."""
        totals = [sum(image.total_s for image in device.images) for device in self.devices]
        return max(totals) / median(totals)

    @property
    def told_s(self) -> list[float]:
        """How long refused devices were told to wait, each time."""
        return [s for device in self.devices for image in device.images for s in image.told_s]


def line(load: Load) -> list[str]:
    """The cells under HEADER."""
    rounds_s, told_s = load.rounds_s, load.told_s
    waits = f"{min(told_s):g} to {max(told_s):g}" if told_s else "-"
    quick_s, slow_s = (rounds_s[int(share * (len(rounds_s) - 1))] for share in (0.5, 0.95))
    busy = f"{100 * load.worked_s / load.wall_s:.0f} %"
    times = [f"{1000 * quick_s:.0f}", f"{1000 * slow_s:.0f}"]
    figures = [f"{load.rate:.2f}", busy, *times, f"{load.unfairness:.2f}"]
    counts = [str(len(load.devices)), str(load.places), str(load.images)]
    return [*counts, *figures, str(len(told_s)), waits]


@dataclass(frozen=True)
class Crowd:
    """`devices` devices that draw `images` images each, one after the other, in `processes` processes.

    think  whether they take the time that drawing took; else they answer at once, and the server alone works
    """

    devices: int
    images: int
    processes: int = 2
    think: bool = True


def run(server: ServerProcess, scripts: Sequence[Script], crowd: Crowd, places: int) -> Load:
    """Let a crowd draw. Raises CiarError if one of them got a wrong answer or none."""
    spawn = multiprocessing.get_context("spawn")
    lines, started = [], []
    for share in _shares(crowd.devices, crowd.processes):
        near, far = spawn.Pipe()
        task = (server.target, tuple(scripts), share, crowd, far)
        work = spawn.Process(target=_work, args=task, daemon=True)
        work.start()
        far.close()
        lines.append(near)
        started.append(work)
    try:
        for near in lines:
            _hear(near)  # it is ready
        began_s, worked_s = time.perf_counter(), server.worked_s()
        for near in lines:
            near.send(True)
        done = [device for near in lines for device in _hear(near)]
        return Load(places, time.perf_counter() - began_s, tuple(done), server.worked_s() - worked_s)
    finally:
        for work in started:
            work.kill()
            work.join()


def _shares(devices: int, processes: int) -> list[range]:
    """Device numbers per process."""
    processes = min(devices, processes)
    cuts = [devices * part // processes for part in range(processes + 1)]
    return [range(start, stop) for start, stop in pairwise(cuts)]


def _hear(line: Connection) -> tuple[Device, ...]:
    try:
        if not line.poll(_PATIENCE_S):
            raise CiarError("devices are silent", f"they had {_PATIENCE_S:g} s")
        heard: tuple[Device, ...] = line.recv()
    except EOFError:
        raise CiarError("a process of devices ended", "its words are above") from None
    return heard


def _work(target: str, scripts: tuple[Script, ...], share: range, crowd: Crowd, line: Connection) -> None:
    """A process: its devices, all at once when told."""
    line.send(())
    line.recv()

    async def device(number: int) -> Device:
        mine = [scripts[(number + count) % len(scripts)] for count in range(crowd.images)]
        return Device(number, tuple([await play(target, script, think=crowd.think) for script in mine]))

    async def all_devices() -> tuple[Device, ...]:
        return tuple(await asyncio.gather(*(device(number) for number in share)))

    line.send(asyncio.run(all_devices()))
