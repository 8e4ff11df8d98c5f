"""Precision and recall on sets whose answer is known, intervals that cover, an eye that is the critic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluation.critic import frechet_distance
from evaluation.gallery import looks
from evaluation.metrics import CriticEye, Looks, Reference, overlap
from evaluation.statistics import Figure, bootstrap
from shared.config import CriticConfig
from shared.errors import InvalidRequest
from shared.models.critic import Critic

RNG = np.random.default_rng(0)


def cloud(count: int, at: float = 0.0, spread: float = 1.0) -> np.ndarray:
    return np.random.default_rng(count).normal(at, spread, (count, 4))


def test_equal_sets_overlap_and_far_ones_do_not() -> None:
    same, far = overlap(cloud(40), cloud(40)), overlap(cloud(40), cloud(41, at=100.0))
    assert same.f1 == 1 and far.f1 == 0
    assert same.precision(np.arange(40)) == same.recall(np.arange(40)) == 1


def test_a_mode_that_is_missed_costs_recall_and_one_that_is_made_up_costs_precision() -> None:
    both = np.concatenate([cloud(100), cloud(101, at=50.0)])
    missed, made_up = overlap(cloud(102), both), overlap(both, cloud(102))
    assert missed.precision(np.arange(102)) > 0.8 > 0.6 > missed.recall(np.arange(201))
    assert made_up.recall(np.arange(102)) > 0.8 > 0.6 > made_up.precision(np.arange(201))


def test_the_radius_is_that_of_the_kth_neighbour() -> None:
    """On a line at 0, 1, 2, 4, 8 with k = 2, the ball of 0 ends at -2 and that of 8 at 14."""
    line = np.array([[0.0], [1.0], [2.0], [4.0], [8.0]])
    drawn = np.array([[-2.1], [-1.9], [13.9], [14.1]])
    assert overlap(drawn, line, neighbours=2).real_N.tolist() == [False, True, True, False]
    with pytest.raises(InvalidRequest, match="more than 3"):
        overlap(cloud(3), cloud(9))


def test_intervals_cover_the_truth() -> None:
    """95 % intervals of a mean of 50; 20 of 60 miss by chance less than once in a million."""
    hits = 0
    for seed in range(60):
        values = np.random.default_rng(seed).normal(3.0, 1.0, 50)
        figure = bootstrap(lambda picks, values=values: float(values[picks].mean()), 50)
        hits += figure.low <= 3.0 <= figure.high
        assert figure.low <= figure.value <= figure.high
    assert hits > 40


def test_intervals_are_keyed_and_paired() -> None:
    a, b = cloud(30)[:, 0], cloud(30)[:, 1]
    first = bootstrap(lambda picks: float(a[picks].mean()), 30)
    assert first == bootstrap(lambda picks: float(a[picks].mean()), 30)
    assert first != bootstrap(lambda picks: float(a[picks].mean()), 30, seed=1)
    shifted = bootstrap(lambda picks: float((a[picks] + b[picks]).mean() - b[picks].mean()), 30)
    assert shifted.high == pytest.approx(first.high)
    assert bootstrap(lambda picks: 2.0, 1) == Figure(2.0, 2.0, 2.0)
    with pytest.raises(InvalidRequest, match="0 images"):
        bootstrap(lambda picks: 0.0, 0)


@torch.no_grad()
def test_the_critic_is_an_eye() -> None:
    torch.manual_seed(0)
    critic = Critic(CriticConfig(width=8, dim=16), ["cat", "dog"], []).eval()
    pixels = torch.from_numpy(RNG.integers(0, 256, (40, 128, 128, 3), np.uint8))
    eye = CriticEye(critic)
    reference = Reference(eye.look(pixels[20:]))
    seen = looks(eye, pixels[:20], ["cat", "dog"] * 10, reference)
    everything = np.arange(20)
    assert seen.distance(everything) == pytest.approx(frechet_distance(seen.drawn_ND, reference.features_MD))
    cosines = (critic.embed_images(pixels[:20]) * critic.embed_captions(["cat", "dog"] * 10)).sum(-1)
    assert seen.fit(everything) == pytest.approx(float(cosines.mean()), abs=1e-5)
    assert seen.biased and not Looks(np.zeros((8, 4)), np.zeros(8), Reference(np.zeros((8, 4)))).biased
    parts = np.concatenate([eye.look(pixels[:9]), eye.look(pixels[9:])])
    np.testing.assert_allclose(eye.look(pixels), parts, atol=1e-5)
