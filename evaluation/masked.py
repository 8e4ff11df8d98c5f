"""Continuous speculative decoding on MAR over the real wire: time, passes, bytes, what stands, and quality.

The cloud server and the device each have a process of their own. Rows are interleaved: image by image every
row draws the same class with the same seed, so that a row of cspd and the cloud alone in as many steps see
the same noise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_client import masked_policy
from device_client.cloud import Request
from device_client.link import CloudLink
from device_client.masked.cli import to_image
from device_client.masked_loop import MaskedProgress, decode_masked
from device_client.masked_policy import Drawing, MaskedPolicy
from device_client.progress import Counters
from evaluation.apart import Memory, apart
from evaluation.processes import ServerProcess
from shared.decoding.warp import Warp
from shared.models.by_mask import MaskedPackage, load_masked_package

FIRST_SEED = 50_000  # nothing was trained on these
TOLERANCES = (0.1, 0.265, 0.5)
CLIP = 3.0  # of the row whose both heads clip


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    name: str
    policy: MaskedPolicy


@dataclass(frozen=True, eq=False)
class Result:
    """What a row's images were and cost: uint8 pictures [N, H, W, 3], tokens [N, L, C] in raster order."""

    row: Row
    token_NLC: NDArray[np.float32]
    pixels_NHW3: NDArray[np.uint8]
    counters: tuple[Counters, ...]

    def median(self, name: str) -> float:
        """Of a counter."""
        return float(np.median([getattr(counters, name) for counters in self.counters]))

    def share(self) -> float | None:
        """Of the judged tokens that stood; None where none was judged."""
        judged = sum(counters.judged for counters in self.counters)
        return sum(counters.accepted for counters in self.counters) / judged if judged else None

    def distance(self, base: Result) -> float:
        """Mean distance of a token from the one of another row."""
        return float(np.linalg.norm(self.token_NLC - base.token_NLC, axis=-1).mean())


def rows(tokens: int, steps: Sequence[int], drawing: Drawing, tolerances: Sequence[float]) -> list[Row]:
    """The cloud one token a step, then for each number of steps the cloud alone, which is the fair rival, and
    beside it what speculation does with as many passes; the exact acceptance, plain and, if nothing
    else is, clipped; the device alone."""
    found = [Row(f"cloud alone, {tokens} steps", masked_policy.cloud_only(tokens, drawing))]
    for count in steps:
        prefix = max(1, count // 8)
        found.append(Row(f"cloud alone, {count} steps", masked_policy.cloud_only(count, drawing)))
        found += [
            Row(f"cspd, {count} steps, {tau:g}", masked_policy.cspd(count, tau, prefix, drawing))
            for tau in tolerances
        ]
        found.append(Row(f"published, {count} steps", masked_policy.published(count, prefix, drawing)))
        found.append(Row(f"hand-over, {count} steps", masked_policy.hand_over(count, prefix, drawing)))
    found.append(Row("exact", masked_policy.exact(tokens, drawing=drawing)))
    if not drawing.clip:
        clipped = replace(drawing, clip=CLIP)
        found.append(Row(f"exact, clip {CLIP:g}", masked_policy.exact(tokens, drawing=clipped)))
    found.append(Row(f"device alone, {steps[0]} steps", masked_policy.device_only(steps[0], drawing)))
    return found


def measure(model: str, wanted: Sequence[Row], images: int, warp: Warp) -> tuple[list[Result], Memory]:
    """Draw everything; results in the order of `wanted`, and what both processes took. Raises CiarError."""
    with ServerProcess(model, "--threads", "1") as server:
        asyncio.run(server.ready())
        results, device_mib = apart(_drawn, model, server.target, wanted, images, warp)
        return results, Memory(server.resident_mib(), device_mib)


def _drawn(model: str, target: str, wanted: Sequence[Row], images: int, warp: Warp) -> list[Result]:
    """In the device process: a first image of every row is drawn and forgotten."""
    package = load_masked_package(model, Path(model).parent)
    asyncio.run(_draw(package, target, wanted, range(-1, 0), warp))
    drawn = asyncio.run(_draw(package, target, wanted, range(images), warp))
    return [_result(package, row, seen) for row, seen in zip(wanted, drawn, strict=True)]


def _result(package: MaskedPackage, row: Row, seen: Sequence[MaskedProgress]) -> Result:
    config = package.model.config
    token_NLC = np.zeros((len(seen), config.tokens, config.token_dim), np.float32)
    for image, progress in enumerate(seen):
        token_NLC[image, list(progress.tokens)] = progress.values
    pixels = np.stack([np.asarray(to_image(package, progress)) for progress in seen])
    return Result(row, token_NLC, pixels, tuple(progress.counters for progress in seen))


async def _draw(
    package: MaskedPackage, target: str, wanted: Sequence[Row], images: range, warp: Warp
) -> list[list[MaskedProgress]]:
    drawn: list[list[MaskedProgress]] = [[] for _ in wanted]
    for image in images:
        request = Request(str(image % package.model.config.classes), FIRST_SEED + image, warp)
        for row, found in zip(wanted, drawn, strict=True):
            async with CloudLink(target) as link:
                seen = [step async for step in decode_masked(package, request, row.policy, link)]
            found.append(seen[-1])
    return drawn
