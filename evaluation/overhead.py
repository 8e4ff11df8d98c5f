"""What a round costs beside its forward, and how late a busy server's event loop is. Knows no tables.

Round trip and forward are of the same round, so both had the same second of the machine.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from device_client.link import CloudLink
from shared.decoding.warp import Warp
from shared.messages import Draft, Open, ServerInfo

SPAN = 5


@dataclass(frozen=True)
class Round:
    """Seconds of one verify round: there and back, what of it was the forward, and for how long the
    processor ran the device's own thread meanwhile (the other devices of that thread included)."""

    trip_s: float
    forward_s: float
    device_s: float

    @property
    def overhead_s(self) -> float:
        """All that is neither model nor waiting for it."""
        return self.trip_s - self.forward_s


def order(info: ServerInfo, seed: int) -> Open:
    """An image of the served model without a prefix."""
    model = info.models[0]
    warp = Warp(guidance=2.0)
    return Open(model.name, model.digest, model.codebook_size, "a cat", seed, warp, 0, "coupled")


async def measure(target: str, rounds: int, devices: int) -> list[Round]:
    """So many rounds at least, by so many devices at a time; the first image of each is a warm-up."""
    async with CloudLink(target) as link:
        info = await link.info()
    await asyncio.gather(*(_image(target, info, seed) for seed in range(devices)))
    found: list[Round] = []
    seed = devices
    while len(found) < rounds:
        images = await asyncio.gather(*(_image(target, info, seed + place) for place in range(devices)))
        found += [round for image in images for round in image]
        seed += devices
    return found


async def _image(target: str, info: ServerInfo, seed: int) -> list[Round]:
    """The rounds of one image; drafts are random, so nearly every one is corrected at its first token."""
    dice, size, made = random.Random(seed), info.models[0].image_tokens, list[Round]()
    async with CloudLink(target, retry_s=60.0) as link:
        await link.open(order(info, seed))
        base = 0
        while base < size:
            span = [dice.randrange(info.models[0].codebook_size) for _ in range(min(SPAN, size - base))]
            began_s, ran_s = time.perf_counter(), time.thread_time()
            await link.send(Draft(len(made) + 1, base, np.array(span, dtype=np.int32)))
            verdict = await link.receive()
            trip_s = time.perf_counter() - began_s
            made.append(Round(trip_s, verdict.cloud_s, time.thread_time() - ran_s))
            base += verdict.accepted + len(verdict.drawn)
        await link.finish()
    return made


def table(found: Mapping[int, Sequence[Round]]) -> str:
    """A row per number of devices, in milliseconds. With several, waiting for a turn is overhead as well."""
    lines = [
        "| devices | rounds | round trip p50 | forward p50 | overhead p10 | p50 | p95 | device's own p50 |",
        "| --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for devices, rounds in found.items():
        trips, forwards, costs, own = (
            1000 * np.array([getattr(round, name) for round in rounds])
            for name in ("trip_s", "forward_s", "overhead_s", "device_s")
        )
        cells = [np.median(trips), np.median(forwards), *np.percentile(costs, [10, 50, 95]), np.median(own)]
        lines.append(f"| {devices} | {len(rounds)} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
    return "\n".join([*lines, ""])
