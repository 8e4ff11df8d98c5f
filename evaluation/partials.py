"""What it costs the device to be watched: `python -m evaluation.partials`, half a minute.

One picture is drawn over a real server a few times; then the events of 60 looks at it are made from what the
drawing showed, without and with a partial picture each. Processor time, the best of several runs: what else
the machine does matters little.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from device_client.draw import Upstream, steps
from device_client.events import Teller, frame
from device_client.jobs import Job
from device_client.loop import Progress
from device_client.tiles import Tiles
from device_client.wish import Wish, make_plan
from evaluation.run import cloud_server
from shared.models.zoo import DevicePackage, load_device_package
from shared.threads import use_threads

LOOKS = 60
RUNS = 8
WISH = Wish.model_validate({"prompt": "a cat", "seed": 3, "mode": "exact"})


def main() -> None:
    """Print what the picture took of the device's processor, and what looking at it takes."""
    use_threads(1)
    package = load_device_package("emoji", Path())
    with cloud_server("emoji") as target:
        drawings = [asyncio.run(_draw(package, target)) for _ in range(RUNS)]
    drawn_s = min(spent_s for _, spent_s in drawings)
    sys.stdout.write(f"drawing: {drawn_s:.3f} s\n")
    tiles = Tiles(package.vq)
    for partials in (0, LOOKS):
        told_s = min(asyncio.run(_tell(package, drawings[0][0], tiles, partials)) for _ in range(RUNS))
        line = f"{LOOKS} looks, {partials} partial pictures: {1000 * told_s:.1f} ms, {told_s / drawn_s:.1%}\n"
        sys.stdout.write(line)


async def _draw(package: DevicePackage, target: str) -> tuple[list[Progress], float]:
    """A drawing, and the processor seconds it took."""
    begun_s = time.thread_time()
    drawing = [step async for step in steps(package, make_plan(package, WISH), Upstream(target))]
    return drawing, time.thread_time() - begun_s


async def _tell(package: DevicePackage, drawing: Sequence[Progress], tiles: Tiles, partials: int) -> float:
    """Processor seconds that all looks at one drawing take."""
    job = Job(package, Upstream(None), [make_plan(package, WISH)])
    tell = Teller(_nothing, _nothing, tiles, partials)
    spent_s = 0.0
    for look in range(LOOKS):
        job.latest = drawing[(look + 1) * (len(drawing) - 1) // (LOOKS + 1)]
        begun_s = time.thread_time()
        for name, data in await tell(job):
            frame(name, data)
        spent_s += time.thread_time() - begun_s
    return spent_s


def _nothing(_: object) -> dict[str, object]:
    """Neither a finished picture nor an error is told here."""
    return {}


if __name__ == "__main__":
    main()
