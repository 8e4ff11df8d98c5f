"""The warp: parity with LlamaGen's sampling code, order of its steps, ties, hostile values."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from shared.decoding.warp import Warp, _keep_top_p, _keep_top_p_sorted, guide, log_probs, warp_logits
from shared.errors import InvalidRequest

GOLDEN = load_file(Path(__file__).with_name("golden_sampling.safetensors"))
CASES = [
    (Warp(top_k=5), [8, 5, 5]),
    (Warp(top_p=0.9), [20, 20, 13]),
    (Warp(top_k=10, top_p=0.8, temperature=0.7), [6, 7, 3]),
    (Warp(top_k=1000, temperature=1.3), [64, 64, 64]),
    (Warp(temperature=0.0), [1, 1, 1]),
]


@pytest.mark.parametrize(("case", "warp", "kept"), [(n, *case) for n, case in enumerate(CASES)])
def test_parity_with_the_reference(case: int, warp: Warp, kept: list[int]) -> None:
    """Probabilities of FoundationVision/LlamaGen (commit ce98ec41803a, MIT) on the same random logits.

    Row 0 holds four equal logits. Where top-p cuts between them, the reference's unstable sort keeps
    arbitrary ones and ours the smaller ids: there the probabilities agree as a multiset.
    """
    logits_TV, expected_TV = GOLDEN["logits"][:, 0], GOLDEN[f"case{case}.probs"]
    got_TV = warp_logits(logits_TV, warp).exp()
    tied_TV = (logits_TV[:, :, None] == logits_TV[:, None, :]).sum(-1) > 1
    assert tied_TV.sum(-1).tolist() == [4, 0, 0]
    torch.testing.assert_close(got_TV[~tied_TV], expected_TV[~tied_TV], atol=1e-6, rtol=0)
    torch.testing.assert_close(got_TV.sort(-1).values, expected_TV.sort(-1).values, atol=1e-6, rtol=0)
    assert (got_TV > 0).sum(-1).tolist() == kept


def test_top_p_cuts_ties_by_the_smaller_id() -> None:
    log_p_TV = warp_logits(torch.zeros(1, 8), Warp(top_p=0.3))
    assert log_p_TV.isfinite()[0].tolist() == [True] * 3 + [False] * 5


@given(
    seed=st.integers(0, 2**31),
    size=st.integers(2, 60),
    warp=st.builds(
        Warp,
        temperature=st.floats(0, 4),
        top_k=st.integers(0, 80),
        top_p=st.floats(0, 1, exclude_min=True),
    ),
)
def test_always_a_distribution_that_keeps_the_best(seed: int, size: int, warp: Warp) -> None:
    logits_TV = torch.randn(3, size, generator=torch.Generator().manual_seed(seed)) * 10
    before_TV = logits_TV.clone()
    log_p_TV = warp_logits(logits_TV, warp)
    assert torch.equal(logits_TV, before_TV)
    assert not log_p_TV.isnan().any()
    torch.testing.assert_close(log_p_TV.exp().sum(-1), torch.ones(3))
    assert log_p_TV.gather(-1, logits_TV.argmax(-1, keepdim=True)).isfinite().all()
    if warp.top_k:
        assert (log_p_TV.isfinite().sum(-1) <= max(warp.top_k, 1)).all()


def test_top_k_keeps_ties_with_the_kth() -> None:
    log_p_TV = warp_logits(torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0]]), Warp(top_k=2))
    assert log_p_TV.isfinite().tolist() == [[True, False, True, True, True, False]]


def test_top_p_keeps_the_token_that_crosses() -> None:
    log_p_TV = warp_logits(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), Warp(top_p=0.6))
    torch.testing.assert_close(log_p_TV.exp(), torch.tensor([[0.625, 0.375, 0.0, 0.0]]))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_top_p_is_the_same_to_the_bit_whether_all_is_sorted_or_not(spread: float, ties: bool) -> None:
    """Among the likeliest alone, by sorting, and row by row: a span is judged like its tokens one by one."""
    logits_TV = spread * torch.randn(40, 500, generator=torch.Generator().manual_seed(1))
    if ties:
        logits_TV = logits_TV.round(decimals=1)
    for p in (0.05, 0.3, 0.6, 0.9, 0.99):
        kept_TV = _keep_top_p(logits_TV, p)
        assert torch.equal(kept_TV, _keep_top_p_sorted(logits_TV, logits_TV.softmax(-1), p))
        assert torch.equal(kept_TV, torch.cat([_keep_top_p(row_1V, p) for row_1V in logits_TV.split(1)]))


def test_tiny_top_p_keeps_one() -> None:
    assert warp_logits(torch.tensor([[0.0, 2.0, 1.0]]), Warp(top_p=1e-9)).tolist() == [
        [-math.inf, 0.0, -math.inf]
    ]


def test_top_k_comes_before_top_p() -> None:
    """After top-2 of (.4, .3, .3 - e, e) the first holds more than half; without it two tokens are needed."""
    logits_TV = torch.tensor([[0.4, 0.3, 0.29, 0.01]]).log()
    assert warp_logits(logits_TV, Warp(top_k=2, top_p=0.5)).isfinite().sum() == 1
    assert warp_logits(logits_TV, Warp(top_p=0.5)).isfinite().sum() == 2


def test_temperature_comes_before_top_p() -> None:
    logits_TV = torch.tensor([[0.6, 0.3, 0.1]]).log()
    assert warp_logits(logits_TV, Warp(top_p=0.8)).isfinite().sum() == 2
    assert warp_logits(logits_TV, Warp(top_p=0.8, temperature=3.0)).isfinite().sum() == 3


def test_off_means_plain_log_softmax() -> None:
    logits_TV = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(warp_logits(logits_TV, Warp()), logits_TV.log_softmax(-1))


def test_half_precision_is_warped_in_fp32() -> None:
    logits_TV = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(warp_logits(logits_TV, Warp(top_k=3)), warp_logits(logits_TV.float(), Warp(top_k=3)))


def test_guidance_is_applied_first_and_only_with_two_rows() -> None:
    cond_TV, uncond_TV = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(1))
    warp = Warp(guidance=7.5, temperature=0.8, top_k=6, top_p=0.9)
    guided_TV = uncond_TV + 7.5 * (cond_TV - uncond_TV)
    torch.testing.assert_close(guide(cond_TV, uncond_TV, 7.5), guided_TV)
    torch.testing.assert_close(log_probs(cond_TV, uncond_TV, warp), warp_logits(guided_TV, warp))
    assert torch.equal(log_probs(cond_TV, None, warp), warp_logits(cond_TV, warp))


def test_guidance_zero_and_one_are_the_two_rows() -> None:
    cond_TV, uncond_TV = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(2))
    assert torch.equal(guide(cond_TV, uncond_TV, 0.0), uncond_TV)
    torch.testing.assert_close(guide(cond_TV, uncond_TV, 1.0), cond_TV)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, 1e9])
@pytest.mark.parametrize("name", ["guidance", "temperature", "top_k", "top_p"])
def test_values_out_of_range_are_named(name: str, value: float) -> None:
    if name == "top_k" and value == 1e9:
        value = 2.5
    with pytest.raises(InvalidRequest, match=f"{name} {value}") as caught:
        Warp(**{name: value})  # type: ignore[arg-type]
    assert "allowed: " in str(caught.value)


def test_top_p_zero_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"top_p 0\.0"):
        Warp(top_p=0.0)
