"""How a device's gates score on images that its cloud draws: thresholds per scale, and how well they rank.

Knows no training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from shared.decoding.calibration import auroc
from shared.decoding.gates import gate
from shared.decoding.scales import drawn, scale_noise
from shared.decoding.warp import Warp
from shared.models.by_scale import SHARES, THRESHOLDS, ScaleDevice, evidence
from shared.models.families.var import VARModel
from shared.models.families.var_run import ScaleRun
from shared.models.families.var_vae import ScaleQuantizer

GATES = ("interval", "margin", "certificate", "entropy", "softmax", "random")
FIRST_SEED = 30_000  # nothing else is drawn with these
WARP = Warp(guidance=1.5, top_k=100, top_p=0.9)


@dataclass(frozen=True, eq=False)
class Played:
    """Of every scale: scores [N, T] by gate, and where device and cloud drew differently, bool [N, T]."""

    scores: Mapping[str, list[NDArray[np.float32]]]
    differ: list[NDArray[np.bool_]]

    def agreement(self) -> list[float]:
        """The share of equal draws at each scale."""
        return [round(1 - float(differ.mean()), 3) for differ in self.differ]

    def ranks(self, first: int = 0) -> dict[str, float]:
        """AUROC of every gate for "they differ": the mean over the scales from `first` on that have both."""
        return {name: self._rank(rows, first) for name, rows in self.scores.items()}

    def _rank(self, rows: list[NDArray[np.float32]], first: int) -> float:
        pairs = [(s, d) for s, d in zip(rows[first:], self.differ[first:], strict=True) if 0 < d.mean() < 1]
        values = [auroc(scores.ravel(), differ.ravel()) for scores, differ in pairs]
        return round(float(np.mean(values)), 3) if values else float("nan")


@torch.inference_mode()
def play(
    cloud: VARModel, device: ScaleDevice, quantizer: ScaleQuantizer, images: int, warp: Warp = WARP
) -> Played:
    """The cloud draws images of one class after another; the device drafts every scale behind them."""
    config = cloud.config
    scores: dict[str, list[list[NDArray[np.float32]]]] = {name: [[] for _ in config.scales] for name in GATES}
    differ: list[list[NDArray[np.bool_]]] = [[] for _ in config.scales]
    for image in range(images):
        label, seed = torch.tensor([image % config.classes]), FIRST_SEED + image
        runs = [ScaleRun(model, quantizer, label, warp.guidance - 1) for model in (cloud, device.base)]
        for scale, side in enumerate(config.scales):
            noise_1TV = scale_noise([seed], scale, side * side, config.vocab_size)
            truth, draft = (drawn(run.logits(), warp, noise_1TV) for run in runs)
            seen = evidence(device, runs[1], noise_1TV[0], seed, warp)
            for name in GATES:
                scores[name][scale].append(gate(name)(seen).float().numpy())
            differ[scale].append((truth != draft)[0].numpy())
            for run in runs:
                run.push(truth)
    stacked = {name: [np.stack(rows) for rows in of] for name, of in scores.items()}
    return Played(stacked, [np.stack(rows) for rows in differ])


def write_thresholds(folder: Path, played: Played) -> None:
    """Quantiles of every gate's scores at every scale, as the device reads them."""
    shares = np.linspace(0, 1, SHARES + 1)
    tables = {
        name: [np.quantile(rows, shares).round(5).tolist() for rows in of]
        for name, of in played.scores.items()
    }
    (folder / THRESHOLDS).write_text(json.dumps(tables) + "\n", encoding="utf-8")
