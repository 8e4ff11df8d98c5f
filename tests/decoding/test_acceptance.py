"""The acceptance rules: their laws on six tokens, their bounds, equality with the base, hostile proposals."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.decoding import noise
from shared.decoding.acceptance import (
    RULES,
    Judged,
    Judgement,
    coupled,
    rule,
    sample_sparse,
    sparse_q,
    sparsify,
)
from shared.decoding.warp import Warp, warp_logits
from shared.errors import InvalidDraft, InvalidRequest

P_V = torch.tensor([0.05, 0.30, 0.10, 0.25, 0.20, 0.10])
Q_V = torch.tensor([0.40, 0.05, 0.20, 0.05, 0.10, 0.20])
TRIALS = 4000


def p_value(counts: Tensor, expected: Tensor) -> float:
    """Upper tail of Pearson's chi-square with one degree of freedom less than there are cells."""
    statistic = ((counts - expected) ** 2 / expected).sum().double()
    return float(torch.special.gammaincc(torch.tensor((counts.numel() - 1) / 2).double(), statistic / 2))


def draw(log_p_V: Tensor, seed: int, position: int) -> int:
    """The base's draw, spelled out: argmax(log p + g)."""
    return int((log_p_V + noise.gumbel(seed, [position], len(log_p_V))[0]).argmax())


def judge_one(name: str, p_V: Tensor, q_V: Tensor, seed: int, keep: int = 6) -> Judgement:
    """Draft one token from q as the device would, and judge it with a bonus row of the same p."""
    log_p_TV = p_V.log().expand(2, -1)
    if name != "rejection":
        return rule(name)(Judged(log_p_TV, torch.tensor([draw(q_V.log(), seed, 3)]), seed, 3))
    ids_J, probs_J = sparsify(q_V.log(), keep)
    span_K = torch.tensor([sample_sparse(ids_J, probs_J, noise.gumbel(seed, [3], len(q_V))[0])])
    ids_KJ, probs_KJ = torch.from_numpy(ids_J).long()[None], torch.from_numpy(probs_J).float()[None]
    return rule(name)(Judged(log_p_TV, span_K, seed, 3, ids_KJ, probs_KJ))


def emitted(name: str, p_V: Tensor, q_V: Tensor, seed: int, keep: int = 6) -> tuple[int, bool]:
    """The token that ends up at the drafted position, and whether it was the draft's."""
    verdict = judge_one(name, p_V, q_V, seed, keep)
    if verdict.accepted == 0:
        assert verdict.token is not None
        return verdict.token, False
    ids_J, probs_J = sparsify(q_V.log(), keep)
    g_V = noise.gumbel(seed, [3], len(q_V))[0]
    return (sample_sparse(ids_J, probs_J, g_V) if name == "rejection" else draw(q_V.log(), seed, 3)), True


@cache
def outcomes(name: str, keep: int) -> list[tuple[int, bool]]:
    """`emitted` for p and q above and the seeds 0 .. TRIALS - 1; several laws read the same trials."""
    return [emitted(name, P_V, Q_V, seed, keep) for seed in range(TRIALS)]


@pytest.mark.parametrize(("name", "keep"), [("coupled", 6), ("rejection", 6), ("rejection", 3)])
def test_the_emitted_token_follows_p(name: str, keep: int) -> None:
    """Chi-square over six tokens, 4,000 draws, q far from p; false-alarm rate 1e-6 were the seeds random."""
    tokens = [token for token, _ in outcomes(name, keep)]
    assert p_value(torch.bincount(torch.tensor(tokens), minlength=6), TRIALS * P_V) > 1e-6


@pytest.mark.parametrize("name", ["coupled", "rejection"])
def test_the_test_itself_notices_a_wrong_law(name: str) -> None:
    tokens = [token for token, _ in outcomes(name, 6)[:500]]
    assert p_value(torch.bincount(torch.tensor(tokens), minlength=6), 500 * Q_V) < 1e-6


@pytest.mark.parametrize("name", ["coupled", "rejection"])
def test_the_bonus_follows_p(name: str) -> None:
    """Chi-square of the bonus after an accepted draft (p = q, so all are); false-alarm rate 1e-6."""
    verdicts = [judge_one(name, P_V, P_V, seed) for seed in range(TRIALS)]
    tokens = torch.tensor([verdict.token for verdict in verdicts if verdict.accepted == 1])
    assert len(tokens) > 0.99 * TRIALS  # fp16 rounding of the proposal rejects about one in a thousand
    assert p_value(torch.bincount(tokens, minlength=6), len(tokens) * P_V) > 1e-6


