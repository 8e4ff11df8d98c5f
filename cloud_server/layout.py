"""Where the tokens of a forward go and what they may see, where that is not simply "behind what is there".

Knows nothing of sessions or models. Columns are entries of the cache, places are those of the image, both
counted from the first image token. A draft tree keeps several nodes of one place in columns of their own;
rows drawn in parallel leave columns empty. Shapes: B cache rows, T new tokens, S visible positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shared.models.kv_cache import Window, Woven


@dataclass(frozen=True, eq=False)
class Layout:
    """The image tokens that one job feeds, in the order of their columns.

    places  what they are embedded and turned by
    unseen  per token, earlier columns it must not see; None: it sees them all, and its place is its column
    """

    tokens: list[int]
    columns: Sequence[int]
    places: Sequence[int]
    unseen: Sequence[Sequence[int]] | None = None

    def woven(self, prompt: int, rows: int) -> Weave | None:
        """The same in sequence positions, behind `prompt` words that end at position `rows`."""
        if self.unseen is None:
            return None
        turns = [*range(rows - prompt, rows), *(rows + place for place in self.places)]
        hidden = [*[[]] * prompt, *([rows + column for column in columns] for columns in self.unseen)]
        return Weave(turns, hidden)


@dataclass(frozen=True, eq=False)
class Weave:
    """Of every new token of a cache row, the position it is turned by and the positions it must not see."""

    turns: Sequence[int]
    hidden: Sequence[Sequence[int]]


def weave(window: Window, weaves: Sequence[Weave | None]) -> Window:
    """The window, its rows (one entry each) restricted and turned where there is a weave.

    A row shorter than the window's repeats its last token, as its positions do.
    """
    if not any(weaves):
        return window
    turns_BT, length = window.positions_BT.clone(), window.positions_BT.shape[1]
    hidden_BTS = torch.zeros(len(weaves), length, window.last - window.first, dtype=torch.bool)
    for row, own in enumerate(weaves):
        if own is not None:
            indices = [min(index, len(own.turns) - 1) for index in range(length)]
            turns_BT[row] = torch.tensor([own.turns[index] for index in indices])
            for token, index in enumerate(indices):
                hidden_BTS[row, token, [position - window.first for position in own.hidden[index]]] = True
    return Woven.of(window, turns_BT, hidden_BTS)
