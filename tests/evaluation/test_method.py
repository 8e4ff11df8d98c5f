"""The method's own tables: their rows exist, and what is said of them is what their records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_client.progress import Counters
from evaluation.columns import Sample
from evaluation.method import BREAK_EVEN, METHOD, compared
from evaluation.records import Record
from shared.models.zoo import load_device_package

T = 100


def sample(wrong: int, rounds: int = 10, wait_s: float = 1.0) -> Sample:
    """Four images of a row with so many tokens unlike the base's; the base takes 10 ms a forward."""
    counters = Counters(T, cloud_forwards=20, rounds=rounds, wait_s=wait_s, device_s=0.3, total_s=0.9)
    ours = Record("row", "a cat", 0, (1,) * wrong + (0,) * (T - wrong), counters)
    base = Record("base", "a cat", 0, (0,) * T, Counters(T, cloud_forwards=T, total_s=1.0))
    return Sample((ours,) * 4, (base,) * 4)


def test_every_row_is_a_policy_of_the_bundled_pair(tmp_path: Path) -> None:
    calibration = load_device_package("emoji", tmp_path).calibration
    for spec in METHOD.values():
        for line in spec.lines:
            line.row.policy(calibration)  # type: ignore[union-attr]


def test_rows_are_compared_by_sums_over_images() -> None:
    samples = {line.name: sample(5) for line in METHOD["gates"].lines}
    samples["entropy, 20%"] = sample(20)
    told = compared("gates", samples)
    assert "at 20%, tokens differing under agreement over entropy: 0.250 (0.250 .. 0.250)" in told
    modes = {line.name: sample(0) for line in METHOD["modes"].lines} | {
        "exact, 1 forward": sample(0, rounds=6),
        "exact": sample(0, rounds=1),
    }
    assert compared("modes", modes) == [
        "guesses cut rounds by: 0.400 (0.400 .. 0.400)",
        "guesses and 8 forwards cut rounds by: 0.900 (0.900 .. 0.900)",
    ]
    waiting = {line.name: sample(0) for line in METHOD["waiting"].lines}
    waiting["exact, 1 forward, 4 in flight"] = sample(0, wait_s=0.25)
    waiting["exact"] = sample(0, wait_s=0.5)
    told = compared("waiting", waiting)
    assert "4 in flight cut waiting of 'exact, 1 forward' by: 0.750 (0.750 .. 0.750)" in told
    assert "8 forwards cut waiting of 'exact, 1 forward' by: 0.500 (0.500 .. 0.500)" in told


def test_break_even_is_what_the_formula_says() -> None:
    """80 forwards of 10 ms saved, 0.3 s of the device spent, over 10 rounds: 50 ms each."""
    found = BREAK_EVEN.figure(sample(0))
    assert found is not None and found.value == pytest.approx(0.05)
