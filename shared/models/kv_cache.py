"""A static cache of keys and values with one slot per row, and the window a forward sees of it. Knows no
model.

Rollback is a smaller position: entries behind a position are invisible to it and are overwritten before they
can be seen. The storage starts at zero, so an entry that was never written cannot carry NaN into a masked
softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.config import TransformerConfig


@dataclass(frozen=True)
class Window:
    """Where the new tokens of one forward go and what they may see; built once, used by every layer.

    positions_BT  sequence positions of the new tokens (prefix rows counted)
    mask_BTS      True where a new token may look, or what is added to its logits; None where all of
                  [first, last) is visible
    slots_B       cache rows, or None for a forward without a cache
    """

    positions_BT: Tensor
    mask_BTS: Tensor | None
    slots_B: Tensor | None = None
    first: int = 0
    last: int = 0
    base: int | None = None  # the first slot, where slots are neighbours in order: reads become views

    @property
    def turns_BT(self) -> Tensor:
        """The positions that queries and keys are rotated by."""
        return self.positions_BT

    @property
    def entries(self) -> tuple[Tensor, Tensor]:
        """(slots, positions) of the new entries, to index the storage with."""
        assert self.slots_B is not None
        return self.slots_B[:, None], self.positions_BT


@dataclass(frozen=True)
class Apart(Window):
    """Windows of unequal widths in one forward: their tokens are one row [1, N], one window behind the other.

    Each window attends by itself, to what it sees alone; everything else is done to all tokens at once, and
    none is computed to fill a row up.
    """

    parts: tuple[Window, ...] = ()

    @classmethod
    def of(cls, parts: Sequence[Window]) -> Apart:
        """Positions [1, N]; `slots_B` has one slot per token."""
        entries = [part.entries for part in parts]
        slots = [slots_B1.expand_as(positions_BT).flatten() for slots_B1, positions_BT in entries]
        positions_1N = torch.cat([part.positions_BT.flatten() for part in parts])[None]
        return cls(positions_1N, None, torch.cat(slots), parts=tuple(parts))

    @property
    def turns_BT(self) -> Tensor:
        """As Window."""
        return torch.cat([part.turns_BT.flatten() for part in self.parts])[None]

    @property
    def entries(self) -> tuple[Tensor, Tensor]:
        """As Window."""
        assert self.slots_B is not None
        return self.slots_B[None], self.positions_BT



def plain_window(positions_BT: Tensor, start_B: Tensor) -> Window:
    """A causal window without a cache: tokens see earlier positions from `start_B` on, and always
    themselves."""
    queries, keys = positions_BT[:, :, None], positions_BT[:, None, :]
    mask = (keys <= queries) & (keys >= start_B[:, None, None]) | (keys == queries)
    return Window(positions_BT, mask)


def cache_window(
    slots: Sequence[int],
    positions: Sequence[Sequence[int]],
    starts: Sequence[int],
    weights: Sequence[int] = (),
    device: torch.device | str = "cpu",
) -> Window:
    """A causal window over cache slots. `positions[b]` are ascending; a repeated position rewrites the same
    entry. The entry at `starts[b]` counts `weights[b]` times: it stands for a folded prefix."""
    positions_BT = torch.tensor(positions, device=device)
    first, last = min(starts), max(row[-1] for row in positions) + 1
    folded, mask = max(weights, default=1) > 1, None
    if folded or not (
        len(positions[0]) == 1 and all(row == positions[0] for row in positions) and len(set(starts)) == 1
    ):
        starts_B = torch.tensor(list(starts), device=device)
        columns_S = torch.arange(first, last, device=device)
        log_weights_B = torch.tensor(list(weights), device=device).float().log() if folded else None
        mask = visible(positions_BT, columns_S, starts_B, log_weights_B)
    neighbours = list(slots) == list(range(slots[0], slots[0] + len(slots)))
    base = slots[0] if neighbours else None
    return Window(positions_BT, mask, torch.tensor(list(slots), device=device), first, last, base)


def visible(
    positions_BT: Tensor, columns_S: Tensor, starts_B: Tensor, log_weights_B: Tensor | None = None
) -> Tensor:
    """Where new tokens may look, [B, T, S]: at columns from `starts_B` up to themselves.

    A padded row sees itself, so that its softmax is not empty. With `log_weights_B` it is what to add to the
    logits, so that the column at a row's start counts n times: log n, because e^(log n) = n.
    """
    queries, starts = positions_BT[:, :, None], starts_B[:, None, None]
    seen = (columns_S <= queries) & (columns_S >= starts) | (columns_S == queries)
    if log_weights_B is None:
        return seen
    bias_BTS = (columns_S == starts) * log_weights_B[:, None, None]
    return bias_BTS.masked_fill(~seen, -torch.inf)


@dataclass(frozen=True, eq=False)
class LayerCache:
    """One layer's part of the storage: keys and values, both [slots, positions, kv heads, head_dim]."""

    keys: Tensor
    values: Tensor

    def extend(self, window: Window, k_BTHD: Tensor, v_BTHD: Tensor) -> None:
        """Write the new entries at their positions."""
        self.keys[window.entries] = k_BTHD.to(self.keys.dtype)
        self.values[window.entries] = v_BTHD.to(self.values.dtype)

    def seen(self, window: Window) -> tuple[Tensor, Tensor]:
        """What the window sees: two [B, S, H, head_dim]."""
        return _seen(self.keys, window), _seen(self.values, window)


def _seen(store: Tensor, window: Window) -> Tensor:
    assert window.slots_B is not None
    if window.base is not None:
        return store[window.base : window.base + len(window.positions_BT), window.first : window.last]
    return store[window.slots_B, window.first : window.last]


class KVCache:
    """Keys and values of `slots` sequences, for every layer two tensors [slots, positions, kv heads,
    head_dim]."""

    def __init__(
        self,
        config: TransformerConfig,
        slots: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (slots, config.positions, config.kv_heads, config.head_dim)
        self.layers = [
            LayerCache(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))
            for _ in range(config.n_layer)
        ]

    def fold(self, slot: int, start: int, end: int) -> None:
        """Let the entry at end - 1 stand for all of the prefix [start, end): its value becomes their mean.

        Exact where the keys of the prefix are zero, as under LlamaGen's rotary table: a later query gives
        each of the n entries the logit 0, so together they weigh n and add n times their mean. From then on
        the window must begin at end - 1, with weight n.
        """
        for layer in self.layers:
            layer.values[slot, end - 1] = layer.values[slot, start:end].mean(0)

    def clear(self, slot: int) -> None:
        """Forget one slot, so that its next owner starts from zeros."""
        for layer in self.layers:
            layer.keys[slot] = 0
            layer.values[slot] = 0
