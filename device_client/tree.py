"""Grows a draft tree with the device model, as EAGLE-2 does (Li et al. 2024): expand what is likely, level by
level, then keep the likeliest nodes of all. Knows no cloud.

A node's value is the logarithm of its joint probability: that of its parent and its own, by the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from device_client.drafter import Drafter, Node, Step
from device_client.shape import Tree
from shared.messages import Tokens


@dataclass(eq=False)
class _Leaf:
    """A candidate: `parent` is its index among all candidates, -1 for the root; `column` is set once it is
    expanded, `line` holds the columns of its ancestors and its own."""

    token: int
    parent: int
    value: float
    depth: int
    line: tuple[int, ...] = ()


def grow(drafter: Drafter, step: Step, length: int, end: int, shape: Tree) -> tuple[list[Step], Tokens]:
    """A tree for the places `length` .. `end` - 1 behind a step's distribution: its nodes as drafted steps,
    and their parents as Draft.parents has them. It has no more nodes than places are left.

    Nodes come in preorder, the likelier child first, so that the likeliest path lies in the first columns.
    """
    leaves = _candidates(step.log_q_1V[0], shape, -1, _Leaf(-1, -1, 0.0, -1))
    level, used = range(len(leaves)), 0
    for _ in range(1, min(shape.depth, end - length)):
        room = min(shape.width, end - length - used)
        chosen = sorted(level, key=lambda index: -leaves[index].value)[:room]
        if not chosen:
            break
        log_q_NV = drafter.branch(length, _columns(leaves, chosen, used))
        used += len(chosen)
        before = len(leaves)
        for index, log_q_V in zip(chosen, log_q_NV, strict=True):
            leaves += _candidates(log_q_V, shape, index, leaves[index])
        level = range(before, len(leaves))
    order, parents = _preorder(leaves, min(shape.nodes, end - length))
    return [_step(step, leaves[index]) for index in order], np.array(parents, dtype=np.int32)


def _candidates(log_q_V: Tensor, shape: Tree, parent: int, above: _Leaf) -> list[_Leaf]:
    """The likeliest tokens behind a node."""
    top = log_q_V.topk(min(shape.width, len(log_q_V)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        _Leaf(token, parent, above.value + value, above.depth + 1, above.line)
        for token, value in pairs
        if math.isfinite(value)
    ]


def _columns(leaves: Sequence[_Leaf], chosen: Sequence[int], used: int) -> list[Node]:
    """Give the chosen ones their columns, behind those in use."""
    nodes = []
    for column, index in enumerate(chosen, used):
        leaf = leaves[index]
        unseen = tuple(sorted(set(range(column)) - set(leaf.line)))
        nodes.append(Node(leaf.token, leaf.depth, column, unseen))
        leaf.line = (*leaf.line, column)
    return nodes


def _preorder(leaves: Sequence[_Leaf], count: int) -> tuple[list[int], list[int]]:
    """The `count` likeliest, with their parents. A parent is never less likely than its child and comes
    before it among equals, so what is kept is a tree."""
    kept = sorted(range(len(leaves)), key=lambda index: -leaves[index].value)[:count]
    order, parents, number = list[int](), list[int](), {-1: 0}
    waiting = [index for index in kept if leaves[index].parent == -1][::-1]
    while waiting:
        index = waiting.pop()
        order.append(index)
        parents.append(number[leaves[index].parent])
        number[index] = len(order)
        waiting += [child for child in kept if leaves[child].parent == index][::-1]
    return order, parents


def _step(step: Step, leaf: _Leaf) -> Step:
    """A node as a drafted token; the gate scored the first place alone."""
    return replace(step, token=leaf.token, score=math.nan if leaf.depth else step.score)
