"""What a gate's score is worth, measured on held-back images: tables that live with the device's weights.

Knows nothing of models: it sees scores and whether the device's draw equalled the cloud's, per image and
position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    thresholds  one per entry of `budgets`: the tau whose call rate is that budget
    promises    shares of kept tokens that may differ from the cloud's draw, ascending; only those that hold
    bounds      one per promise: the largest tau that keeps it (for `certificate`: minus lambda)
    """

    scores: tuple[float, ...]
    differ: tuple[float, ...]
    budgets: tuple[float, ...]
    thresholds: tuple[float, ...]
    promises: tuple[float, ...] = ()
    bounds: tuple[float, ...] = ()

    def agreement(self, score: float) -> float:
        """Estimated probability that the cloud draws the same token, given the score."""
        place = int(np.searchsorted(self.scores, score, side="right")) - 1
        return 1.0 - self.differ[min(max(place, 0), len(self.differ) - 1)]

    def threshold(self, budget: float) -> float:
        """The tau for a share of cloud forwards per token; clipped to the measured range."""
        return float(np.interp(budget, self.budgets, self.thresholds))

    def budget(self, threshold: float) -> float:
        """The share of cloud forwards that a tau was calibrated for: the inverse of `threshold`."""
        return float(np.interp(threshold, self.thresholds[::-1], self.budgets[::-1]))

    def asking(self, share: float) -> float:
        """The tau above which about this share of the scores lies: a quantile of what was measured."""
        return self.scores[round((1 - share) * (len(self.scores) - 1))]

    def score_of(self, differ: float) -> float:
        """The smallest score from which on the draws differ with more than this probability; above every
        measured score where none does."""
        place = int(np.searchsorted(self.differ, differ, side="right"))
        return self.scores[place] if place < len(self.differ) else self.scores[-1]

    def bound(self, promise: float) -> float:
        """The tau at which at most a share `promise` of kept tokens differs from the cloud's draw.

        Nothing is interpolated: it is the bound of the largest promise that is not above. Raises
        InvalidRequest where none is.
        """
        place = int(np.searchsorted(self.promises, promise, side="right")) - 1
        if place < 0:
            held = ", ".join(f"{share:g}" for share in self.promises) or "none"
            raise InvalidRequest(f"promise {promise:g} is not calibrated", f"calibrated: {held}")
        return self.bounds[place]


@dataclass(frozen=True)
class Calibration:
    """All gates of one device, fitted under `warp` against the cloud of `cloud_digest`.

    span, floor   of the spans whose call rates the thresholds give; floor 0: all of them are `span` long
    prefix_share  cloud forwards per token that the prefix took of those rates
    default_gate              what mode `ciar` and adaptive spans go by
    device_digest             the device weights it was fitted on; empty: not recorded
    """

    cloud_digest: str
    warp: Warp
    span: int
    prefix_share: float
    gates: Mapping[str, GateTable]
    floor: float = 0.0
    default_gate: str = "entropy"
    device_digest: str = ""

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


def with_calls(table: GateTable, taus: Sequence[float], calls: Sequence[float]) -> GateTable:
    """The table with thresholds from measured call rates: `calls[i]` is the rate at threshold `taus[i]`.

    Taus fall as rates rise (made monotone by pooling upwards). Beyond what was measured, the rates of the
    thresholds that the table had are moved by the last difference found.
    """
    order = np.argsort(-np.asarray(taus))
    tau_M, call_M = np.asarray(taus)[order], np.maximum.accumulate(np.asarray(calls)[order])
    guessed_M = np.array([table.budget(tau) for tau in tau_M])
    excess = np.interp(table.budgets, guessed_M, call_M - guessed_M)
    expected = np.maximum.accumulate(np.asarray(table.budgets) + excess)
    thresholds = np.interp(table.budgets, expected, table.thresholds)
    return replace(table, thresholds=tuple(round(float(tau), 6) for tau in thresholds))


def keep_promises(
    taus: Sequence[float], wrong_MN: NDArray[Any], kept_MN: NDArray[Any], promises: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Conformal risk control: (promises, bounds) of those promises that some threshold keeps.

    wrong_MN, kept_MN  shares of all tokens, per threshold and image: kept and unlike the cloud's draw; kept.
    A promise e asks E[wrong - e * kept] <= 0 of a new image. That loss is at most 1 - e, so over N
    exchangeable images the sum of theirs plus 1 - e must not exceed 0 (Angelopoulos et al., 2024). The loss
    need not be monotone, so no lower threshold may have a positive sum.
    """
    order = np.argsort(taus)
    held, bounds = [], []
    for promise in sorted(promises):
        loss_M = (wrong_MN - promise * kept_MN).sum(1)[order]
        below_M = (loss_M <= 0).cumprod().astype(bool)
        good = np.flatnonzero(below_M & (loss_M + (1 - promise) <= 0))
        if len(good):
            held.append(promise)
            bounds.append(round(float(np.asarray(taus)[order][good[-1]]), 6))
    return tuple(held), tuple(bounds)


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
