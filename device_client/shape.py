"""The shape of draft trees, as a value. Knows nothing of models."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import InvalidRequest

MAX_NODES, MAX_WIDTH, MAX_DEPTH = 64, 16, 16


@dataclass(frozen=True)
class Tree:
    """Draft trees as EAGLE-2 grows them, instead of spans. Raises InvalidRequest on a value out of range.

    nodes  sent and judged at most: the likeliest of all that were grown, 2 .. 64
    width  branches of a node, and nodes expanded per level, 1 .. 16
    depth  levels at most: as many runs of the device model grow a tree, 1 .. 16
    """

    nodes: int = 24
    width: int = 4
    depth: int = 6

    def __post_init__(self) -> None:
        bounds = (("nodes", 2, MAX_NODES), ("width", 1, MAX_WIDTH), ("depth", 1, MAX_DEPTH))
        for name, first, last in bounds:
            if not first <= (value := getattr(self, name)) <= last:
                raise InvalidRequest(f"tree {name} {value} is not allowed", f"allowed: {first} to {last}")
