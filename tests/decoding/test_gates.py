"""Every gate against its formula, with filtered ids, one row at a time and in batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from shared.decoding import noise
from shared.decoding.gates import GATES, Evidence, gate
from shared.decoding.intervals import inter_fuse, uncertainty
from shared.decoding.warp import Warp, warp_logits
from shared.errors import InvalidRequest
from tests.tiny import tiny_gate


def evidence(rows: int = 6, size: int = 50, warp: Warp | None = None, seed: int = 9) -> Evidence:
    generator = torch.Generator().manual_seed(seed)
    centre_TV = 3 * torch.randn(rows, size, generator=generator)
    return Evidence(
        seed=seed,
        position_T=torch.arange(4, 4 + rows),
        log_q_TV=warp_logits(centre_TV, warp or Warp(top_k=10, top_p=0.95)),
        noise_TV=noise.gumbel(seed, range(4, 4 + rows), size),
        centre_TV=centre_TV,
        radius_TV=torch.rand(rows, size, generator=generator),
        learned=tiny_gate(),
    )


def row(of: Evidence, t: int) -> Evidence:
    """The evidence of one position alone."""

    def only(tensor: Tensor) -> Tensor:
        return tensor[t : t + 1]

    rows = (only(of.position_T), only(of.log_q_TV), only(of.noise_TV), only(of.centre_TV), only(of.radius_TV))
    return Evidence(of.seed, *rows, of.learned)


@pytest.mark.parametrize("name", GATES)
def test_scores_are_fp32_one_per_position_and_never_nan(name: str) -> None:
    for warp in (Warp(), Warp(top_k=1), Warp(temperature=0.0), Warp(top_p=0.5)):
        scores_T = gate(name)(evidence(warp=warp))
        assert scores_T.shape == (6,)
        assert scores_T.dtype == torch.float32
        assert not scores_T.isnan().any()


@pytest.mark.parametrize("name", GATES)
def test_a_batch_scores_as_its_rows_do(name: str) -> None:
    whole = evidence()
    singles = torch.cat([gate(name)(row(whole, t)) for t in range(6)])
    torch.testing.assert_close(gate(name)(whole), singles)


@pytest.mark.parametrize("name", GATES)
def test_a_gate_changes_nothing(name: str) -> None:
    given, fresh = evidence(), evidence()
    gate(name)(given)
    for field in ("position_T", "log_q_TV", "noise_TV", "centre_TV", "radius_TV"):
        assert torch.equal(getattr(given, field), getattr(fresh, field))


def test_interval_is_the_scaled_u_of_the_midpoint_fuse() -> None:
    given = evidence()
    expected_T = uncertainty(inter_fuse(given.centre_TV, given.radius_TV, "midpoint")).scaled_u
    assert torch.equal(gate("interval")(given), expected_T)


def test_margin_is_minus_the_gap_of_the_two_best_perturbed() -> None:
    given = evidence()
    for t, score in enumerate(gate("margin")(given).tolist()):
        best, second, *_ = sorted((given.log_q_TV + given.noise_TV)[t].tolist(), reverse=True)
        assert score == pytest.approx(second - best)
        assert score <= 0


def test_margin_ignores_filtered_ids() -> None:
    """A filtered id with enormous noise neither wins nor closes the gap."""
    log_q_TV = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]])
    noise_TV = torch.tensor([[0.0, 2.0, 50.0]])
    spare = torch.zeros(1, 3)
    given = Evidence(0, torch.tensor([0]), log_q_TV, noise_TV, spare, spare)
    assert gate("margin")(given).item() == pytest.approx(-2.0)


def test_one_survivor_is_perfectly_certain() -> None:
    given = evidence(warp=Warp(top_k=1))
    assert (gate("margin")(given) == -math.inf).all()
    assert (gate("entropy")(given) == 0).all()
    assert (gate("softmax")(given) == 0).all()


def test_entropy_and_softmax_of_known_distributions() -> None:
    probs_TV = torch.tensor([[0.25] * 4, [0.5, 0.5, 0.0, 0.0], [0.7, 0.1, 0.1, 0.1]])
    spare = torch.zeros(3, 4)
    given = Evidence(0, torch.arange(3), probs_TV.log(), spare, spare, spare)
    last = -(0.7 * math.log(0.7) + 0.3 * math.log(0.1))
    torch.testing.assert_close(gate("entropy")(given), torch.tensor([math.log(4), math.log(2), last]))
    torch.testing.assert_close(gate("softmax")(given), torch.tensor([0.75, 0.5, 0.3]))


def test_random_asks_with_the_promised_share() -> None:
    """Threshold .7 asks 30 % of 10,000 positions; band 5 standard deviations (false alarm 6e-7)."""
    spare = torch.zeros(10_000, 2)
    given = Evidence(21, torch.arange(10_000), spare, spare, spare, spare)
    asked = float((gate("random")(given) > 0.7).float().mean())
    assert abs(asked - 0.3) < 5 * math.sqrt(0.21 / 10_000)


def test_random_is_keyed_by_seed_and_position() -> None:
    scores_T = gate("random")(evidence())
    assert torch.equal(scores_T, gate("random")(evidence()))
    assert len(set(scores_T.tolist())) == 6
    spare = torch.zeros(6, 50)
    other_seed = Evidence(10, torch.arange(4, 10), spare, spare, spare, spare)
    assert not torch.equal(scores_T, gate("random")(other_seed))


def test_random_does_not_reuse_the_noise_of_the_draw() -> None:
    expected = noise.uniform(9, range(4, 10), 1, noise.GATE)[:, 0]
    torch.testing.assert_close(
        gate("random")(evidence()).double(), torch.from_numpy(expected), atol=1e-7, rtol=0
    )


@pytest.mark.parametrize("threshold", [-1e30, -1.0, 0.0, 1.0, 1e30])
def test_never_and_always_keep_their_word(threshold: float) -> None:
    assert not (gate("never")(evidence()) > threshold).any()
    assert (gate("always")(evidence()) > threshold).all()


def test_an_unknown_gate_is_named() -> None:
    with pytest.raises(
        InvalidRequest, match=r"'vibes'.*interval, margin, agreement, certificate, entropy, .*never, always"
    ):
        gate("vibes")
