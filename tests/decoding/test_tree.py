"""The shape of draft trees and the walk down one: what it draws, where it stops, which law it obeys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.decoding import noise
from shared.decoding.acceptance import Judged, Judgement, coupled, greedy
from shared.decoding.tree import ancestors, check_parents, children, is_walk, unseen, walk
from shared.errors import InvalidDraft

VOCAB, END = 6, 8


def parents(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


TREES = st.integers(1, 7).flatmap(lambda size: st.tuples(*(st.integers(0, node) for node in range(size))))


@given(TREES)
def test_relations_of_a_tree_agree(shape: tuple[int, ...]) -> None:
    tree = parents(*shape)
    check_parents(tree, len(shape))
    above, below, hidden = ancestors(tree), children(tree), unseen(tree)
    for node in range(len(shape)):
        assert is_walk([*above[node], node], tree)
        assert sorted([*above[node], *hidden[node]]) == list(range(node))
    assert sorted(node for nodes in below for node in nodes) == list(range(len(shape)))
    if len(shape) > 1:
        assert not is_walk([*above[-1], len(shape) - 1, 0], tree)


@pytest.mark.parametrize("wrong", [parents(1), parents(0, 2), parents(0, -1), parents(0), parents(0, 0, 0)])
def test_what_is_no_tree_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(InvalidDraft, match=r"hangs from|parents"):
        check_parents(wrong, 2)


@settings(deadline=None)
@given(TREES, st.integers(0, 2**32), st.integers(0, END - 1))
def test_a_walk_is_plain_draws_one_after_the_other(shape: tuple[int, ...], seed: int, position: int) -> None:
    """Whatever the tree, path and token are what drawing token by token gives, as far as nodes exist."""
    generator = torch.Generator().manual_seed(seed)
    log_p = torch.randn(len(shape) + 1, VOCAB, generator=generator).log_softmax(-1)
    span_N = torch.randint(VOCAB, (len(shape),), generator=generator)
    found = walk(coupled, Judged(log_p, span_N, seed, position), parents(*shape), END)
    assert is_walk(found.path, parents(*shape)) and found.accepted == len(found.path)
    rows = [0, *(node + 1 for node in found.path)]
    drawn = [
        int((log_p[row] + noise.gumbel(seed, [position + depth], VOCAB)[0]).argmax())
        for depth, row in enumerate(rows)
        if position + depth < END
    ]
    tokens = span_N[list(found.path)].tolist()
    assert drawn == tokens + ([] if found.token is None else [found.token])
    assert (found.token is None) == (position + found.accepted == END)
    if found.token is not None:
        assert found.token not in span_N[children(parents(*shape))[rows[-1]]].tolist()


@pytest.mark.parametrize("rule", [coupled, greedy])
def test_a_chain_is_judged_as_a_span(rule) -> None:
    generator = torch.Generator().manual_seed(1)
    for seed in range(200):
        log_p = (2 * torch.randn(4, VOCAB, generator=generator)).log_softmax(-1)
        judged = Judged(log_p, torch.randint(2, (3,), generator=generator), seed, 2)
        chain, tree = rule(judged), walk(rule, judged, parents(0, 1, 2), END)
        assert (chain.accepted, chain.token) == (tree.accepted, tree.token)


def test_the_first_token_follows_p_whatever_the_tree_offers() -> None:
    """Chi-square over six tokens, 3,000 seeds; false-alarm rate 1e-6 were the seeds random."""
    p_V = torch.tensor([0.05, 0.30, 0.10, 0.25, 0.20, 0.10])
    log_p, span_N, tree = p_V.log().expand(4, -1), torch.tensor([1, 4, 0]), parents(0, 0, 1)
    counts = torch.zeros(VOCAB)
    for seed in range(3000):
        found = walk(coupled, Judged(log_p, span_N, seed, 3), tree, END)
        counts[span_N[found.path[0]] if found.path else found.token] += 1
    statistic = ((counts - 3000 * p_V) ** 2 / (3000 * p_V)).sum().double()
    tail = torch.special.gammaincc(torch.tensor(2.5).double(), statistic / 2)
    assert tail > 1e-6
    assert counts[1] > 0 and counts[5] > 0


def near(judged: Judged) -> Judgement:
    """A lenient rule: a draft stands where it is at most one beside the token drawn."""
    drawn = coupled(judged).token if not len(judged.span_K) else None
    if drawn is None:
        plain = coupled(Judged(judged.log_p_TV, judged.span_K[:0], judged.seed, judged.position)).token
        assert plain is not None
        return Judgement(int(abs(plain - int(judged.span_K[0])) <= 1), plain)
    return Judgement(0, drawn)


def test_a_lenient_walk_takes_the_token_drawn_before_what_is_near_it() -> None:
    log_p = torch.full((4, VOCAB), -50.0)
    log_p[:, 3] = 0.0  # 3 is drawn everywhere
    tree = parents(0, 0, 1)
    for span, path in (((4, 3, 3), (1,)), ((4, 0, 2), (0, 2)), ((1, 5, 3), ()), ((2, 4, 0), (0,))):
        judged = Judged(log_p, torch.tensor(span), 1, 2)
        assert walk(near, judged, tree, END, lenient=True) == Judgement(len(path), 3, path=path)
    strict = walk(near, Judged(log_p, torch.tensor((4, 0, 2)), 1, 2), tree, END)
    assert strict == Judgement(0, 3)
