"""Which share of the steps a threshold of risk leaves to the cloud: measured on images drawn as a device and
its cloud draw them. Knows no training and no wire.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.decoding.denoising import Denoising, Hindsight, denoising, due, extrapolated, risk
from shared.models.by_step import (
    BudgetTable,
    StepCloud,
    StepPackage,
    latent_shape,
    load_step_cloud,
    load_step_package,
    write_tables,
)
from shared.models.families.dit_device import Anchor

GATES = ("interval", "radius", "change", "schedule")
FIRST_SEED = 30_000  # nothing else is drawn with these
PREFIX, MAX_GAP = 1, 12  # what the device's policy begins with
MULTIPLES = (0.0, 0.7, 1.5, 2.5, 4.0, 6.0, 9.0, 14.0)  # of the mean risk of a step
_UNIT_GAP = 5  # between two steps of the cloud, where that mean is taken


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """A pair, and the process on which it is rehearsed."""

    cloud: StepCloud
    package: StepPackage
    process: Denoising
    guidance: float

    @torch.inference_mode()
    def share(self, gate: str, threshold: float, max_gap: int, seed: int) -> tuple[float, float]:
        """The share of the steps of one image that were the cloud's, and the mean risk of the others."""
        model, process = self.package.model, self.process
        label = torch.tensor([seed % model.config.classes])
        state = process.start(seed, latent_shape(model.config))
        anchor, calls, owed, last, risks = model.nobody(1), 0, 0.0, 0, [0.0]
        said: list[tuple[int, Tensor]] = []  # steps and noises of the cloud, the last two
        hindsight = Hindsight()
        for step in range(len(process)):
            original = torch.tensor([process.original(step)])
            line = extrapolated(process, step, said[1], said[0]) if len(said) == 2 else anchor.eps
            scale, shown = torch.tensor([self.guidance]), replace(anchor, line=line)
            raw = model(state, original, label, scale, shown)
            guess = replace(raw, eps=hindsight.mended(step, raw.eps))
            new = risk(process, gate, guess, seed, step)
            if step < PREFIX or due(step - last, max_gap, owed + new, threshold):
                anchor, calls, owed, last = self._ask(state, original, label), calls + 1, 0.0, step
                eps, said = anchor.eps, [*said[-1:], (step, anchor.eps)]
                hindsight.heard(step, eps, raw.eps if step else None)
            else:
                owed, eps = owed + new, guess.eps
                risks.append(new)
            state = process.back(step, state, eps, guess.spread, seed)
        return calls / len(process), float(np.mean(risks[1:])) if len(risks) > 1 else 0.0

    def _ask(self, state: Tensor, original: Tensor, label: Tensor) -> Anchor:
        out, hidden = self.cloud.model.denoised(state, original, label, self.guidance)
        assert self.cloud.projection is not None, "a trained pair has one"
        channels = self.cloud.model.config.channels
        return Anchor(original, out[:, :channels], hidden @ self.cloud.projection.weight_DF)


def calibrate(home: Path, spacing: str, guidance: float, images: int) -> dict[str, list[BudgetTable]]:
    """Measure every gate of a model folder on one process and write its tables beside the device."""
    process = denoising(spacing, "ddim")
    pair = load_step_cloud(str(home), home), load_step_package(str(home), home)
    rehearsal = Rehearsal(*pair, process, guidance)
    tables = {gate: [_table(rehearsal, gate, spacing, images)] for gate in GATES}
    write_tables(home / "device", tables)
    return tables


def _table(rehearsal: Rehearsal, gate: str, spacing: str, images: int) -> BudgetTable:
    seeds = range(FIRST_SEED, FIRST_SEED + images)
    unit = float(np.mean([rehearsal.share(gate, np.inf, _UNIT_GAP, seed)[1] for seed in seeds]))
    thresholds = [unit * multiple for multiple in MULTIPLES]
    shares = [
        float(np.mean([rehearsal.share(gate, threshold, MAX_GAP, seed)[0] for seed in seeds]))
        for threshold in thresholds
    ]
    falling = np.minimum.accumulate(shares).tolist()
    return BudgetTable(
        spacing, "ddim", rehearsal.guidance, MAX_GAP, PREFIX, tuple(thresholds), tuple(falling)
    )
