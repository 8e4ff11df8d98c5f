"""Continuous speculative decoding: trajectories that align, and the laws of what is kept.

Two-sample Kolmogorov-Smirnov distances of n and n samples; under one law a distance above 1.95 sqrt(2 / n)
happens once in a thousand. Noise is keyed, so a test gives the same numbers every time.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from shared.decoding.continuous import (
    TRANSPORT,
    Gaussian,
    Replacement,
    log_uniforms,
    normals,
    order_of,
    published_ratio,
    residual,
    start_noise,
    step_noise,
    tolerant,
    trajectory_ratio,
)
from shared.decoding.noise import uniform
from shared.errors import InvalidRequest

N = 5000
LIMIT = 1.95 * math.sqrt(2 / N)
STEPS, WIDTH = 6, 2
OFFER = 40  # paths of the target drawn in advance for each refused draft


def ks(first: Tensor, second: Tensor) -> float:
    """The two-sample distance of two vectors."""
    ours, theirs = (np.sort(values.double().numpy()) for values in (first, second))
    places = np.concatenate([ours, theirs])
    shares = [np.searchsorted(of, places, side="right") / len(of) for of in (ours, theirs)]
    return float(np.abs(shares[0] - shares[1]).max())


def believe(x_NC: Tensor, step: int, shift: float) -> Gaussian:
    """A toy denoiser: nonlinear means, standard deviations that depend on state and step."""
    mean = 0.8 * x_NC + 0.3 * torch.tanh(x_NC.flip(-1) + step) + shift
    return Gaussian(mean, torch.log(0.25 + 0.1 * torch.sigmoid(x_NC + shift)))


def walk(start_NC: Tensor, noise_NTC: Tensor, shift: float) -> Tensor:
    """States [N, T + 1, C] of a chain."""
    states = [start_NC]
    for step in range(STEPS):
        states.append(believe(states[-1], step, shift).moved(noise_NTC[:, step]))
    return torch.stack(states, 1)


def along(states: Tensor, shift: float) -> Gaussian:
    """What a model believes at every state of given chains."""
    of = [believe(states[:, step], step, shift) for step in range(STEPS)]
    return Gaussian(torch.stack([g.mean for g in of], 1), torch.stack([g.log_std for g in of], 1))


def ratio(states: Tensor, shift: float) -> Tensor:
    return trajectory_ratio(along(states, 0.0), along(states, shift), states[:, 1:])


def chains(seed: int, shift: float, places: range = range(N)) -> Tensor:
    return walk(start_noise(seed, places, WIDTH), step_noise(seed, places, STEPS, WIDTH), shift)


def verified(shift: float) -> tuple[Tensor, float, float]:
    """Ends of verified drafts, the share accepted, and paths of the target drawn for each token."""
    drafts = chains(1, shift)
    accepted = log_uniforms(1, range(N)) <= ratio(drafts, shift)
    ends, spent = drafts[:, -1].clone(), 0
    refused = (~accepted).nonzero()[:, 0]
    # Start noise is shared: given it, a refused draft is replaced by a chain from the same start.
    keys = (refused[:, None] * OFFER + torch.arange(OFFER)).flatten().numpy()
    starts = drafts[refused, 0].repeat_interleave(OFFER, 0)
    paths = walk(starts, step_noise(2, keys, STEPS, WIDTH), 0.0)
    ratios, uniforms = ratio(paths, shift), log_uniforms(2, keys)
    for index, place in enumerate(refused.tolist()):
        offered = slice(index * OFFER, (index + 1) * OFFER)
        offer = (paths[offered], ratios[offered])
        found = residual(lambda n, of=offer: of, lambda n, of=uniforms[offered]: of, (OFFER,))
        ends[place], spent = found.path[-1], spent + found.spent
    return ends, accepted.double().mean().item(), spent / N


@pytest.mark.parametrize(("shift", "least"), [(0.03, 0.7), (0.1, 0.3)])
def test_verified_trajectories_have_the_law_of_the_target(shift: float, least: float) -> None:
    """Every coordinate and a projection. The drafts themselves do not pass, so the test can fail."""
    ends, accepted, spent = verified(shift)
    target, drafts = chains(5, 0.0)[:, -1], chains(6, shift)[:, -1]
    for found in ((0, 1.0, 0.0), (1, 0.0, 1.0), (2, 0.6, -0.8)):
        weights = torch.tensor(found[1:])
        assert ks(ends @ weights, target @ weights) < LIMIT
    assert ks(drafts[:, 0], target[:, 0]) > 1.5 * LIMIT
    assert least < accepted < 1
    assert spent == pytest.approx(1, abs=0.15)  # one path of the target a token, whatever the draft


def test_a_draft_of_the_target_itself_is_always_accepted() -> None:
    states = chains(3, 0.0, range(50))
    assert torch.equal(ratio(states, 0.0), torch.zeros(50, dtype=torch.float64))


def test_the_residual_law_itself() -> None:
    """p = N(0, 1), q = N(1, 1): a refused draft's replacement has density (p - q)+ / TV, below 1/2."""
    y = normals(1, range(N), 1, 5)[:, 0]
    log_ratio = (y - 1).double().square() / 2 - y.double().square() / 2
    kept, uniforms = [], log_uniforms(4, range(N))
    spent = 0
    while spent < N - 40:
        at = spent
        found = residual(
            lambda n, at=at: (y[at : at + n], log_ratio[at : at + n]),
            lambda n, at=at: uniforms[at : at + n],
            (40,),
        )
        spent += found.spent
        kept.append(found.path)
    values = torch.stack(kept)
    assert values.max() < 0.5
    share = math.erf(0.5 / math.sqrt(2))  # total variation of p and q
    assert len(kept) / spent == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / spent))
    below = (0.5 * (1 + math.erf(-1 / math.sqrt(2))) - 0.5 * (1 + math.erf(-2 / math.sqrt(2)))) / share
    assert (values < -1).double().mean().item() == pytest.approx(below, abs=4 * math.sqrt(below / len(kept)))


