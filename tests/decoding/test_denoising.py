"""What device and cloud agree on of a denoised image: keyed noise, steps, risks, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.decoding.denoising import (
    MAX_PLACES,
    SCORES,
    Guess,
    Hindsight,
    carried,
    ddim_spacing,
    denoising,
    due,
    extrapolated,
    risk,
)
from shared.decoding.diffusion import spaced
from shared.errors import InvalidRequest

SHAPE = (3, 4, 4)


def guess(radius: torch.Tensor, eps: float = 0.0, since: float = 0.0) -> Guess:
    return Guess(torch.full((1, *SHAPE), eps), radius, torch.full((1, *SHAPE), since))


def some(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_steps_count_from_the_noisiest() -> None:
    process = denoising("ddim50", "ddim")
    assert [process.original(step) for step in (0, 1, 49)] == [980, 960, 0]
    clearness = [process.clearness(step) for step in range(50)]
    assert clearness == sorted(clearness) and len(process.carried) == 50
    assert [round(float(process.carried[step]), 2) for step in (0, 49)] == [0.22, 0.01]


def test_noise_is_keyed_by_seed_step_and_place() -> None:
    process = denoising("50", "ddpm")
    start = process.start(3, SHAPE)
    assert torch.equal(start, process.start(3, SHAPE)) and not torch.equal(start, process.start(4, SHAPE))
    # A latent twice as high has the same noise at the same raster places.
    assert torch.equal(process.start(3, (3, 8, 4))[:, :, :4], start)
    large = process.start(3, (4, 64, 64))
    assert abs(float(large.mean())) < 0.03 and abs(float(large.std()) - 1) < 0.03
    state, eps = some(), some(1)
    ends = [process.back(step, state, eps, None, seed) for step, seed in ((5, 1), (5, 1), (5, 2))]
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])
    last = [process.back(49, state, eps, None, seed) for seed in (1, 2)]
    assert torch.equal(*last)  # the last step adds nothing


def test_an_even_ddpm_step_has_the_narrowest_variance_without_a_spread() -> None:
    process, state, eps = denoising("50", "ddpm"), some(), some(1)
    narrow = process.back(5, state, eps, torch.full_like(eps, -1), 1)
    assert torch.equal(process.back(5, state, eps, None, 1), narrow)
    assert not torch.equal(process.back(5, state, eps, torch.ones_like(eps), 1), narrow)


@given(st.integers(2, 120))
@settings(max_examples=30, deadline=None)
def test_ddim_has_at_least_the_calls_asked_for(calls: int) -> None:
    steps = len(spaced(1000, ddim_spacing(calls)))
    assert calls <= steps <= 1.3 * calls + 1
    assert calls > 31 or steps == calls


def test_scores_grow_with_what_they_measure() -> None:
    process, radius = denoising("ddim50", "ddim"), some().abs()
    for gate in ("interval", "radius"):
        risks = [risk(process, gate, guess(radius * wide), 1, 7) for wide in (0.5, 1.0, 2.0)]
        assert risks == sorted(risks) and risks[2] == pytest.approx(4 * risks[0], rel=1e-4)
    assert risk(process, "interval", guess(torch.ones(1, *SHAPE)), 1, 7) == 0  # no spread of widths, no U
    assert risk(process, "change", guess(radius, 0.3, 0.1), 1, 7) == pytest.approx(
        0.2 * float(process.carried[7]), rel=1e-4
    )
    assert risk(process, "schedule", guess(radius), 1, 0) > risk(process, "schedule", guess(radius), 1, 49)
    carries = process.carried.tolist()
    uniform = [risk(process, "random", guess(radius), 1, step) / carries[step] for step in (3, 4)]
    assert uniform[0] != uniform[1] and min(uniform) > 0 and max(uniform) < 2
    assert risk(process, "always", guess(radius), 1, 3) == float("inf")
    with pytest.raises(InvalidRequest, match=", ".join(SCORES)):
        risk(process, "entropy", guess(radius), 1, 3)


def test_a_guess_holds_where_its_interval_does() -> None:
    eps = torch.zeros(1, *SHAPE)
    eps[0, 0, 0] = 2.0  # 4 of 48 places
    found = guess(torch.ones(1, *SHAPE))
    assert found.holds(eps) and not found.holds(eps, 0.95)


def test_when_the_cloud_is_asked() -> None:
    assert not due(3, 3, 0.1, 0.1) and due(4, 3, 0.0, 0.1) and due(1, 3, 0.2, 0.1)


def test_a_straight_line_is_continued() -> None:
    """Noise that is linear in the clearness is met exactly."""
    process, slope, offset = denoising("ddim50", "ddim"), some(), some(1)
    at = {step: offset + slope * process.clearness(step) for step in (2, 5, 9)}
    found = extrapolated(process, 9, (5, at[5]), (2, at[2]))
    torch.testing.assert_close(found, at[9], atol=1e-4, rtol=1e-4)


def test_what_travels_is_rounded_once() -> None:
    values = some()
    half = carried(values, "fp16")
    assert torch.equal(carried(half, "fp16"), half) and not torch.equal(half, values)
    assert torch.equal(carried(values, "fp32"), values)
    with pytest.raises(InvalidRequest, match="fp32"):
        carried(1e6 * values, "fp16")
    with pytest.raises(InvalidRequest, match="fp16, fp32"):
        carried(values, "fp8")


@pytest.mark.parametrize(("spacing", "sampler"), [("ddim50", "euler"), ("1", "ddim"), ("x", "ddim")])
def test_processes_without_sense_are_refused(spacing: str, sampler: str) -> None:
    with pytest.raises(InvalidRequest):
        denoising(spacing, sampler)


def test_refused_sizes() -> None:
    with pytest.raises(InvalidRequest, match="2 and more"):
        ddim_spacing(1)
    with pytest.raises(InvalidRequest, match=str(MAX_PLACES)):
        denoising("50", "ddim").start(1, (1, 257, 256))


def test_an_error_that_grows_evenly_is_mended_in_hindsight() -> None:
    """Between steps 2 and 6 guesses drift by 0.1 a step; from 6 on by the same, which is known then."""
    truth, hindsight = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)), Hindsight()
    drifted = {step: truth + 0.1 * (step - (2 if step <= 6 else 6)) for step in range(3, 12)}
    hindsight.heard(2, truth, None)
    assert torch.equal(hindsight.mended(5, drifted[5]), drifted[5])  # nobody knows of an error yet
    hindsight.heard(6, truth, drifted[6])
    for step in range(7, 12):
        torch.testing.assert_close(hindsight.mended(step, drifted[step]), truth)
    hindsight.heard(9, truth, drifted[9])  # 0.3 after three steps
    torch.testing.assert_close(hindsight.mended(10, truth + 0.1), truth)
