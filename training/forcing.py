"""Teacher forcing: what a model thinks of every place of known images, in one forward. Knows no losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.models.families.emoji import EmojiModel
from shared.models.family import ImageModel
from shared.models.kv_cache import plain_window


def caption_rows(model: EmojiModel, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Prefix rows [B, n, D] aligned to the right, and the first valid position of each row [B].

    An empty caption becomes the unguided prefix, as long as its neighbour's caption: guidance compares equal
    lengths.
    """
    ids = [model.vocabulary.known(text) for text in captions]
    lengths = [len(row) or max(len(ids[index - 1]), 1) for index, row in enumerate(ids)]
    longest = max(lengths)
    rows = []
    for row, length in zip(ids, lengths, strict=True):
        nothing = model.gpt.no_caption(length)
        features = model.text(torch.tensor(row)) if row else nothing
        rows.append(F.pad(features, (0, 0, longest - length, 0)))
    starts = model.config.prefix_len - torch.tensor(lengths)
    return model.gpt.embed_caption(torch.stack(rows)), starts


def teacher_forced_hidden(
    model: ImageModel, prefix_BND: Tensor, starts_B: Tensor, inputs_BT: Tensor
) -> Tensor:
    """Hidden states [B, T, D] that judge image tokens 0 .. T-1, given them as inputs (the last one
    unused)."""
    places = torch.arange(inputs_BT.shape[1] - 1).expand(len(inputs_BT), -1)
    x_BTD = model.gpt.embed_tokens(inputs_BT[:, :-1], places)
    return embedded_hidden(model, prefix_BND, starts_B, x_BTD)


def embedded_hidden(model: ImageModel, prefix_BND: Tensor, starts_B: Tensor, x_BTD: Tensor) -> Tensor:
    """Hidden states [B, T + 1, D] that judge every place of images of which T tokens are already embedded."""
    length, count = prefix_BND.shape[1], x_BTD.shape[1]
    first = model.config.prefix_len - length
    positions = torch.arange(first, model.config.prefix_len + count).expand(len(x_BTD), -1)
    x = torch.cat([prefix_BND, x_BTD.to(prefix_BND.dtype)], dim=1)
    hidden_BTD: Tensor = model.gpt(x, plain_window(positions, starts_B))
    return hidden_BTD[:, length - 1 :]


def guidance_rows(model: EmojiModel, captions: Sequence[str], rows: int) -> tuple[Tensor, Tensor]:
    """As `caption_rows`; with 2 `rows` the unguided prefixes follow: [2B, n, D], [2B]."""
    prefix_BND, starts_B = caption_rows(model, captions)
    if rows == 1:
        return prefix_BND, starts_B
    nothing_BND = model.gpt.embed_nothing(prefix_BND.shape[1]).expand_as(prefix_BND)
    return torch.cat([prefix_BND, nothing_BND.to(prefix_BND.dtype)]), starts_B.repeat(2)


def prompt_weights(model: EmojiModel) -> Tensor:
    """Zero, with a gradient into what a batch may leave unused: sharded processes reduce the same
    parameters in every step, whatever their captions."""
    return 0 * (model.gpt.no_caption(1).sum() + sum(value.sum() for value in model.text.parameters()))
