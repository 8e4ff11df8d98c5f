"""Decoding by scales: noise keyed by place, the rule that asks, and tokens as bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.decoding.scales import (
    HARM,
    MAX_PLACES,
    AskRule,
    draw,
    guidance_at,
    packed,
    scale_noise,
    settled,
    truncated,
    unpacked,
)
from shared.errors import InvalidRequest

SIZES = st.integers(2, 5000)
SHARES = st.floats(0, 1)


def test_noise_belongs_to_the_image_not_to_its_row() -> None:
    both = scale_noise([7, 8], 3, 9, 20)
    assert torch.equal(both.flip(0), scale_noise([8, 7], 3, 9, 20))
    assert torch.equal(both[:1, :4], scale_noise([7], 3, 4, 20))  # nor on how many places are asked for
    seen = torch.cat([scale_noise([seed], k, 4, 8)[0] for seed in (7, 8) for k in range(3)])
    assert len(seen.unique(dim=0)) == 24  # every (seed, scale, place) has its own
    with pytest.raises(InvalidRequest, match=str(MAX_PLACES)):
        scale_noise([1], 0, MAX_PLACES + 1, 2)


def test_keyed_draws_follow_the_truncated_law() -> None:
    """6 codes, the least likely cut off; chi-square of 20,000 places, 99.9 % of seeds stay below 18.5."""
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -1.0])
    law = truncated(logits[None, None], 5, 0.0)
    drawn = draw(law, scale_noise([11], 9, 20_000, 6))
    counts, expected = drawn[0].bincount(minlength=6), law[0, 0].exp() * 20_000
    assert counts[5] == 0
    assert ((counts - expected)[:5].square() / expected[:5]).sum() < 18.5


def test_temperature_does_not_change_what_is_kept() -> None:
    law = truncated(torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(1)), 4, 0.9)
    hot = draw(law, scale_noise([1, 2], 0, 3, 50), temperature=50.0)
    assert torch.isfinite(law.gather(-1, hot[..., None])).all()


def test_guidance_grows_from_nothing_to_its_strength() -> None:
    assert [guidance_at(scale, 4, 1.5) for scale in range(4)] == [0.0, 0.5, 1.0, 1.5]
    assert guidance_at(0, 1, 1.5) == 0.0  # a single scale: no division by zero


@pytest.mark.parametrize(("scales", "size"), [(6, 137), (8, 383), (9, 636), (10, 1020)])
def test_a_hand_over_of_code_is_small(scales: int, size: int) -> None:
    sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    tokens = [4095 - place for place in range(sum(side**2 for side in sides[:scales]))]
    assert len(packed(tokens, 4096)) == size


@given(st.data(), SIZES)
def test_packing_is_undone(data: st.DataObject, size: int) -> None:
    tokens = data.draw(st.lists(st.integers(0, size - 1), max_size=40))
    assert unpacked(packed(tokens, size), len(tokens), size) == tokens


@pytest.mark.parametrize(
    ("data", "count"), [(b"", 1), (b"\x00\x00\x00", 1), (b"\xff\xff", 1), (b"\x00\x01", 1), (b"\x10\x00", 1)]
)
def test_bytes_that_are_no_tokens_are_refused(data: bytes, count: int) -> None:
    """Too few, too many, a code that there is not, bits behind the last code; the last row is fine."""
    if data == b"\x10\x00":
        assert unpacked(data, count, 3000) == [256]
        return
    with pytest.raises(InvalidRequest):
        unpacked(data, count, 3000)


def test_tokens_that_are_no_codes_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="0 to 15"):
        packed([3, 16], 16)


@given(SHARES, SHARES, SHARES, SHARES)
def test_more_bad_places_never_ask_less(share: float, limit: float, low: float, high: float) -> None:
    rule = AskRule(share, limit)
    low, high = sorted((low, high))
    for scale in range(len(HARM)):
        assert rule.asks(0.0, scale, high) >= rule.asks(0.0, scale, low)


def test_debts_add_up_until_they_are_asked_for() -> None:
    rule, debt = AskRule(share=0.5, debt=0.1), 0.0
    asked = []
    for scale in range(5):
        asked.append(rule.asks(debt, scale, 0.2))
        debt = 0.0 if asked[-1] else rule.owed(debt, scale, 0.2)
    assert asked == [False, True, False, True, False]
    assert not AskRule(until=0).asks(9.0, 0, 1.0)
    with pytest.raises(InvalidRequest):
        AskRule(share=-0.1)
    with pytest.raises(InvalidRequest):
        AskRule(debt=float("nan"))


def test_what_stands() -> None:
    device, cloud = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 2, 5]])
    bad = torch.tensor([[True, False, False]])
    assert settled(device, cloud, bad).tolist() == [[4, 2, 5]]
    assert settled(device, cloud, bad, "bad").tolist() == [[4, 2, 3]]
    with pytest.raises(InvalidRequest, match="all, bad"):
        settled(device, cloud, bad, "some")
