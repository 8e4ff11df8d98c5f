"""Draft trees: their shape, and the walk that judges one (EAGLE-2's tree under the draws of SPEC section 3).

Knows nothing of models or messages. A tree of N nodes is a vector of parents: node i hangs from node
parents[i] - 1, or from the token before the tree where that is 0. Parents come before their children.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shared.decoding.acceptance import Judged, Judgement, Rule
from shared.errors import InvalidDraft

Parents = NDArray[np.int32]


def check_parents(parents_N: Parents, nodes: int) -> None:
    """Raise InvalidDraft unless these are the parents of a tree of so many nodes."""
    if parents_N.shape != (nodes,):
        raise InvalidDraft(
            f"the tree has {parents_N.shape} parents", f"allowed: ({nodes},), one per span token"
        )
    wrong = (parents_N < 0) | (parents_N > np.arange(nodes))
    if wrong.any():
        place = int(wrong.argmax())
        raise InvalidDraft(
            f"node {place} of the tree hangs from {int(parents_N[place])}", f"allowed: 0 to {place}"
        )


def ancestors(parents_N: Parents) -> list[list[int]]:
    """Of every node, the nodes above it, the root's child first; so many are its depth."""
    above: list[list[int]] = []
    for parent in parents_N.tolist():
        above.append([*above[parent - 1], parent - 1] if parent else [])
    return above


def unseen(parents_N: Parents) -> list[list[int]]:
    """Of every node, the earlier nodes that it must not see, because they are no ancestors of it."""
    return [sorted(set(range(node)) - set(seen)) for node, seen in enumerate(ancestors(parents_N))]


def children(parents_N: Parents) -> list[list[int]]:
    """The children of the token before the tree, then of every node."""
    below: list[list[int]] = [[] for _ in range(len(parents_N) + 1)]
    for node, parent in enumerate(parents_N.tolist()):
        below[parent].append(node)
    return below


def is_walk(path: Sequence[int], parents_N: Parents) -> bool:
    """Whether a path leads down the tree from its root."""
    before = [0, *(node + 1 for node in path)]
    return all(
        0 <= node < len(parents_N) and parents_N[node] == parent
        for parent, node in zip(before, path, strict=False)
    )


def walk(rule: Rule, judged: Judged, parents_N: Parents, end: int, *, lenient: bool = False) -> Judgement:
    """Draw by `rule` at the root, go down to the child that is the token drawn, and so on to the first draw
    that no child equals: it is the correction, or the bonus below a leaf; None at place `end`, that of T.

    judged.log_p_TV has N + 1 rows, that of the token before the tree first. Every draw is a plain one at its
    own place, so a tree decides as its best chain would: under `coupled`, as the base. EAGLE-2's own
    acceptance tries child after child with its probability among what is left, since children are chosen and
    not sampled: together each is taken as often as it is drawn. Law and acceptance are the same here.

    A `lenient` rule accepts more than the token drawn: where no child equals it, the first child stands that
    the rule would accept as a span of one (LANTERN on the tree). Its bound is per child, not per place.
    """
    below, span = children(parents_N), judged.span_K.tolist()
    nothing_K, path, row = judged.span_K[:0], list[int](), 0
    while (place := judged.position + len(path)) < end:
        log_p_1V = judged.log_p_TV[row : row + 1]
        here = replace(judged, log_p_TV=log_p_1V, span_K=nothing_K, position=place)
        drawn = rule(here).token
        good = [node for node in below[row] if span[node] == drawn]
        if lenient and not good:
            spans = ((node, judged.span_K[node : node + 1]) for node in below[row])
            good = [node for node, span_1 in spans if rule(replace(here, span_K=span_1)).accepted]
        if not good:
            return Judgement(len(path), drawn, path=tuple(path))
        path.append(good[0])
        row = good[0] + 1
    return Judgement(len(path), None, path=tuple(path))