TRANSITION_VV = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.3, 0.4, 0.3]])
DRIFTED_VV = torch.tensor([[0.2, 0.4, 0.4], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])


def two_tokens(name: str, seed: int) -> tuple[int, int]:
    """Positions 0 and 1 of a two-token Markov image, by as many rounds of span 2 (then 1) as it takes."""
    image = [0]  # the start state, not a token
    while len(image) < 3:
        place, span, proposals = len(image) - 1, list[int](), []
        while place + len(span) < 2:
            log_q_V = DRIFTED_VV[[*image, *span][-1]].log()
            ids_J, probs_J = sparsify(log_q_V, 2)
            g_V = noise.gumbel(seed, [place + len(span)], 3)[0]
            span.append(sample_sparse(ids_J, probs_J, g_V))
            proposals.append((torch.from_numpy(ids_J).long(), torch.from_numpy(probs_J).float()))
        log_p_TV = TRANSITION_VV[[image[-1], *span[:-1]]].log()
        ids, probs = (torch.stack(column) for column in zip(*proposals, strict=True))
        verdict = rule(name)(Judged(log_p_TV, torch.tensor(span), seed, place, ids, probs))
        image += span[: verdict.accepted] + ([] if verdict.token is None else [verdict.token])
    return image[1], image[2]


@pytest.mark.parametrize("name", ["coupled", "rejection"])
def test_pairs_follow_the_joint_law_across_rounds(name: str) -> None:
    """Chi-square over nine pairs, 2,000 images, rate 1e-6; redrafting with the same noise adds no bias."""
    pairs = torch.tensor(
        [3 * first + second for first, second in map(lambda s: two_tokens(name, s), range(2000))]
    )
    joint = (TRANSITION_VV[0][:, None] * TRANSITION_VV).reshape(-1)
    assert p_value(torch.bincount(pairs, minlength=9), 2000 * joint) > 1e-6


def total_variation(p_V: Tensor, q_V: Tensor) -> float:
    return float((p_V - q_V).abs().sum() / 2)


def accepted_share(name: str, keep: int = 6) -> float:
    return sum(accepted for _, accepted in outcomes(name, keep)) / TRIALS


def test_coupled_accepts_at_least_its_bound() -> None:
    """(1 - TV) / (1 + TV), less four standard deviations; and sharing the noise beats independent draws."""
    tv = total_variation(P_V, Q_V)
    bound, share = (1 - tv) / (1 + tv), accepted_share("coupled")
    assert share >= bound - 4 * math.sqrt(bound * (1 - bound) / TRIALS)
    assert share > float((P_V * Q_V).sum()) + 0.1
    assert share < 1 - tv + 4 * math.sqrt(tv * (1 - tv) / TRIALS)  # no coupling can do better


@pytest.mark.parametrize("keep", [3, 6])
def test_rejection_accepts_one_minus_the_total_variation(keep: int) -> None:
    """Of p and the *rounded sparse* q, within four standard deviations (false alarm 6e-5)."""
    ids_J, probs_J = sparsify(Q_V.log(), keep)
    rounded_V = torch.zeros(6).scatter(0, torch.from_numpy(ids_J).long(), sparse_q(torch.from_numpy(probs_J)))
    expected = 1 - total_variation(P_V, rounded_V)
    band = 4 * math.sqrt(expected * (1 - expected) / TRIALS)
    assert accepted_share("rejection", keep) == pytest.approx(expected, abs=band)


HALVES = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.5, 0.5])


@pytest.mark.parametrize("name", RULES)
def test_equal_distributions_always_accept(name: str) -> None:
    p_V = HALVES[0] if name != "greedy" else torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert all(judge_one(name, p_V, p_V, seed, keep=4).accepted == 1 for seed in range(200))


@pytest.mark.parametrize("name", RULES)
def test_disjoint_distributions_never_accept(name: str) -> None:
    for seed in range(200):
        verdict = judge_one(name, *HALVES, seed, keep=2)
        assert verdict.accepted == 0
        assert verdict.token in (0, 1)


