"""Models by scales over the real wire: time, bytes, memory and quality of CoDe, CIAR and both sides alone.

A cloud server and the device each have a process of their own, so that the memory of both is measured. Rows
are interleaved: image by image every row draws the same class with the same seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from device_client import scale_policy
from device_client.cloud import Request
from device_client.link import CloudLink
from device_client.progress import Counters, Progress
from device_client.scale_loop import decode_scales
from device_client.scale_policy import ScalePolicy
from evaluation.apart import apart
from evaluation.processes import ServerProcess
from shared.decoding.warp import Warp
from shared.models.by_scale import ScalePackage, load_scale_package

FIRST_SEED = 40_000  # nothing was trained or calibrated on these
WARP = Warp(guidance=1.5, top_k=100, top_p=0.9)
GATES = ("margin", "interval", "entropy", "random")  # of those that are calibrated


@dataclass(frozen=True)
class Row:
    """One row of a table, and where its model is: a tuned drafter and refiner have a folder of their own."""

    name: str
    policy: ScalePolicy
    model: str


@dataclass(frozen=True, eq=False)
class Result:
    """What a row's images were and cost: uint8 pictures [N, H, W, 3], tokens [N, T]; memory in MiB."""

    row: Row
    tokens_NT: NDArray[np.int32]
    pixels_NHW3: NDArray[np.uint8]
    counters: tuple[Counters, ...]
    cloud_mib: float
    device_mib: float

    def median(self, name: str) -> float:
        """Of a counter."""
        return float(np.median([getattr(counters, name) for counters in self.counters]))

    def like(self, base: Result) -> float:
        """The share of tokens equal to those of another row."""
        return float((self.tokens_NT == base.tokens_NT).mean())


def rows(package: ScalePackage, model: str, specialised: Sequence[tuple[int, str]] = ()) -> list[Row]:
    """Both sides alone, CoDe with 9 to 6 scales in the cloud, CIAR by each gate that is calibrated, and
    everything verified."""
    scales = len(package.config.scales)
    begun, gates = min(scale_policy.DEFAULT_PREFIX, scales // 2), sorted(package.thresholds or {})
    found = [Row("cloud alone", scale_policy.cloud_only(scales), model)]
    counts = [count for count in (9, 8, 7, 6) if count < scales]
    found += [Row(f"CoDe N = {count}", scale_policy.code(count), model) for count in counts]
    found += [Row(f"CoDe N = {count}, tuned", scale_policy.code(count), home) for count, home in specialised]
    found += [Row(f"CIAR, {gate}", scale_policy.ciar(begun, gate), model) for gate in gates if gate in GATES]
    found += [
        Row("exact", scale_policy.exact(), model),
        Row("device alone", scale_policy.device_only(), model),
    ]
    return found


@dataclass(frozen=True)
class Task:
    """What one device process draws: rows of one model, against one server."""

    rows: tuple[Row, ...]
    target: str
    images: int


def measure(wanted: Sequence[Row], images: int) -> list[Result]:
    """Draw everything; results in the order of `wanted`. Raises CiarError."""
    results: list[Result] = []
    for model in dict.fromkeys(row.model for row in wanted):
        mine = tuple(row for row in wanted if row.model == model)
        with ServerProcess(model, "--threads", "1") as server:
            asyncio.run(server.ready())
            drawn, device_mib = apart(_drawn, Task(mine, server.target, images))
            cloud_mib = server.resident_mib()
        results += [
            Result(row, *_arrays(seen, mine[0].model), tuple(p.counters for p in seen), cloud_mib, device_mib)
            for row, seen in zip(mine, drawn, strict=True)
        ]
    return sorted(results, key=lambda result: list(wanted).index(result.row))


def pictures(package: ScalePackage, tokens_NT: NDArray[np.int32]) -> NDArray[np.uint8]:
    """uint8 [N, H, W, 3]."""
    offsets, ids = package.config.offsets, torch.from_numpy(tokens_NT.astype(np.int64))
    maps = [ids[:, first:last] for first, last in pairwise(offsets)]
    with torch.inference_mode():
        image = package.vq.picture(package.vq.quantize.sums(maps)[-1])
    out: NDArray[np.uint8] = (image * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return out


def _arrays(seen: Sequence[Progress], model: str) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    tokens_NT = np.array([progress.tokens for progress in seen], dtype=np.int32)
    return tokens_NT, pictures(load_scale_package(model, Path(model).parent), tokens_NT)


def _drawn(task: Task) -> list[list[Progress]]:
    """In the device process, by row: a first image of every row is drawn and forgotten."""
    model = task.rows[0].model
    package = load_scale_package(model, Path(model).parent)
    asyncio.run(_draw(package, task, range(-1, 0)))
    return asyncio.run(_draw(package, task, range(task.images)))


async def _draw(package: ScalePackage, task: Task, images: range) -> list[list[Progress]]:
    drawn: list[list[Progress]] = [[] for _ in task.rows]
    for image in images:
        label = image % package.config.classes
        for row, found in zip(task.rows, drawn, strict=True):
            request = Request(str(label), FIRST_SEED + image, WARP)
            async with CloudLink(task.target) as link:
                seen = [step async for step in decode_scales(package, request, row.policy, link)]
            found.append(seen[-1])
    return drawn
