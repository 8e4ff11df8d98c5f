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
    contiguous: slice | None = None  # set where the slots are neighbours: reads become views

    @property
    def turns_BT(self) -> Tensor:
        """The positions that queries and keys are rotated by."""
        return self.positions_BT


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
) -> Window:
    """A causal window over cache slots. `positions[b]` are ascending; a repeated position rewrites the same
    entry. The entry at `starts[b]` counts `weights[b]` times: it stands for a folded prefix."""
    positions_BT = torch.tensor(positions)
    first, last = min(starts), max(row[-1] for row in positions) + 1
    folded, mask = max(weights, default=1) > 1, None
    if folded or not (
        len(positions[0]) == 1 and all(row == positions[0] for row in positions) and len(set(starts)) == 1
    ):
        columns_S, queries = torch.arange(first, last), positions_BT[:, :, None]
        seen = (columns_S <= queries) & (columns_S >= torch.tensor(starts)[:, None, None])
        mask = seen | (columns_S == queries)  # a padded row sees itself, so that its softmax is not empty
    if folded and mask is not None:
        mask = _weighted(mask, torch.tensor(starts) - first, torch.tensor(weights))
    neighbours = list(slots) == list(range(slots[0], slots[0] + len(slots)))
    contiguous = slice(slots[0], slots[0] + len(slots)) if neighbours else None
    return Window(positions_BT, mask, torch.tensor(list(slots)), first, last, contiguous)


def _weighted(mask_BTS: Tensor, column_B: Tensor, weight_B: Tensor) -> Tensor:
    """What to add to the logits so that a column of each row counts n times: log n, because e^(log n) = n."""
    bias_BTS = torch.zeros(mask_BTS.shape).masked_fill(~mask_BTS, -torch.inf)
    bias_BTS[torch.arange(len(column_B)), :, column_B] += weight_B.float().log()[:, None]
    return bias_BTS


class KVCache:
    """Keys and values of `slots` sequences: two tensors [layers, slots, positions, kv heads, head_dim]."""

    def __init__(self, config: TransformerConfig, slots: int, dtype: torch.dtype = torch.float32) -> None:
        shape = (config.n_layer, slots, config.positions, config.kv_heads, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype)
        self.values = torch.zeros(shape, dtype=dtype)

    def extend(self, layer: int, window: Window, k_BTHD: Tensor, v_BTHD: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new entries at their positions and return what the window sees: two [B, S, H,
        head_dim]."""
        assert window.slots_B is not None
        return (
            self._extend(self.keys[layer], window, k_BTHD),
            self._extend(self.values[layer], window, v_BTHD),
        )

    @staticmethod
    def _extend(store: Tensor, window: Window, new_BTHD: Tensor) -> Tensor:
        assert window.slots_B is not None
        store[window.slots_B[:, None], window.positions_BT] = new_BTHD.to(store.dtype)
        if window.contiguous is not None:
            return store[window.contiguous, window.first : window.last]
        return store[window.slots_B, window.first : window.last]

    def fold(self, slot: int, start: int, end: int) -> None:
        """Let the entry at end - 1 stand for all of the prefix [start, end): its value becomes their mean.

        Exact where the keys of the prefix are zero, as under LlamaGen's rotary table: a later query gives
        each of the n entries the logit 0, so together they weigh n and add n times their mean. From then on
        the window must begin at end - 1, with weight n.
        """
        self.values[:, slot, end - 1] = self.values[:, slot, start:end].mean(1)

    def clear(self, slot: int) -> None:
        """Forget one slot, so that its next owner starts from zeros."""
        self.keys[:, slot] = 0
        self.values[:, slot] = 0
