"""Forwards that golden numbers speak of, through the shipped core and cache. Knows no family.

Shapes: B prompts, N image tokens, S positions, V codebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.decoding.warp import guide
from shared.models.family import ImageModel
from shared.models.kv_cache import KVCache, cache_window, plain_window


@dataclass(frozen=True, eq=False)
class Prefix:
    """The two rows of one prompt, and where they begin."""

    rows_2ND: Tensor
    starts: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Greedy:
    """A greedy run of B prompts; raw logits of rows 0 .. B-1 are conditional, of B .. 2B-1 unguided."""

    tokens_BN: Tensor
    logits_BNV: Tensor  # those the argmax was taken of
    raw_2BNV: Tensor


def teacher_forced(model: ImageModel, prefix: Prefix, row: int, x_ND: Tensor) -> Tensor:
    """Logits [N, V] of every image place of one row, from one forward over embeddings x_ND, no cache."""
    start, end = prefix.starts[row], model.config.prefix_len
    x_SD = torch.cat([prefix.rows_2ND[row, start - end :], x_ND[:-1]])
    positions_1S = torch.arange(start, start + len(x_SD))[None]
    hidden_1SD = model.gpt(x_SD[None], plain_window(positions_1S, torch.tensor([start])))
    return model.gpt.logits(hidden_1SD[0, end - start - 1 :])


def embed_all(model: ImageModel, tokens_N: Tensor) -> Tensor:
    """Embeddings [N, D] of image tokens at their places."""
    return model.gpt.embed_tokens(tokens_N, torch.arange(len(tokens_N)))


def fill(model: ImageModel, prefixes: Sequence[Prefix], cache: KVCache) -> Tensor:
    """Feed every prefix to its two cache slots, b and B + b; the last hidden states [2B, D]."""
    end = model.config.prefix_len
    last: dict[int, Tensor] = {}
    for b, prefix in enumerate(prefixes):
        slots, first = [b, len(prefixes) + b], end - prefix.rows_2ND.shape[1]
        window = cache_window(slots, [range(first, end)] * 2, prefix.starts)
        hidden_2ND = model.gpt(prefix.rows_2ND, window, cache)
        last.update(zip(slots, hidden_2ND[:, -1], strict=True))
    return torch.stack([last[slot] for slot in sorted(last)])


def greedy(model: ImageModel, prefixes: Sequence[Prefix], scales: Sequence[float]) -> Greedy:
    """Draw the argmax at every place, guided by `scales[place]`; at scale 1 the unguided rows are not looked
    at."""
    cache = KVCache(model.config, 2 * len(prefixes))
    hidden_RD = fill(model, prefixes, cache)
    slots = list(range(2 * len(prefixes)))
    starts = [prefix.starts[row] for row in range(2) for prefix in prefixes]
    tokens, judged, raw = [], [], []
    for place, scale in enumerate(scales):
        raw.append(model.gpt.logits(hidden_RD))
        cond, uncond = raw[-1].chunk(2)
        judged.append(cond if scale == 1 else guide(cond, uncond, scale))
        tokens.append(judged[-1].argmax(-1))
        x_R1D = model.gpt.embed_tokens(tokens[-1].repeat(2)[:, None], torch.full((len(slots), 1), place))
        position = model.config.prefix_len + place
        hidden_RD = model.gpt(x_R1D, cache_window(slots, [[position]] * len(slots), starts), cache)[:, -1]
    return Greedy(torch.stack(tokens, 1), torch.stack(judged, 1), torch.stack(raw, 1))


def verified(
    model: ImageModel, prefixes: Sequence[Prefix], known_BN: Tensor, first: int, fed_BK: Tensor
) -> Tensor:
    """Logits [2B, K, V] of one cached forward over K tokens from place `first` on, behind known ones.

    Before it, wrong tokens are fed to that place and all later ones, as a rejected draft would be.
    """
    cache, end = KVCache(model.config, 2 * len(prefixes)), model.config.prefix_len
    fill(model, prefixes, cache)
    slots = list(range(2 * len(prefixes)))
    starts = [prefix.starts[row] for row in range(2) for prefix in prefixes]
    stale_BN = torch.cat([known_BN[:, :first], (known_BN[:, first:] + 1) % model.config.vocab_size], 1)
    for tokens_BT, place in ((stale_BN, 0), (fed_BK, first)):
        count = tokens_BT.shape[1]
        x_RTD = model.gpt.embed_tokens(tokens_BT.repeat(2, 1), torch.arange(place, place + count))
        window = cache_window(slots, [range(end + place, end + place + count)] * len(slots), starts)
        hidden_RTD = model.gpt(x_RTD, window, cache)
    return model.gpt.logits(hidden_RTD)
