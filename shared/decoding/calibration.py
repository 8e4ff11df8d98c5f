"""What a gate's score is worth, measured on held-back images: tables that live with the device's weights.

Knows nothing of models: it sees scores and whether the device's draw equalled the cloud's, per image and
position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.decoding.warp import Warp
from shared.errors import InvalidRequest

BINS = 50
BUDGETS = tuple(round(0.06 + 0.02 * index, 2) for index in range(24))  # cloud forwards per token


@dataclass(frozen=True)
class GateTable:
    """One gate.

    scores      BINS + 1 score quantiles, ascending
    differ      BINS shares of draws that differ from the cloud's, per bin, never falling with the score
    thresholds  one per entry of `budgets`: the tau whose simulated call rate is that budget
    """

    scores: tuple[float, ...]
    differ: tuple[float, ...]
    budgets: tuple[float, ...]
    thresholds: tuple[float, ...]

    def agreement(self, score: float) -> float:
        """Estimated probability that the cloud draws the same token, given the score."""
        place = int(np.searchsorted(self.scores, score, side="right")) - 1
        return 1.0 - self.differ[min(max(place, 0), len(self.differ) - 1)]

    def threshold(self, budget: float) -> float:
        """The tau for a share of cloud forwards per token; clipped to the measured range."""
        return float(np.interp(budget, self.budgets, self.thresholds))


@dataclass(frozen=True)
class Calibration:
    """All gates of one device, fitted under `warp` against the cloud of `cloud_digest`."""

    cloud_digest: str
    warp: Warp
    span: int
    prefix_rate: float
    gates: Mapping[str, GateTable]

    def table(self, gate: str) -> GateTable:
        """The table of a gate. Raises InvalidRequest when it was not calibrated."""
        if gate not in self.gates:
            raise InvalidRequest(
                f"gate {gate!r} has no calibration", f"calibrated: {', '.join(sorted(self.gates))}"
            )
        return self.gates[gate]


def simulate_calls(ask_NT: NDArray[np.bool_], agree_NT: NDArray[np.bool_], span: int, prefix: int) -> float:
    """Cloud forwards per token of the loop of SPEC section 6, replayed on known answers.

    Teacher-forced: agreement is taken from the cloud's own sequence, whatever was kept before.
    """
    images, tokens = ask_NT.shape
    forwards = images * prefix
    for ask_T, agree_T in zip(ask_NT, agree_NT, strict=True):
        place = prefix
        while place < tokens:
            if not ask_T[place]:
                place += 1
                continue
            forwards += 1
            wrong = np.flatnonzero(~agree_T[place : place + span])
            place += 1 + (int(wrong[0]) if len(wrong) else span)
    return float(forwards / (images * tokens))


def fit_gate(score_NT: NDArray[np.float32], agree_NT: NDArray[np.bool_], span: int, prefix: int) -> GateTable:
    """Quantiles, disagreement per bin (made monotone by pooling violators) and thresholds per budget."""
    edges = np.quantile(score_NT, np.linspace(0, 1, BINS + 1), method="nearest")
    bins = np.clip(np.searchsorted(edges, score_NT, side="right") - 1, 0, BINS - 1)
    count = np.bincount(bins.ravel(), minlength=BINS)
    wrong = np.bincount(bins.ravel(), weights=(~agree_NT).ravel(), minlength=BINS)
    candidates = np.unique(np.quantile(score_NT, np.linspace(0, 1, 65), method="nearest"))[::-1]
    calls = [simulate_calls(score_NT > tau, agree_NT, span, prefix) for tau in candidates]
    thresholds = np.interp(BUDGETS, np.maximum.accumulate(calls), candidates)
    return GateTable(
        tuple(map(float, edges)),
        _rising(wrong, count),
        BUDGETS,
        tuple(round(float(tau), 6) for tau in thresholds),
    )


def _rising(wrong: NDArray[Any], count: NDArray[Any]) -> tuple[float, ...]:
    """Pool adjacent violators: the closest never-falling rates; empty bins take their pool's rate."""
    pools: list[list[float]] = []
    for w, c in zip(wrong, count, strict=True):
        pools.append([float(w), float(c), 1.0])
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] >= pools[-1][0] * pools[-2][1]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
    return tuple(round(w / max(c, 1.0), 6) for w, c, bins in pools for _ in range(int(bins)))


def auroc(score_N: NDArray[np.float32], positive_N: NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative, ties counted half; 0.5 where one class is
    missing."""
    positives, negatives = int(positive_N.sum()), int((~positive_N).sum())
    if positives == 0 or negatives == 0:
        return 0.5
    _, inverse, counts = np.unique(score_N, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive_N].sum() - positives * (positives + 1) / 2) / (positives * negatives))
