"""Models by steps over the real wire: CIAR, both sides alone, and what as many calls give without a model on
the device.

The cloud server and the device each have a process of their own. Image by image every row draws the same
class with the same seed, one after another; what all are measured against is the cloud's own picture on all
steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from device_client import step_policy
from device_client.link import CloudLink
from device_client.progress import Counters
from device_client.step_drafter import StepRequest, threshold_of
from device_client.step_loop import Denoised, denoise
from device_client.step_policy import StepPolicy
from evaluation.apart import Memory, apart
from evaluation.processes import ServerProcess
from shared.decoding.denoising import ddim_spacing
from shared.models.by_step import StepPackage, load_step_package

FIRST_SEED = 40_000  # nothing was trained or calibrated on these


@dataclass(frozen=True)
class Row:
    """One row of a table: its process may have fewer steps than the cloud's."""

    name: str
    policy: StepPolicy
    spacing: str


@dataclass(frozen=True, eq=False)
class Result:
    """What a row's images were and cost: latents [N, C, H, H], uint8 pictures [N, H, W, 3]."""

    row: Row
    latents: NDArray[np.float32]
    pixels_NHW3: NDArray[np.uint8]
    counters: tuple[Counters, ...]

    def mean(self, name: str) -> float:
        """Of a counter."""
        return float(np.mean([getattr(counters, name) for counters in self.counters]))

    def median(self, name: str) -> float:
        """Of a counter."""
        return float(np.median([getattr(counters, name) for counters in self.counters]))

    def latent_error(self, base: Result) -> float:
        """Distance of the latents from another row's, as a share of their length, the mean over images."""
        off, whole = (
            np.linalg.norm(latents.reshape(len(latents), -1), axis=1)
            for latents in (self.latents - base.latents, base.latents)
        )
        return float((off / whole).mean())

    def pixel_error(self, base: Result) -> float:
        """Root of the mean square over all pixels of all images, in steps of 255."""
        off = self.pixels_NHW3.astype(np.float64) - base.pixels_NHW3
        return float(np.sqrt(np.square(off).mean()))


def alone(package: StepPackage, request: StepRequest) -> list[Row]:
    """The cloud by itself, the same step by step, and the device by itself."""
    whole = step_policy.cloud_only(len(request.process))
    return [
        Row("cloud-only", whole, request.spacing),
        Row("exact", step_policy.exact(), request.spacing),
        Row("device-only", step_policy.device_only(), request.spacing),
    ]


def ours(package: StepPackage, request: StepRequest, budget: float) -> list[Row]:
    """CIAR by every gate that is calibrated, the default one first. Raises InvalidRequest where none is."""
    gates = sorted(package.tables or {}, key=lambda gate: gate != step_policy.DEFAULT_GATE)
    rows = []
    for gate in gates or [step_policy.DEFAULT_GATE]:
        threshold = threshold_of(package, gate, request, budget)
        policy = step_policy.ciar(threshold, gate, prefix=_prefix(package, gate))
        rows.append(Row(f"ciar, {gate}, {budget:g}", policy, request.spacing))
    return rows


def rivals(calls: int, request: StepRequest) -> list[Row]:
    """What so many calls give: DDIM on fewer steps, the last output again, the line through the last two; and
    the device at equal distances, so that only when it asks differs from CIAR."""
    spacing = ddim_spacing(calls)
    few = step_policy.cloud_only(len(replace(request, spacing=spacing).process), "ddim")
    line = step_policy.rival("extrapolate", calls)
    even = replace(line, mode="ciar", predictor="device", hindsight=True)
    return [
        Row(f"DDIM, {calls} calls", few, spacing),
        Row(f"reuse, {calls} calls", step_policy.rival("reuse", calls), request.spacing),
        Row(f"extrapolate, {calls} calls", line, request.spacing),
        Row(f"extrapolate in hindsight, {calls} calls", replace(line, hindsight=True), request.spacing),
        Row(f"device evenly, {calls} calls", even, request.spacing),
        Row(f"device without hindsight, {calls} calls", replace(even, hindsight=False), request.spacing),
    ]


def measure(
    model: str, request: StepRequest, budgets: Sequence[float], images: int
) -> tuple[list[Result], Memory]:
    """Draw everything: the sides alone, then for each budget CIAR and its rivals with as many calls as it
    made. And what both processes took. Raises CiarError."""
    with ServerProcess(model, "--threads", "1") as server:
        asyncio.run(server.ready())
        results, device_mib = apart(_drawn, model, server.target, request, budgets, images)
        return results, Memory(server.resident_mib(), device_mib)


def _drawn(
    model: str, target: str, request: StepRequest, budgets: Sequence[float], images: int
) -> list[Result]:
    """In the device process."""
    package = load_step_package(model, Path(model).parent)
    bench = Bench(package, target, request, images)
    results = bench.drawn(alone(package, request))
    for budget in budgets:
        found = bench.drawn(ours(package, request, budget))
        calls = max(round(found[0].mean("cloud_forwards")), 2)
        results += [*found, *bench.drawn(rivals(calls, request))]
    return results


@dataclass(frozen=True, eq=False)
class Bench:
    """A device, and where its cloud is."""

    package: StepPackage
    target: str
    request: StepRequest
    images: int

    def drawn(self, rows: Sequence[Row]) -> list[Result]:
        """All images of some rows; a first one of each is drawn and forgotten."""
        asyncio.run(self._draw(rows, range(-1, 0)))
        seen = asyncio.run(self._draw(rows, range(self.images)))
        return [self._result(row, images) for row, images in zip(rows, seen, strict=True)]

    async def _draw(self, rows: Sequence[Row], images: range) -> list[list[Denoised]]:
        drawn: list[list[Denoised]] = [[] for _ in rows]
        classes = self.package.model.config.classes
        for image in images:
            told = replace(self.request, prompt=str(image % classes), seed=FIRST_SEED + image)
            for row, found in zip(rows, drawn, strict=True):
                async with CloudLink(self.target) as link:
                    request = replace(told, spacing=row.spacing)
                    seen = [step async for step in denoise(self.package, request, row.policy, link)]
                found.append(seen[-1])
        return drawn

    def _result(self, row: Row, images: Sequence[Denoised]) -> Result:
        latents = torch.cat([image.latent for image in images])
        with torch.inference_mode():
            pixels = self.package.vae.pictures(latents).numpy()
        return Result(row, latents.numpy(), pixels, tuple(image.progress.counters for image in images))


def _prefix(package: StepPackage, gate: str) -> int:
    tables = (package.tables or {}).get(gate, ())
    return tables[0].prefix if tables else step_policy.DEFAULT_PREFIX
