"""Several Inter-Heads as one interval."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.decoding.heads import COMBINATIONS, check_combination, combine_centres, combine_radii
from shared.decoding.intervals import midpoint_bounds
from shared.errors import InvalidRequest


def heads(seed: int, count: int, vocab: int = 40, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centre_HTV = scale * torch.randn(count, 5, vocab, generator=generator)
    return centre_HTV, 8 * torch.rand(count, 5, vocab, generator=generator) ** 3


@given(st.integers(0, 10_000), st.integers(2, 5), st.sampled_from((0.1, 3.0, 12.0)))
def test_an_ensemble_has_the_mean_probabilities_and_the_mean_widths(
    seed: int, count: int, scale: float
) -> None:
    centre_HTV, radius_HTV = heads(seed, count, scale=scale)
    centre_TV = combine_centres("ensemble", centre_HTV)
    radius_TV = combine_radii("ensemble", centre_HTV, radius_HTV)
    torch.testing.assert_close(centre_TV.softmax(-1), centre_HTV.softmax(-1).mean(0), rtol=1e-4, atol=1e-6)
    each_HTV = midpoint_bounds(centre_HTV, radius_HTV).width_TV
    width_TV = midpoint_bounds(centre_TV, radius_TV).width_TV
    torch.testing.assert_close(width_TV, each_HTV.mean(0), rtol=1e-3, atol=1e-5)


@given(st.integers(0, 10_000), st.sampled_from((3, 5)))
def test_voting_believes_most_heads(seed: int, count: int) -> None:
    """Most heads lie on neither side of what is said; one head gone mad changes little."""
    centre_HTV, radius_HTV = heads(seed, count)
    centre_TV = combine_centres("voting", centre_HTV)
    radius_TV = combine_radii("voting", centre_HTV, radius_HTV)
    for said_TV, each_HTV in ((centre_TV, centre_HTV.log_softmax(-1)), (radius_TV, radius_HTV)):
        assert (2 * (each_HTV <= said_TV).sum(0) > count).all()
        assert (2 * (each_HTV >= said_TV).sum(0) > count).all()
    mad_HTV = radius_HTV.clone()
    mad_HTV[0] = 1e6
    assert (combine_radii("voting", centre_HTV, mad_HTV) <= radius_HTV[1:].amax(0)).all()


@pytest.mark.parametrize("name", COMBINATIONS)
def test_equal_heads_are_one_head(name: str) -> None:
    centre_HTV, radius_HTV = heads(0, 1)
    alone = combine_centres(name, centre_HTV), combine_radii(name, centre_HTV, radius_HTV)
    assert torch.equal(alone[0], centre_HTV[0]) and torch.equal(alone[1], radius_HTV[0])
    for count in (2, 3, 4):
        same = centre_HTV.expand(count, -1, -1), radius_HTV.expand(count, -1, -1)
        torch.testing.assert_close(combine_centres(name, same[0]), alone[0].log_softmax(-1))
        torch.testing.assert_close(combine_radii(name, *same), alone[1], rtol=1e-3, atol=1e-3)


def test_unknown_combinations_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"'mean'.*ensemble, voting"):
        check_combination("mean")
