"""Agreement, certificate and discrete: what they read, what they prove, what they cost."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.decoding import noise
from shared.decoding.agreement import BANDS, LEARNED_SHAPES, Learned, band, scalars
from shared.decoding.gates import Evidence, gate, reads_radii, reads_seed
from shared.decoding.intervals import inter_fuse, uncertainty
from shared.errors import InvalidRequest
from tests.decoding.test_gates import evidence
from tests.tiny import tiny_gate


def test_the_eight_scalars_are_those_of_the_specification() -> None:
    given = evidence()
    for t, read in enumerate(scalars(given.log_q_TV, given.noise_TV).tolist()):
        q = given.log_q_TV[t].exp()
        noisy = given.log_q_TV[t] + given.noise_TV[t]
        first, second = noisy.argsort(descending=True)[:2].tolist()
        assert read[0] == pytest.approx(float(-(q * given.log_q_TV[t].clamp(min=-99)).sum()), abs=1e-5)
        assert read[1:4] == pytest.approx(sorted(q.tolist(), reverse=True)[:3])
        assert read[4] == pytest.approx(float(noisy[first] - noisy[second]), abs=1e-5)
        assert read[5:7] == pytest.approx([float(given.log_q_TV[t, i]) for i in (first, second)])
        assert read[7] == float(first == int(q.argmax()))


def test_scalars_are_finite_when_one_id_is_left_or_only_two_exist() -> None:
    lonely = torch.tensor([[0.0, -math.inf, -math.inf]])
    read = scalars(lonely, torch.zeros(1, 3))
    assert bool(read.isfinite().all()) and read[0, 4] == 30
    two = scalars(torch.tensor([[0.7, 0.3]]).log(), torch.tensor([[0.0, 5.0]]))
    assert two.shape == (1, 8) and two[0, 3] == 0 and two[0, 7] == 0


def test_agreement_is_the_network_of_the_scalars() -> None:
    given, learned = evidence(), tiny_gate(3)
    read_TS = scalars(given.log_q_TV, given.noise_TV)
    hidden = torch.nn.functional.gelu(torch.nn.functional.linear(read_TS, learned.w1_HS, learned.b1_H))
    expected_T = hidden @ learned.w2_H + learned.b2
    torch.testing.assert_close(gate("agreement")(replace(given, learned=learned)), expected_T)


def test_agreement_needs_its_fit() -> None:
    with pytest.raises(InvalidRequest, match=r"'agreement' was not fitted.*ciar-train gate"):
        gate("agreement")(replace(evidence(), learned=None))


@pytest.mark.parametrize("name", LEARNED_SHAPES)
def test_a_fit_of_another_shape_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name} has shape"):
        replace(tiny_gate(), **{name: torch.zeros(5)})


@given(seed=st.integers(0, 2**32), size=st.integers(2, 40), share=st.floats(0, 0.999))
def test_the_certificate_is_a_proof(seed: int, size: int, share: float) -> None:
    """Cloud logits anywhere within lambda * r of the device's never change the draw, for every lambda below
    minus the score; at the score itself some do."""
    rng = torch.Generator().manual_seed(seed % 2**31)
    log_q_1V = (2 * torch.randn(1, size, generator=rng)).log_softmax(-1)
    radius_1V = torch.rand(1, size, generator=rng) + 0.01
    noise_1V = noise.gumbel(seed, [0], size)
    learned = replace(tiny_gate(), factor_B=torch.rand(BANDS, generator=rng) + 0.5)
    known = Evidence(seed, torch.tensor([0]), log_q_1V, noise_1V, log_q_1V, radius_1V, learned)
    most = -float(gate("certificate")(known))
    assert most >= 0
    reach_1V = learned.factor_B[band(log_q_1V)] * radius_1V
    drawn = (log_q_1V + noise_1V).argmax(-1)
    for _ in range(5):
        off_1V = (2 * torch.rand(1, size, generator=rng) - 1) * reach_1V
        assert torch.equal((log_q_1V + share * most * off_1V + noise_1V).argmax(-1), drawn)
    worst_1V = reach_1V.clone()
    worst_1V[0, drawn] *= -1
    assert not torch.equal((log_q_1V + (1.001 * most + 1e-4) * worst_1V + noise_1V).argmax(-1), drawn)


def test_factors_scale_the_radii_band_by_band() -> None:
    given = evidence()
    plain = gate("certificate")(replace(given, learned=None))
    double = replace(tiny_gate(), factor_B=torch.full((BANDS,), 2.0))
    torch.testing.assert_close(gate("certificate")(replace(given, learned=double)), plain / 2)


def test_discrete_grows_with_the_radii_and_stays_inside_the_interval() -> None:
    given = evidence()
    none = replace(given, radius_TV=torch.zeros_like(given.radius_TV))
    assert float(gate("discrete")(none).abs().max()) < 1e-6
    small, large = (gate("discrete")(replace(given, radius_TV=given.radius_TV * s)) for s in (0.1, 1.0))
    assert bool((small < large).all())
    hull = gate("discrete(64)")(given)
    tight = uncertainty(inter_fuse(given.centre_TV, given.radius_TV, "tight")).scaled_u
    assert bool((gate("discrete(2)")(given) <= hull).all()) and bool((hull <= 1.5 * tight + 0.1).all())


def test_discrete_is_keyed_by_seed_and_position() -> None:
    given = evidence()
    assert torch.equal(gate("discrete")(given), gate("discrete(8)")(given))
    assert not torch.equal(gate("discrete")(given), gate("discrete")(replace(given, seed=10)))
    words = noise.uniform(9, range(4, 10), 8 * 50, noise.VECTORS)
    assert not np.array_equal(words, noise.uniform(9, range(4, 10), 8 * 50, noise.DRAW))


@pytest.mark.parametrize("name", ["discrete(1)", "discrete(65)", "discrete(0)"])
def test_a_hull_of_too_few_or_too_many_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="2 to 64"):
        gate(name)


def test_gates_say_what_they_read() -> None:
    assert [n for n in ("interval", "certificate", "discrete", "discrete(3)", "agreement", "entropy") if
            reads_radii(n)] == ["interval", "certificate", "discrete", "discrete(3)"]  # fmt: skip
    assert reads_seed("discrete(3)") and reads_seed("random") and not reads_seed("agreement")


def test_learned_holds_what_its_shapes_say() -> None:
    assert {name: tuple(getattr(tiny_gate(), name).shape) for name in LEARNED_SHAPES} == LEARNED_SHAPES
    assert isinstance(tiny_gate(), Learned)