@pytest.mark.parametrize("name", RULES)
def test_different_distributions_sometimes_accept(name: str) -> None:
    assert 0 < sum(judge_one(name, P_V, Q_V, seed).accepted for seed in range(200)) < 200


def base_image(model: Callable[[list[int]], Tensor], length: int, seed: int) -> list[int]:
    """Cloud-only decoding: one empty span per position."""
    image: list[int] = []
    while len(image) < length:
        verdict = coupled(Judged(model(image)[None], torch.zeros(0, dtype=torch.int64), seed, len(image)))
        assert verdict.accepted == 0
        assert verdict.token == draw(model(image), seed, len(image))
        image.append(verdict.token)
    return image


def chain(seed: int, size: int) -> Callable[[list[int]], Tensor]:
    """A small model whose distribution depends on place and previous token, some ids filtered."""
    table = 2 * torch.randn(size + 1, size, generator=torch.Generator().manual_seed(seed))
    log_p_VV = warp_logits(table, Warp(top_k=max(2, size - 2)))
    return lambda image: log_p_VV[image[-1] if image else size].roll(len(image))


@settings(max_examples=60)
@given(
    data=st.data(),
    seed=st.integers(0, noise.SEED_LIMIT - 1),
    size=st.integers(2, 9),
    length=st.integers(1, 14),
)
def test_coupled_yields_the_base_image_for_any_drafts_and_spans(
    data: st.DataObject, seed: int, size: int, length: int
) -> None:
    model = chain(size, size)
    base = base_image(model, length, seed)
    image: list[int] = []
    while len(image) < length:
        span_length = data.draw(st.integers(0, min(5, length - len(image))))
        tokens = st.lists(st.integers(0, size - 1), min_size=span_length, max_size=span_length)
        right = data.draw(st.integers(0, span_length))  # so many leading tokens are guessed correctly
        span = base[len(image) : len(image) + right] + data.draw(tokens)[right:]
        rows = span_length + (len(image) + span_length < length)
        log_p_TV = torch.stack([model(image + span[:place]) for place in range(rows)])
        verdict = coupled(Judged(log_p_TV, torch.tensor(span, dtype=torch.int64), seed, len(image)))
        assert verdict.accepted >= right
        assert (verdict.token is None) == (verdict.accepted == rows)
        image += span[: verdict.accepted] + ([] if verdict.token is None else [verdict.token])
    assert image == base


@pytest.mark.parametrize("name", RULES)
def test_an_empty_span_is_one_plain_draw(name: str) -> None:
    verdict = rule(name)(Judged(P_V.log()[None], torch.zeros(0, dtype=torch.int64), 5, 7))
    expected = int(P_V.argmax()) if name == "greedy" else draw(P_V.log(), 5, 7)
    assert verdict == Judgement(0, expected)


@pytest.mark.parametrize("name", RULES)
def test_a_span_that_ends_the_image_has_no_bonus(name: str) -> None:
    sure_V = torch.tensor([0.0, 1.0, 0.0])
    proposal = torch.tensor([[1], [1]]), torch.ones(2, 1)
    judged = Judged(sure_V.log().expand(2, -1), torch.tensor([1, 1]), 0, 254, *proposal)
    assert rule(name)(judged) == Judgement(2, None)
    with_bonus = Judged(sure_V.log().expand(3, -1), torch.tensor([1, 1]), 0, 254, *proposal)
    assert rule(name)(with_bonus) == Judgement(2, 1)


