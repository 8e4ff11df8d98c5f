"""The critic's figures mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluation.critic import (
    features,
    frechet_distance,
    other_captions,
    retrieval_ranks,
    scores,
    top_k,
)
from shared.config import CriticConfig
from shared.errors import InvalidRequest
from shared.models.critic import Critic

WORDS = ["bird", "cat", "cow", "dog", "flat", "fox", "noto", "owl", "pig", "style"]


@pytest.fixture
def critic() -> Critic:
    torch.manual_seed(0)
    return Critic(CriticConfig(width=8, dim=16), WORDS, [f"a {name}" for name in WORDS[:9]]).eval()


def pictures(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 255, (count, 128, 128, 3), np.uint8))


def test_ranks_count_better_captions(critic: Critic) -> None:
    pixels = pictures(1)
    cosines = {name: scores(critic, pixels, [f"a {name}"])[0] for name in WORDS[:9]}
    ordered = sorted(cosines, key=lambda name: -cosines[name])
    for place, name in enumerate(ordered):
        assert retrieval_ranks(critic, pixels, [f"a {name}"], others=8) == [place]
    assert retrieval_ranks(critic, pictures(2), ["a cat", "a dog"], 5) == retrieval_ranks(
        critic, pictures(2), ["a cat", "a dog"], 5
    )


def test_top_k_is_a_share() -> None:
    assert top_k([0, 3, 5, 9], 1) == 0.25 and top_k([0, 3, 5, 9], 5) == 0.5


def test_others_contradict_the_caption() -> None:
    pool = ["a cat", "cat, flat style", "the cat in noto style", "a dog", "dog in flat style"]
    assert set(other_captions(pool, "a flat style cat", 3, 0)) == {
        "the cat in noto style", "a dog", "dog in flat style"
    }  # fmt: skip
    with pytest.raises(InvalidRequest, match="99 are needed"):
        other_captions(pool, "a cat", 99, 0)


def test_frechet_distance_of_known_gaussians() -> None:
    """Between N(0, I) and N(m, s^2 I) it is |m|^2 + D (1 - s)^2; zero between equal sets."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40_000, 3))
    b = 2 * rng.normal(size=(40_000, 3)) + np.array([1.0, 0.0, -2.0])
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(5 + 3, rel=0.03)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    with pytest.raises(InvalidRequest, match="two"):
        frechet_distance(a[:1], b)


def test_features_are_before_normalisation(critic: Critic) -> None:
    found = features(critic, pictures(3))
    assert found.shape == (3, 16) and found.dtype == np.float64
    unit = found / np.linalg.norm(found, axis=-1, keepdims=True)
    np.testing.assert_allclose(unit, critic.embed_images(pictures(3)).detach().numpy(), atol=1e-5)
