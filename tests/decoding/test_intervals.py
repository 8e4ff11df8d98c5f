"""InterFuse and its uncertainty: properties, the naive formula, the bounds of eq. 4, the summary."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.decoding.intervals import (
    FUSES,
    SUMMARY_WIDTH,
    Interval,
    entropy,
    inter_fuse,
    summarise,
    uncertainty,
)
from shared.errors import InvalidRequest

SLACK = 1e-6  # absolute, fp32
RELATIVE = 1e-4  # logits of size 160 carry rounding errors of 1e-5, which exp turns into relative ones


@st.composite
def boxes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Centres up to +-80 and radii up to 30, dense or mostly zero, V 2 .. 200: fp32 [2, V] each."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (2, draw(st.integers(2, 200)))
    centre_TV = (2 * torch.rand(shape, generator=generator) - 1) * draw(st.floats(0, 80, width=32))
    if draw(st.booleans()):
        centre_TV = centre_TV.sign() * draw(st.sampled_from([0.0, 1.0, 40.0, 80.0]))
    radius_TV = torch.rand(shape, generator=generator) * draw(st.sampled_from([0.0, 1e-3, 0.5, 5.0, 30.0]))
    sparse_TV = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.95]))
    return centre_TV, radius_TV.masked_fill(sparse_TV, 0.0)


def naive(centre_TV: Tensor, radius_TV: Tensor, fuse: str) -> tuple[Tensor, Tensor]:
    """Eqs. 27-30 as they are printed, in fp64 and with a V x V sum over k != i."""
    centre_TV, radius_TV = centre_TV.double(), radius_TV.double()
    moved = radius_TV if fuse == "tight" else torch.zeros_like(radius_TV)
    others_VV = 1.0 - torch.eye(centre_TV.shape[-1], dtype=torch.float64)

    def bound(sign: float) -> Tensor:
        own_TV = (centre_TV + sign * radius_TV).exp()
        return own_TV / (own_TV + (centre_TV - sign * moved).exp() @ others_VV)

    lower_TV, upper_TV = bound(-1.0), bound(1.0)
    lower_TV = lower_TV * (0.99 / lower_TV.sum(-1, keepdim=True)).clamp(max=1.0)
    return lower_TV, (upper_TV * (1.01 / upper_TV.sum(-1, keepdim=True)).clamp(min=1.0)).clamp(max=1.0)


@pytest.mark.parametrize("fuse", FUSES)
@settings(max_examples=200)
@given(box=boxes())
def test_the_bounds_enclose_the_centre_and_a_distribution(fuse: str, box: tuple[Tensor, Tensor]) -> None:
    interval = inter_fuse(*box, fuse)
    probs_TV = box[0].double().softmax(-1)
    assert (interval.lower_TV >= 0).all()
    assert (interval.upper_TV <= 1).all()
    assert (interval.lower_TV <= probs_TV * (1 + RELATIVE) + SLACK).all()
    assert (interval.upper_TV >= probs_TV * (1 - RELATIVE) - SLACK).all()
    assert (interval.lower_TV.sum(-1) <= 1).all()
    assert (interval.upper_TV.sum(-1) >= 1).all()


@pytest.mark.parametrize("fuse", FUSES)
@settings(max_examples=200)
@given(box=boxes())
def test_the_naive_formula_in_fp64_agrees(fuse: str, box: tuple[Tensor, Tensor]) -> None:
    interval = inter_fuse(*box, fuse)
    lower_TV, upper_TV = naive(*box, fuse)
    torch.testing.assert_close(interval.lower_TV.double(), lower_TV, atol=SLACK, rtol=RELATIVE)
    torch.testing.assert_close(interval.upper_TV.double(), upper_TV, atol=SLACK, rtol=RELATIVE)


@given(box=boxes(), seed=st.integers(0, 2**31))
def test_tight_encloses_every_logit_vector_in_the_box(box: tuple[Tensor, Tensor], seed: int) -> None:
    centre_TV, radius_TV = box
    interval = inter_fuse(centre_TV, radius_TV, "tight")
    inside = 2 * torch.rand(20, *centre_TV.shape, generator=torch.Generator().manual_seed(seed)) - 1
    for place in (inside, inside.sign()):  # anywhere, and the corners
        probs = (centre_TV + radius_TV * place).double().softmax(-1)
        assert (interval.lower_TV <= probs * (1 + RELATIVE) + SLACK).all()
        assert (interval.upper_TV >= probs * (1 - RELATIVE) - SLACK).all()


@pytest.mark.parametrize("fuse", FUSES)
def test_a_confident_centre_with_a_wide_radius_is_still_exact(fuse: str) -> None:
    """p > 1 - 2**-24, so LSE minus self is 0 in fp32; yet p^l of the winner is sigmoid(1 - log 9), not 1."""
    centre_TV = torch.zeros(1, 10)
    centre_TV[0, 3] = 40.0
    radius_TV = torch.zeros(1, 10)
    radius_TV[0, 3] = 39.0
    lower_TV, _ = naive(centre_TV, radius_TV, fuse)
    got = inter_fuse(centre_TV, radius_TV, fuse).lower_TV
    torch.testing.assert_close(got.double(), lower_TV, atol=1e-7, rtol=1e-5)
    assert got[0, 3] < 0.3


@pytest.mark.parametrize("fuse", FUSES)
def test_a_common_shift_of_the_logits_changes_nothing(fuse: str) -> None:
    centre_TV = torch.randint(-20, 20, (2, 30), generator=torch.Generator().manual_seed(3)).float()
    radius_TV = torch.rand(2, 30, generator=torch.Generator().manual_seed(4))
    plain, shifted = inter_fuse(centre_TV, radius_TV, fuse), inter_fuse(centre_TV + 4096, radius_TV, fuse)
    assert torch.equal(plain.lower_TV, shifted.lower_TV)
    assert torch.equal(plain.upper_TV, shifted.upper_TV)


@pytest.mark.parametrize("fuse", FUSES)
@settings(max_examples=50)
@given(box=boxes())
def test_zero_radius_leaves_the_two_percent_of_the_constants(fuse: str, box: tuple[Tensor, Tensor]) -> None:
    """p^l = .99 softmax(c) and p^u = min(1, 1.01 softmax(c)), so Omega is at most .02."""
    centre_TV = box[0]
    interval = inter_fuse(centre_TV, torch.zeros_like(centre_TV), fuse)
    probs_TV = centre_TV.double().softmax(-1)
    torch.testing.assert_close(interval.lower_TV.double(), 0.99 * probs_TV, atol=SLACK, rtol=RELATIVE)
    upper_TV = (1.01 * probs_TV).clamp(max=1.0)
    torch.testing.assert_close(interval.upper_TV.double(), upper_TV, atol=SLACK, rtol=RELATIVE)
    assert (uncertainty(interval).omega_T <= 0.0201).all()


def test_tight_is_at_least_as_wide_before_scaling() -> None:
    """Where no sum is scaled (radii large), the hull contains the midpoint interval."""
    generator = torch.Generator().manual_seed(5)
    centre_TV = torch.randn(20, 50, generator=generator)
    radius_TV = torch.rand(20, 50, generator=generator) + 1
    midpoint, tight = inter_fuse(centre_TV, radius_TV), inter_fuse(centre_TV, radius_TV, "tight")
    assert (tight.lower_TV <= midpoint.lower_TV + SLACK).all()
    assert (tight.upper_TV >= midpoint.upper_TV - SLACK).all()


def test_half_precision_inputs_give_fp32_bounds_and_stay_as_they_are() -> None:
    centre_TV, radius_TV = torch.randn(2, 9).bfloat16(), torch.rand(2, 9).bfloat16()
    before = centre_TV.clone()
    interval = inter_fuse(centre_TV, radius_TV)
    assert interval.lower_TV.dtype == interval.upper_TV.dtype == torch.float32
    assert torch.equal(centre_TV, before)


def test_an_unknown_fuse_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"'loose'.*midpoint, tight"):
        inter_fuse(torch.zeros(1, 2), torch.zeros(1, 2), "loose")


@pytest.mark.parametrize("fuse", FUSES)
@given(box=boxes())
def test_bounds_of_the_uncertainty(fuse: str, box: tuple[Tensor, Tensor]) -> None:
    """For w in [0, 1]^V: Omega <= V, Sigma <= 1/2, Sigma^2 <= mean (1 - mean), U sqrt(V) <= Omega^2.

    The third is E[w^2] <= E[w]; the last is ||w - mean||_2 <= ||w||_2 <= ||w||_1.
    """
    interval = inter_fuse(*box, fuse)
    size = box[0].shape[-1]
    spread = uncertainty(interval)
    mean_T = spread.omega_T / size
    assert (spread.omega_T >= -SLACK).all()
    assert (spread.omega_T <= size).all()
    assert (spread.sigma_T >= 0).all()
    assert (spread.sigma_T <= 0.5 + SLACK).all()
    assert (spread.sigma_T**2 <= mean_T * (1 - mean_T) + SLACK).all()
    assert (spread.scaled_u <= spread.omega_T**2 * (1 + RELATIVE) + SLACK).all()
    assert torch.equal(spread.u_T, spread.omega_T * spread.sigma_T)
    torch.testing.assert_close(spread.scaled_u, spread.u_T * math.sqrt(size))


def test_the_uncertainty_bounds_are_reached() -> None:
    """Half of the widths one: Sigma = 1/2. A single width: U sqrt(V) -> Omega^2 as V grows."""
    half = Interval(torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    assert uncertainty(half).sigma_T.item() == pytest.approx(0.5)
    assert uncertainty(half).omega_T.item() == pytest.approx(2.0)
    one_TV = torch.zeros(1, 10000)
    one_TV[0, 0] = 1.0
    assert uncertainty(Interval(torch.zeros_like(one_TV), one_TV)).scaled_u.item() == pytest.approx(
        1.0, abs=1e-3
    )


def test_wider_radii_are_more_uncertain() -> None:
    generator = torch.Generator().manual_seed(6)
    centre_TV, radius_TV = torch.randn(1, 100, generator=generator), torch.rand(1, 100, generator=generator)
    omegas = [
        uncertainty(inter_fuse(centre_TV, scale * radius_TV)).omega_T.item() for scale in (0, 0.5, 1, 2, 4)
    ]
    assert omegas == sorted(omegas)
    assert len(set(omegas)) == len(omegas)


def test_entropy_of_known_distributions() -> None:
    log_q_TV = torch.tensor([[0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]).log()
    torch.testing.assert_close(entropy(log_q_TV), torch.tensor([math.log(4), 0.0, math.log(2)]))


def test_the_summary_holds_what_it_says() -> None:
    generator = torch.Generator().manual_seed(7)
    centre_TV, radius_TV = torch.randn(3, 40, generator=generator), torch.rand(3, 40, generator=generator)
    interval, log_q_TV = inter_fuse(centre_TV, radius_TV), centre_TV.log_softmax(-1)
    s_TS, spread = summarise(interval, log_q_TV), uncertainty(interval)
    assert s_TS.shape == (3, SUMMARY_WIDTH) == (3, 38)
    assert s_TS.dtype == torch.float32
    maxima = (interval.lower_TV.amax(-1), interval.upper_TV.amax(-1))
    head = (spread.omega_T, spread.sigma_T, spread.scaled_u, *maxima, entropy(log_q_TV))
    assert torch.equal(s_TS[:, :6], torch.stack(head, -1))
    for row in range(3):
        bounds = zip(interval.lower_TV[row].tolist(), interval.upper_TV[row].tolist(), strict=True)
        widths = interval.width_TV[row].tolist()
        ranked = [pair for _, pair in sorted(zip(widths, bounds, strict=True), key=lambda item: -item[0])]
        assert s_TS[row, 6:].reshape(16, 2).tolist() == [list(pair) for pair in ranked[:16]]


def test_the_summary_breaks_ties_by_id_and_pads_small_codebooks() -> None:
    lower_TV, upper_TV = torch.tensor([[0.0, 0.125, 0.25]]), torch.tensor([[0.5, 0.625, 1.0]])
    s_TS = summarise(Interval(lower_TV, upper_TV), torch.zeros(1, 3).log_softmax(-1))
    assert s_TS.shape == (1, SUMMARY_WIDTH)
    assert s_TS[0, 6:12].tolist() == [0.25, 1.0, 0.0, 0.5, 0.125, 0.625]
    assert (s_TS[0, 12:] == 0).all()


def test_the_summary_is_finite_with_filtered_ids() -> None:
    log_q_TV = torch.full((1, 30), -math.inf)
    log_q_TV[0, 4] = 0.0
    assert summarise(inter_fuse(torch.randn(1, 30), torch.rand(1, 30)), log_q_TV).isfinite().all()
