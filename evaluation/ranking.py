"""How well every gate ranks: will the cloud's draw differ? On images the cloud draws, teacher-forced.

A gate's figures are its AUROC, and the share of all tokens that are wrong when the top 10 to 40 % of places
are asked and all others kept. Knows nothing of servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.decoding.calibration import auroc
from shared.models.zoo import CloudModel, DevicePackage
from training.calibrate import CALIBRATED, SCORED, Scores, look, stacked
from training.images import device_interval, draw_images

FIRST_SEED = 20_000_000  # of images that nothing was fitted on
ASKED = (0.1, 0.2, 0.3, 0.4)
REFERENCE = "entropy"
RESAMPLED = 200
HEADER = (
    "gate",
    "AUROC",
    "95 %",
    f"minus {REFERENCE}",
    "95 %",
    *(f"wrong % at {100 * s:.0f} %" for s in ASKED),
)


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval over images."""

    value: float
    low: float
    high: float

    def text(self) -> tuple[str, str]:
        """The figure and its interval."""
        return f"{self.value:.4f}", f"{self.low:.4f} .. {self.high:.4f}"


@dataclass(frozen=True)
class Ranked:
    """One gate: AUROC, AUROC minus that of REFERENCE on the same images, and shares wrong at ASKED."""

    gate: str
    auroc: Estimate
    gain: Estimate
    wrong: tuple[float, ...]


def score_gates(
    cloud: CloudModel, package: DevicePackage, prompts: Sequence[str], images: int, cache: Path | None
) -> tuple[Scores, NDArray[np.bool_]]:
    """Scores [N, T] of every gate that this device can score, and where the draws differ [N, T].

    Prompts are taken in turn until there are `images`; `cache` is a file that keeps what the cloud drew.
    """
    warp, cycled = package.calibration.warp, [prompts[i % len(prompts)] for i in range(images)]
    drawn = draw_images(cloud.model, cycled, FIRST_SEED, warp, cache)
    examples = [
        look(seed, device_interval(package.model, prompt, tokens_T, warp), tokens_T, warp, package.learned)
        for prompt, seed, tokens_T in zip(drawn.captions, drawn.seeds, drawn.tokens_NT, strict=True)
    ]
    scores, agree_NT = stacked(examples, CALIBRATED if package.learned is None else SCORED)
    return scores, ~agree_NT


def rank(scores: Scores, differ_NT: NDArray[np.bool_]) -> list[Ranked]:
    """Every gate's figures, the best AUROC first; intervals by resampling images."""
    picks = np.random.default_rng(0).integers(0, len(differ_NT), (RESAMPLED, len(differ_NT)))
    found = {name: _resampled(score_NT, differ_NT, picks) for name, score_NT in scores.items()}
    whole = {name: auroc(score_NT.ravel(), differ_NT.ravel()) for name, score_NT in scores.items()}
    rows = [
        Ranked(
            name,
            _estimate(whole[name], found[name]),
            _estimate(whole[name] - whole[REFERENCE], found[name] - found[REFERENCE]),
            tuple(wrong_when_asked(scores[name], differ_NT, share) for share in ASKED),
        )
        for name in scores
    ]
    return sorted(rows, key=lambda row: -row.auroc.value)


def wrong_when_asked(score_NT: NDArray[np.float32], differ_NT: NDArray[np.bool_], share: float) -> float:
    """Share of all tokens that differ and are not among the `share` with the highest scores."""
    order = np.argsort(-score_NT.ravel(), kind="stable")
    return float(differ_NT.ravel()[order[round(share * len(order)) :]].sum() / len(order))


def markdown(rows: Sequence[Ranked], differ_NT: NDArray[np.bool_]) -> str:
    """A Markdown table, the number of images and the share of differing draws below it."""
    lines = [HEADER, ["---"] + ["--:"] * (len(HEADER) - 1)]
    lines += [
        [row.gate, *row.auroc.text(), *row.gain.text(), *(f"{100 * share:.2f}" for share in row.wrong)]
        for row in rows
    ]
    images, tokens = differ_NT.shape
    about = f"{images} images of {tokens} tokens; {100 * differ_NT.mean():.1f} % of coupled draws differ"
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{about}\n"


def _resampled(
    score_NT: NDArray[np.float32], differ_NT: NDArray[np.bool_], picks: NDArray[np.int64]
) -> NDArray[np.float64]:
    return np.array([auroc(score_NT[pick].ravel(), differ_NT[pick].ravel()) for pick in picks])


def _estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(value, float(low), float(high))
