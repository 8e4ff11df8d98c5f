"""The relaxed rule: its law stays within delta of the cloud's, whatever was drafted; its two bounds bite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.decoding import noise
from shared.decoding.acceptance import (
    MOST_NEIGHBOURS,
    Judged,
    Judgement,
    Relaxation,
    coupled,
    nearest_neighbours,
    relaxed,
)
from shared.errors import InvalidDraft, InvalidRequest

TRIALS = 1500
LINE = torch.arange(6.0)[:, None]  # six codes on a line: nearest are neighbours
NEAR = nearest_neighbours(LINE)
P_V = torch.tensor([0.05, 0.30, 0.10, 0.25, 0.20, 0.10])
Q_V = torch.tensor([0.40, 0.05, 0.20, 0.05, 0.10, 0.20])


def emitted(p_V: Tensor, q_V: Tensor, bounds: Relaxation) -> tuple[Tensor, float]:
    """The law of the token at a drafted place over TRIALS seeds, and how often it is not the cloud's draw."""
    g_NV = torch.cat([noise.gumbel(seed, [0], len(p_V)) for seed in range(TRIALS)])
    drafts, draws = ((law_V.log() + g_NV).argmax(-1) for law_V in (q_V, p_V))
    tokens = []
    for seed, draft in enumerate(drafts):
        judged = Judged(p_V.log().expand(2, -1), draft[None], seed, 0, None, None, NEAR, bounds)
        verdict = relaxed(judged)
        tokens.append(int(draft) if verdict.accepted else verdict.token)
    found = torch.tensor(tokens)
    return torch.bincount(found, minlength=6) / TRIALS, float((found != draws).float().mean())


@pytest.mark.parametrize("delta", [0.0, 0.3])
@pytest.mark.parametrize("q_V", [Q_V, torch.full((6,), 1 / 6)])
def test_the_law_is_within_delta_of_p(delta: float, q_V: Tensor) -> None:
    """1,500 seeds; the expected error of six shares adds up to 0.02 at most, 0.05 is five deviations."""
    law_V, changed = emitted(P_V, q_V, Relaxation(5, delta))
    assert float((law_V - P_V).abs().sum() / 2) <= delta + 0.05
    assert changed <= delta + 3 * math.sqrt(delta / TRIALS)  # the stronger statement the bound is proved by
    assert delta > 0 or changed == 0


def test_without_a_bound_it_does_stray() -> None:
    """The tests above can fail: with delta 1 the law is far from p, and far more drafts stand."""
    law_V, changed = emitted(P_V, Q_V, Relaxation(5, 1.0))
    assert float((law_V - P_V).abs().sum() / 2) > 0.3 and changed > 0.3


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), delta=st.floats(0, 1), size=st.integers(2, 40), span=st.integers(0, 6))
def test_no_delta_is_coupled_and_more_delta_accepts_no_less(
    seed: int, delta: float, size: int, span: int
) -> None:
    rng = torch.Generator().manual_seed(seed % 2**31)
    log_p_TV = (2 * torch.randn(span + 1, size, generator=rng)).log_softmax(-1)
    span_K = torch.randint(size, (span,), generator=rng)
    near_VN = nearest_neighbours(torch.randn(size, 3, generator=rng))

    def judge(bounds: Relaxation) -> Judgement:
        return relaxed(Judged(log_p_TV, span_K, seed, 5, None, None, near_VN, bounds))

    plain = coupled(Judged(log_p_TV, span_K, seed, 5))
    assert judge(Relaxation(4, 0.0)) == plain
    loose, some = judge(Relaxation(4, 1.0)), judge(Relaxation(4, delta))
    assert plain.accepted <= some.accepted <= loose.accepted
    assert judge(Relaxation(4, 1.0, 1.0)) == plain  # lambda 1 adds nothing either


def drafted(draft: int, bounds: Relaxation, drawn: int) -> int:
    """Accepted tokens of a span of one, with a seed under which the cloud draws `drawn`."""
    seed = next(s for s in range(500) if int((P_V.log() + noise.gumbel(s, [0], 6)[0]).argmax()) == drawn)
    return relaxed(
        Judged(P_V.log().expand(2, -1), torch.tensor([draft]), seed, 0, None, None, NEAR, bounds)
    ).accepted


def test_neighbours_count_nearest_first() -> None:
    """Draft 0 (p = .05), the cloud drew 2: between them lies 1 (.3), so their mass is .4."""
    least = 2 * 0.4 / 0.95
    assert drafted(0, Relaxation(5, least + 0.01), 2) == 1
    assert drafted(0, Relaxation(5, least - 0.01), 2) == 0
    assert drafted(0, Relaxation(1, 1.0), 2) == 0 and drafted(0, Relaxation(1, 1.0), 1) == 1
    assert drafted(0, Relaxation(5, 1.0, 9.1), 2) == 1  # .4 <= 8.1 * .05
    assert drafted(0, Relaxation(5, 1.0, 8.9), 2) == 0


@given(seed=st.integers(0, 2**31), size=st.integers(2, 60))
def test_neighbours_are_the_nearest_other_codes(seed: int, size: int) -> None:
    codes = torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))
    near_VN = nearest_neighbours(codes)
    assert near_VN.dtype == torch.int32 and near_VN.shape == (size, size - 1)
    distance = torch.cdist(codes, codes).numpy()
    for code, row in enumerate(near_VN.tolist()):
        assert code not in row and len(set(row)) == size - 1
        assert (np.diff(distance[code, row]) >= -1e-5).all()


def test_neighbour_tables_are_cut_at_a_thousand() -> None:
    codes = torch.randn(1300, 4, generator=torch.Generator().manual_seed(0))
    near_VN = nearest_neighbours(codes)
    assert near_VN.shape == (1300, MOST_NEIGHBOURS)
    whole = torch.cdist(codes[700:701], codes)[0].argsort()
    assert set(near_VN[700, :990].tolist()) <= set(whole[: MOST_NEIGHBOURS + 1].tolist())


@pytest.mark.parametrize(
    ("k", "delta", "multiple", "named"),
    [
        (0, 0.1, 0.0, "k 0"),
        (1001, 0.1, 0.0, "k 1001 .* 1 to 1000"),
        (5, -0.1, 0.0, "delta -0.1"),
        (5, 1.1, 0.0, "delta 1.1 .* 0 to 1"),
        (5, math.nan, 0.0, "delta nan"),
        (5, 0.1, 0.5, "lambda 0.5"),
        (5, 0.1, math.nan, "lambda nan"),
    ],
)
def test_impossible_bounds_are_named(k: int, delta: float, multiple: float, named: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        Relaxation(k, delta, multiple)
    assert refusal.match("(?s)relax " + named)


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="codebook"):
        relaxed(Judged(P_V.log().expand(2, -1), torch.tensor([0]), 0, 0))
    with pytest.raises(InvalidDraft, match="token ids 6"):
        relaxed(
            Judged(P_V.log().expand(2, -1), torch.tensor([6]), 0, 0, None, None, NEAR, Relaxation(2, 0.1))
        )
