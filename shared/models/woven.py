"""Windows in which not every token sees all before it, and sits where it is turned: trees, rows in parallel.

Knows no model. Shapes: B cache rows, T new tokens, S visible positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shared.models.kv_cache import Window


@dataclass(frozen=True)
class Woven(Window):
    """A window whose tokens are turned by positions other than those they are kept at."""

    turned_by_BT: Tensor | None = None

    @property
    def turns_BT(self) -> Tensor:
        """As Window."""
        assert self.turned_by_BT is not None
        return self.turned_by_BT

    @classmethod
    def of(cls, window: Window, turns_BT: Tensor, hidden_BTS: Tensor) -> Woven:
        """A window with other turns, in which a token does not look where `hidden_BTS` is True."""
        mask = torch.ones_like(hidden_BTS) if window.mask_BTS is None else window.mask_BTS
        blocked = False if mask.dtype == torch.bool else -torch.inf
        narrowed = replace(window, mask_BTS=mask.masked_fill(hidden_BTS, blocked))
        return cls(**vars(narrowed), turned_by_BT=turns_BT)


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
    shape, device = (len(weaves), length, window.last - window.first), window.positions_BT.device
    hidden_BTS = torch.zeros(shape, dtype=torch.bool, device=device)
    for row, own in enumerate(weaves):
        if own is not None:
            indices = [min(index, len(own.turns) - 1) for index in range(length)]
            turns_BT[row] = torch.tensor([own.turns[index] for index in indices], device=turns_BT.device)
            for token, index in enumerate(indices):
                hidden_BTS[row, token, [position - window.first for position in own.hidden[index]]] = True
    return Woven.of(window, turns_BT, hidden_BTS.to(turns_BT.device))
