"""What is computed for one place in NumPy against the functions for many."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.decoding import noise
from shared.decoding.gates import GATES, Evidence
from shared.decoding.place import SCORES, Place, draw, interval
from shared.decoding.warp import Warp, warp_logits
from tests.tiny import tiny_gate

warps = st.builds(
    Warp,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 7, 500]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01]),
)


def logits(seed: int, size: int, spread: float, ties: bool) -> torch.Tensor:
    z_1V = spread * torch.randn(1, size, generator=torch.Generator().manual_seed(seed))
    return z_1V.round() if ties else z_1V


@given(st.integers(0, 10**6), st.sampled_from([2, 6, 64, 300]), st.floats(0.1, 8.0), st.booleans(), warps)
@settings(max_examples=300, deadline=None)
def test_the_draw_is_the_one_behind_the_whole_warp(
    seed: int, size: int, spread: float, ties: bool, warp: Warp
) -> None:
    z_1V, g_1V = logits(seed, size, spread, ties), noise.gumbel(seed, [3], size)
    place = Place.of(z_1V[0].numpy(), warp.temperature, g_1V[0].numpy())
    log_q_1V = warp_logits(z_1V, warp.unfiltered)
    torch.testing.assert_close(torch.from_numpy(place.log_q_V), log_q_1V[0], rtol=1e-5, atol=1e-5)
    log_p_V = warp_logits(z_1V, warp)[0]
    found, wanted = draw(place, warp), int((log_p_V + g_1V[0]).argmax())
    # Rounding decides which of two equal sums is larger, and on which side of top-p's line a mass falls.
    near = abs(float((log_q_1V[0] + g_1V[0])[found] - (log_q_1V[0] + g_1V[0])[wanted])) < 1e-5
    assert (
        found == wanted
        or near
        or min(abs(before(z_1V, warp, t) - warp.top_p) for t in (found, wanted)) < 1e-5
    )


def before(z_1V: torch.Tensor, warp: Warp, token: int) -> float:
    """The mass that top-k leaves before an id, equals in their order."""
    p_V, z_V = warp_logits(z_1V, replace(warp, top_p=1.0))[0].exp(), z_1V[0]
    return float(p_V[z_V > z_V[token]].sum() + p_V[:token][z_V[:token] == z_V[token]].sum())


def test_equals_are_kept_in_their_order() -> None:
    """Four equal ids and top-p of a half: the first two stand before the line, the third crosses it."""
    equal_V = np.zeros(4, dtype=np.float32)
    for best in range(4):
        noise_V = np.eye(4, dtype=np.float32)[best] + np.arange(4, dtype=np.float32) / 100
        kept = draw(Place.of(equal_V, 1.0, noise_V), Warp(top_p=0.5))
        assert kept == int((warp_logits(torch.zeros(1, 4), Warp(top_p=0.5))[0].numpy() + noise_V).argmax())


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("size", [2, 64, 1024])
def test_scores_are_those_of_the_gate(name: str, size: int) -> None:
    for seed in range(20):
        z_1V, g_1V = logits(seed, size, 0.3 + seed / 4, False), noise.gumbel(seed, [3], size)
        for temperature in (0.0, 0.7):
            warp = Warp(temperature=temperature)
            log_q_1V = warp_logits(z_1V, warp)
            read = (torch.tensor([3]), log_q_1V, g_1V, z_1V, torch.zeros_like(z_1V))
            wanted = float(GATES[name](Evidence(seed, *read, tiny_gate())))
            found = SCORES[name](Place.of(z_1V[0].numpy(), temperature, g_1V[0].numpy()), tiny_gate())
            assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("size", [2, 64, 1024])
def test_the_interval_is_scored_as_the_gate_scores_it(size: int) -> None:
    rng = torch.Generator().manual_seed(size)
    for spread in (0.1, 1.0, 8.0, 60.0):
        z_1V, radius_1V = spread * torch.randn(1, size, generator=rng), 8 * torch.rand(1, size, generator=rng)
        read = (torch.tensor([3]), z_1V.log_softmax(-1), z_1V, z_1V, radius_1V)
        wanted = float(GATES["interval"](Evidence(0, *read)))
        assert interval(z_1V[0].numpy(), radius_1V[0].numpy()) == pytest.approx(wanted, rel=1e-3, abs=1e-4)
