"""The paces: what each does with a budget half spent, a slow link, an image nearly done."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_client.pacing import (
    PACES,
    REFERENCE_S,
    Pacing,
    Situation,
    budget,
    cost,
    early,
    fixed,
    pace,
    pacing_for,
)
from device_client.progress import Counters
from shared.decoding.calibration import Calibration, GateTable
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest

SCORES = tuple(np.linspace(0, 1, 51).tolist())
TABLE = GateTable(SCORES, tuple(np.linspace(0, 0.5, 50).tolist()), (0.1, 0.2, 0.3, 0.5), (0.9, 0.8, 0.7, 0.5))
PACING = Pacing(0.8, 0.2, TABLE)
START = Counters(image_tokens=100)


def at(length: int, **counted: float) -> Situation:
    return Situation(length, replace(START, **counted), 0.0)  # type: ignore[arg-type]


def test_fixed_never_moves() -> None:
    assert {fixed(PACING, at(n, cloud_forwards=n)) for n in range(100)} == {0.8}


def test_budget_spends_what_is_left_on_what_is_left() -> None:
    assert budget(PACING, at(0)) == pytest.approx(0.8)  # 20 forwards for 100 tokens
    assert budget(PACING, at(50, cloud_forwards=10)) == pytest.approx(0.8)
    assert budget(PACING, at(50, cloud_forwards=5)) == pytest.approx(0.7)  # 15 for 50
    assert budget(PACING, at(50, cloud_forwards=15)) == pytest.approx(0.9)  # 5 for 50
    assert budget(PACING, at(50, cloud_forwards=20)) == math.inf
    assert budget(PACING, at(99, cloud_forwards=3)) == -math.inf  # 17 for one


def test_budget_counts_the_prefix_of_the_table() -> None:
    """A table calibrated with a prefix of 10 % says 0.28 where 20 % of the other tokens are asked."""
    behind = replace(PACING, prefix_share=0.1, budget=0.28)
    assert budget(behind, at(10, cloud_forwards=10)) == pytest.approx(TABLE.threshold(0.28))


@given(st.integers(0, 2**32), st.floats(0.12, 0.45), st.floats(0.5, 2.0))
def test_budget_converges_where_the_calibration_is_wrong(seed: int, target: float, slope: float) -> None:
    """Scores whose law is not the table's: the finished image still spends the budget, give or take one."""
    scores = np.random.default_rng(seed).random(400) ** slope
    counters = Counters(image_tokens=400)
    for place, score in enumerate(scores):
        tau = budget(Pacing(0.8, target, TABLE), Situation(place, counters, 0.0))
        if score > tau:
            counters = replace(counters, cloud_forwards=counters.cloud_forwards + 1)
    assert target * 400 - 12 <= counters.cloud_forwards <= target * 400


def test_early_asks_until_the_budget_is_spent() -> None:
    for length in (0, 50, 99):
        assert early(PACING, at(length, cloud_forwards=19)) == -math.inf
        assert early(PACING, at(length, cloud_forwards=20)) == math.inf
        assert early(PACING, at(length, cloud_forwards=26)) == math.inf


def test_cost_asks_as_fixed_does_at_the_reference_and_less_the_dearer_a_round_is() -> None:
    def tau(round_s: float) -> float:
        return cost(PACING, at(50, rounds=10**6, wait_s=round_s * 10**6))

    assert tau(REFERENCE_S) == pytest.approx(0.8, abs=0.03)
    taus = [tau(round_s) for round_s in (0.0, 0.005, 0.02, 0.021, 0.024, 1.0)]
    assert taus == sorted(taus) and taus[0] < 0.1 and taus[-1] == 1.0


def test_a_round_costs_its_waiting_and_what_was_drafted_in_vain() -> None:
    counted = {"rounds": 4, "judged": 12, "accepted": 8, "kept": 8, "device_s": 0.2, "wait_s": 0.5}
    now = Situation(20, replace(START, **counted), opened_s=0.1)  # type: ignore[arg-type]
    assert now.round_s == pytest.approx((REFERENCE_S + 0.4 + 4 * 0.01) / 5)
    assert at(0).round_s == REFERENCE_S


def test_pacing_of_an_image_takes_the_table_of_its_gate() -> None:
    calibration = Calibration("digest", Warp(), 16, 0.06, {"entropy": TABLE})
    found = pacing_for(0.8, 0.2, "entropy", calibration)
    assert found == Pacing(0.8, 0.2, TABLE, 0.06)
    assert pacing_for(0.0, None, "always", calibration).table is None


def test_paces_are_known_by_name() -> None:
    assert [pace(name) for name in PACES] == [fixed, budget, early, cost]
    with pytest.raises(InvalidRequest, match=r"'greedy'.*fixed, budget, early, cost"):
        pace("greedy")