def test_greedy_ignores_the_seed() -> None:
    log_p_TV = torch.randn(4, 20, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    best = log_p_TV.argmax(-1)
    for seed in range(5):
        assert rule("greedy")(Judged(log_p_TV, best[:3], seed, 0)) == Judgement(3, int(best[3]))
        wrong = torch.stack((best[0], (best[1] + 1) % 20, best[2]))
        assert rule("greedy")(Judged(log_p_TV, wrong, seed, 0)) == Judgement(
            1, int(best[1]), (int(best[2]), int(best[3]))
        )


def test_a_token_after_the_first_rejection_never_counts() -> None:
    log_p_TV = torch.eye(4).log()
    assert rule("greedy")(Judged(log_p_TV, torch.tensor([0, 3, 2]), 0, 0)) == Judgement(1, 1, (2, 3))


def test_an_empty_residual_falls_back_to_p() -> None:
    """Rounding can leave p <= q everywhere: a rejected draft is then replaced by a draw from p."""
    ids_KJ, probs_KJ = torch.tensor([[2, 0, 1]]), torch.tensor([[1e-4, 0.5, 0.5]])
    q_0, q_1 = sparse_q(probs_KJ)[0, 1:].tolist()
    covered_TV = torch.tensor([[q_0, q_1, 0.0]]).log()
    seeds = range(300)
    verdicts = [
        rule("rejection")(Judged(covered_TV, torch.tensor([2]), s, 0, ids_KJ, probs_KJ)) for s in seeds
    ]
    assert {verdict.accepted for verdict in verdicts} == {0}
    assert {verdict.token for verdict in verdicts} == {0, 1}


@given(seed=st.integers(0, 2**31), size=st.integers(2, 300), keep=st.integers(1, 300))
def test_a_sparse_proposal_keeps_the_likeliest_ids(seed: int, size: int, keep: int) -> None:
    log_q_V = (5 * torch.randn(size, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)
    ids_J, probs_J = sparsify(log_q_V, keep)
    assert ids_J.dtype == np.int32
    assert probs_J.dtype == np.float16
    assert len(ids_J) == len(probs_J) == min(keep, size) == len(set(ids_J.tolist()))
    kept = log_q_V[ids_J.astype(np.int64)]
    assert kept.min() >= log_q_V.sort(descending=True).values[len(ids_J) - 1]
    torch.testing.assert_close(sparse_q(torch.from_numpy(probs_J)), kept.softmax(-1), atol=1e-3, rtol=1e-3)
    drawn = sample_sparse(ids_J, probs_J, noise.gumbel(seed, [0], size)[0])
    assert probs_J[ids_J.tolist().index(drawn)] > 0


def test_filtered_ids_are_never_sampled() -> None:
    log_q_V = torch.tensor([-math.inf, 0.5, 0.5, -math.inf]).log_softmax(-1)
    ids_J, probs_J = sparsify(log_q_V, 4)
    drawn = {sample_sparse(ids_J, probs_J, noise.gumbel(seed, [0], 4)[0]) for seed in range(100)}
    assert drawn == {1, 2}


GOOD = {"ids": [[0, 1]], "probs": [[0.5, 0.5]], "span": [1]}
HOSTILE = {
    "missing": {"ids": None},
    "probabilities missing": {"probs": None},
    "too few rows": {"ids": [[0, 1]], "probs": [[0.5, 0.5]], "span": [1, 1]},
    "shapes differ": {"probs": [[1.0]]},
    "id too large": {"ids": [[1, 6]]},
    "id negative": {"ids": [[1, -1]]},
    "token too large": {"span": [6]},
    "token negative": {"span": [-1]},
    "token not in its proposal": {"span": [4]},
    "token with probability 0": {"probs": [[1.0, 0.0]]},
    "nan": {"probs": [[0.5, math.nan]]},
    "infinite": {"probs": [[math.inf, 0.5]]},
    "negative": {"probs": [[-0.5, 0.5]]},
    "all zero": {"probs": [[0.0, 0.0]]},
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_proposals_are_refused(fault: str) -> None:
    parts = {**GOOD, **HOSTILE[fault]}
    ids, probs = (None if parts[name] is None else torch.tensor(parts[name]) for name in ("ids", "probs"))
    span_K = torch.tensor(parts["span"])
    log_p_TV = P_V.log().expand(len(span_K) + 1, -1)
    with pytest.raises(InvalidDraft):
        rule("rejection")(Judged(log_p_TV, span_K, 0, 0, ids, probs))


@pytest.mark.parametrize(("rows", "span"), [(0, 0), (2, 0), (1, 2), (4, 2)])
def test_rows_that_do_not_fit_the_span_are_refused(rows: int, span: int) -> None:
    with pytest.raises(InvalidDraft, match=f"{rows} rows cannot judge a span of {span}"):
        Judged(torch.zeros(rows, 5), torch.zeros(span, dtype=torch.int64), 0, 0)


def test_foreign_tokens_are_merely_rejected_by_coupled() -> None:
    verdict = coupled(Judged(P_V.log().expand(2, -1), torch.tensor([10**9]), 0, 0))
    assert verdict == Judgement(0, draw(P_V.log(), 0, 0), (draw(P_V.log(), 0, 1),))


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"'trust'.*coupled, rejection, greedy"):
        rule("trust")