def test_a_residual_that_never_comes_falls_back_to_the_target() -> None:
    """Never to zeros, and it says so."""
    found = residual(
        lambda n: (torch.full((n, 3), 2.0), torch.full((n,), -1.0)), lambda n: torch.zeros(n), (4, 8)
    )
    assert isinstance(found, Replacement)
    assert (found.fallback, found.spent, found.path.tolist()) == (True, 12, [2.0, 2.0, 2.0])


@pytest.mark.parametrize("tolerance", [0.05, 0.265, 1.0])
def test_tolerant_drafts_move_no_further_than_promised(tolerance: float) -> None:
    own, drafted = chains(1, 0.0)[:, -1], chains(1, 0.1)[:, -1]
    keep = tolerant(drafted, own, log_uniforms(1, range(N)), tolerance)
    distance = (drafted - own).norm(dim=-1)
    assert (distance * keep).mean() <= TRANSPORT * tolerance
    expected = torch.exp(-distance.square() / (2 * tolerance**2)).mean().item()
    assert keep.double().mean().item() == pytest.approx(expected, abs=4 * math.sqrt(0.25 / N))


def test_the_ends_of_the_tolerance() -> None:
    own, drafted = chains(1, 0.0, range(40))[:, -1], chains(1, 0.1, range(40))[:, -1]
    log_u = log_uniforms(1, range(40))
    assert not tolerant(drafted, own, log_u, 0.0).any()
    assert tolerant(own, own, log_u, 0.0).all()
    assert tolerant(drafted, own, log_u, math.inf).all()
    with pytest.raises(InvalidRequest, match="tolerance -1"):
        tolerant(drafted, own, log_u, -1.0)


def test_shared_noise_brings_trajectories_together() -> None:
    own, drafted, other = chains(1, 0.0)[:, -1], chains(1, 0.03)[:, -1], chains(9, 0.03)[:, -1]
    log_u = log_uniforms(1, range(N))
    kept = [tolerant(draft, own, log_u).double().mean().item() for draft in (drafted, other)]
    assert kept[0] > 0.7 and kept[1] < 0.3


def test_the_published_test_keeps_no_law() -> None:
    """Drafts N(1, 1) of a target N(0, 1): flattened, it accepts nearly all and so emits the draft's law."""
    p, q = Gaussian(torch.zeros(N, 1), torch.zeros(N, 1)), Gaussian(torch.ones(N, 1), torch.zeros(N, 1))
    drafts = q.moved(normals(7, range(N), 1, 5))
    accepted = published_ratio(p, q, drafts, torch.ones(N)) > log_uniforms(7, range(N)).exp()
    assert accepted.double().mean() > 0.98
    assert ks(drafts[:, 0], normals(8, range(N), 1, 5)[:, 0]) > 10 * LIMIT


def test_noise_belongs_to_its_place_and_step() -> None:
    whole = step_noise(3, range(6), 5, 4)
    assert torch.equal(whole[[4, 1]], step_noise(3, [4, 1], 5, 4))
    assert torch.equal(whole[:, :3], step_noise(3, range(6), 3, 4))  # nor does it depend on the steps
    assert len(torch.cat([whole.flatten(), start_noise(3, range(6), 4).flatten()]).unique()) == 144
    values = normals(1, range(500), 40, 5).flatten()
    assert ks(values, torch.special.ndtri((torch.arange(20_000) + 0.5) / 20_000)) < 1.95 * math.sqrt(
        2 / 20_000
    )
    exact = [NormalDist().inv_cdf(u) for u in uniform(1, range(500), 40, 5).flatten()[:50]]
    assert values[:50].tolist() == pytest.approx(exact, abs=1e-6)


def test_an_order_is_a_permutation_of_its_seed() -> None:
    assert sorted(order_of(5, 256).tolist()) == list(range(256))
    assert torch.equal(order_of(5, 256), order_of(5, 256)) and not torch.equal(
        order_of(5, 256), order_of(6, 256)
    )
