"""Policies are values: every mode, every override, every refusal by name."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from device_client.policy import DEFAULT_BUDGET, MODES, Policy, policy_for
from shared.decoding.acceptance import Relaxation
from shared.decoding.calibration import Calibration, GateTable
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest

TABLE = GateTable(
    (-3.0, -2.0, -1.0), (0.1, 0.6), (0.1, 0.2, 0.3), (-1.0, -2.0, -3.0), (0.05, 0.1), (-2.5, -1.5)
)
CALIBRATION = Calibration("digest", Warp(), 5, 0.06, {"entropy": TABLE})


def test_the_modes_are_what_the_readme_says() -> None:
    ciar, exact, cloud, device = (policy_for(mode, CALIBRATION) for mode in MODES)
    assert ciar == Policy(
        "ciar",
        "entropy",
        TABLE.threshold(DEFAULT_BUDGET),
        32,
        0.01,
        0.06,
        "coupled",
        features=True,
        use_cloud=True,
        guesses=True,
        budget=DEFAULT_BUDGET,
        alone="jacobi",
        window=24,
        max_forwards=4,
    )
    assert exact == Policy(
        "exact", "always", 0.0, 32, 0.01, 0.0, "coupled", features=False, use_cloud=True, guesses=True,
        alone="jacobi", window=24, max_forwards=8,
    )  # fmt: skip
    assert not cloud.alone and cloud.prefix_tokens(256) == 256 and cloud.use_cloud and not cloud.guesses
    assert cloud.max_forwards == device.max_forwards == 1
    assert all(policy.in_flight == 1 for policy in (ciar, exact, cloud, device))
    assert device.gate == "never" and device.prefix_tokens(256) == 0 and not device.use_cloud


@pytest.mark.parametrize(
    ("rate", "tokens", "prefix"), [(0.06, 256, 15), (0.29, 100, 29), (0.0, 256, 0), (1.0, 36, 36)]
)
def test_the_prefix_is_the_floor_of_its_share(rate: float, tokens: int, prefix: int) -> None:
    assert policy_for("ciar", CALIBRATION, prefix_rate=rate).prefix_tokens(tokens) == prefix


def test_overrides_lie_on_top_of_the_mode() -> None:
    assert policy_for("ciar", CALIBRATION, cloud_budget=0.1).threshold == -1.0
    assert policy_for("ciar", CALIBRATION, threshold=-7.0).threshold == -7.0
    assert policy_for("ciar", CALIBRATION, span=3).span == 3
    adaptive = policy_for("ciar", CALIBRATION, span="adaptive")
    assert (adaptive.span, adaptive.adaptive_floor) == (32, 0.01)
    plain = policy_for("ciar", CALIBRATION, guesses=False, alone="")
    assert (plain.guesses, plain.span, plain.adaptive_floor, plain.window) == (False, 16, 0.3, 0)
    alone = policy_for("exact", CALIBRATION, guesses=False, span="adaptive")
    assert (alone.guesses, alone.span, alone.adaptive_floor) == (False, 16, 0.3)
    busy = policy_for("exact", CALIBRATION, max_forwards=3, in_flight=4, span=6)
    assert (busy.max_forwards, busy.in_flight, busy.span, busy.guesses) == (3, 4, 6, True)
    fixed = policy_for("exact", CALIBRATION, span=4, prefix_rate=0.5)
    assert (fixed.span, fixed.adaptive_floor, fixed.prefix_rate) == (4, None, 0.5)
    for mode in ("ciar", "cloud-only"):  # only plain draws may be had by iterations
        greedy = policy_for(mode, CALIBRATION, acceptance="greedy")
        assert (greedy.acceptance, greedy.alone, greedy.window) == ("greedy", "", 0)
        assert greedy.max_forwards == 1
    rows = policy_for("ciar", CALIBRATION, alone="rows", window=4)
    assert (rows.alone, rows.window, policy_for("ciar", CALIBRATION, window=8).alone) == ("rows", 4, "jacobi")


def test_the_calibration_names_the_gate_of_ciar_and_of_adaptive_spans() -> None:
    fitted = replace(CALIBRATION, gates={"entropy": TABLE, "agreement": TABLE}, default_gate="agreement")
    assert policy_for("ciar", fitted).gate == "agreement"
    assert policy_for("ciar", fitted, gate="entropy").gate == "entropy"
    assert policy_for("exact", fitted).gate == "always"
    with pytest.raises(InvalidRequest, match="agreement"):
        policy_for("exact", replace(CALIBRATION, default_gate="agreement"))


def test_a_promise_takes_the_bound_that_keeps_it() -> None:
    assert policy_for("ciar", CALIBRATION, promise=0.05).threshold == -2.5
    assert policy_for("ciar", CALIBRATION, promise=0.09).threshold == -2.5  # nothing is interpolated
    assert policy_for("ciar", CALIBRATION, promise=0.3).threshold == -1.5


def test_pacing_keeps_the_dial() -> None:
    paced = policy_for("ciar", CALIBRATION, cloud_budget=0.2, pacing="budget")
    assert (paced.threshold, paced.budget, paced.pacing) == (-2.0, 0.2, "budget")
    assert policy_for("ciar", CALIBRATION, threshold=-2.0, pacing="cost").budget is None


def test_relaxed_acceptance_carries_its_bounds() -> None:
    bounds = Relaxation(5, 0.1)
    relaxed = policy_for("ciar", CALIBRATION, acceptance="relaxed", relaxation=bounds)
    assert relaxed.relaxation == bounds
    for acceptance, given in (("relaxed", None), ("coupled", bounds)):
        with pytest.raises(InvalidRequest, match="relaxed"):
            policy_for("ciar", CALIBRATION, acceptance=acceptance, relaxation=given)


def test_what_looks_nothing_up_needs_no_calibration() -> None:
    for gate in ("never", "always"):
        assert policy_for("ciar", None, gate=gate, span=5).gate == gate
    assert policy_for("exact", None, span=5).span == 5 and not policy_for("exact", None, span=5).guesses
    assert policy_for("exact", CALIBRATION, span=5).guesses
    assert policy_for("ciar", None, threshold=-2.0, span=5).threshold == -2.0
    with pytest.raises(InvalidRequest, match="entropy"):
        policy_for("exact", None)
    with pytest.raises(InvalidRequest, match="entropy"):
        policy_for("ciar", None)
    with pytest.raises(InvalidRequest, match="entropy"):  # guesses are weighed against the device's doubt
        policy_for("ciar", None, gate="always", span=5, guesses=True)


@pytest.mark.parametrize(
    ("mode", "override", "named"),
    [
        ("fast", {}, "'?fast.* ciar, exact, cloud-only, device-only"),
        ("ciar", {"threshold": -1.0, "cloud_budget": 0.2}, "threshold -1.0 and cloud budget 0.2"),
        ("ciar", {"gate": "never", "threshold": 1.0}, "'never' with threshold 1.0"),
        ("ciar", {"gate": "always", "cloud_budget": 0.2}, "'always' with cloud budget 0.2"),
        ("ciar", {"gate": "guess"}, "'guess'.* margin"),
        ("ciar", {"gate": "margin"}, "'margin'.* entropy"),
        ("ciar", {"acceptance": "kind"}, "'kind'.* coupled"),
        ("ciar", {"cloud_budget": 0.0}, "cloud budget 0.0"),
        ("ciar", {"cloud_budget": math.nan}, "cloud budget nan"),
        ("ciar", {"threshold": math.nan}, "threshold nan"),
        ("ciar", {"promise": 0.01}, "promise 0.01 .* 0.05, 0.1"),
        ("ciar", {"promise": 0.1, "cloud_budget": 0.2}, "cloud budget 0.2 and promise 0.1"),
        ("ciar", {"pacing": "slow"}, "'slow'.* fixed, budget, early, cost"),
        ("ciar", {"pacing": "budget", "threshold": -1.0}, "'budget' with .*threshold -1.0.* a cloud budget"),
        ("ciar", {"pacing": "cost", "gate": "always"}, "'always' with policy cost"),
        ("ciar", {"pacing": "cost", "gate": "margin", "threshold": 1.0}, "'margin'.* entropy"),
        ("exact", {"pacing": "cost"}, "pacing cannot .* ciar"),
        ("ciar", {"threshold": math.inf}, "threshold inf"),
        ("ciar", {"span": 0}, "span 0 .* 1 to 64"),
        ("ciar", {"span": 65}, "span 65 .* 1 to 64"),
        ("ciar", {"span": "long"}, "span 'long' .* 'adaptive'"),
        ("ciar", {"alone": "rows"}, "window 0 .* above 0"),
        ("ciar", {"prefix_rate": 1.5}, "prefix rate 1.5 .* 0 to 1"),
        ("exact", {"max_forwards": 0}, "max forwards 0 .* 1 to 8"),
        ("exact", {"max_forwards": 9}, "max forwards 9"),
        ("exact", {"in_flight": 0}, "rounds in flight 0 .* 1 to 4"),
        ("ciar", {"in_flight": 5}, "rounds in flight 5"),
        ("cloud-only", {"in_flight": 2, "guesses": False}, "guesses and in_flight cannot.* ciar, exact"),
        ("device-only", {"max_forwards": 2}, "max_forwards cannot .* ciar, exact"),
        ("exact", {"gate": "margin"}, "gate cannot be set in mode 'exact'.* ciar"),
        ("cloud-only", {"span": 5, "prefix_rate": 0.5}, "span and prefix_rate .* ciar, exact"),
        ("device-only", {"threshold": 1.0}, "threshold cannot .* ciar"),
    ],
)
def test_impossible_policies_are_refused_by_name(mode: str, override: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        policy_for(mode, CALIBRATION, **override)  # type: ignore[arg-type]
    assert refusal.match("(?s)" + named)


def test_a_policy_checks_itself() -> None:
    policy = policy_for("exact", CALIBRATION)
    for change in ({"adaptive_floor": 1.0}, {"adaptive_floor": 0.0}, {"use_cloud": False}, {"mode": "other"}):
        with pytest.raises(InvalidRequest):
            replace(policy, **change)  # type: ignore[arg-type]
