"""What a new base takes over from an older one that knows other words and draws with another tokenizer.

Blocks, norms and places fit as they are; words are found by their spelling. The codes of two tokenizers have
nothing in common but the pictures they stand for: a new code gets the mean of the old codes seen at the same
places of the same scenes. Knows nothing of steps.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from shared.errors import InvalidRequest
from shared.models.families.emoji import EmojiModel
from shared.models.vq import VQModel
from training.loading import SceneBatch, encode


def seen_together(new: VQModel, old: VQModel, batches: Iterable[SceneBatch]) -> Tensor:
    """How often each code of `new` and each of `old` stood at the same place, fp32 [K, K_old]."""
    here = torch.device("cpu")
    counts = torch.zeros(new.config.codebook_size, old.config.codebook_size)
    for batch in batches:
        ids = tuple(encode(vq, batch, here).flatten() for vq in (new, old))
        counts.index_put_(ids, torch.ones(len(ids[0])), accumulate=True)
    return counts


@torch.no_grad()
def carry_over(model: EmojiModel, older: EmojiModel, seen_KJ: Tensor) -> None:
    """Overwrite the weights of `model` with what `older` knows; what it never met stays as it is.

    Raises InvalidRequest where the two transformers differ in a shape that is not a table of codes.
    """
    tables = ("gpt.tok_embeddings.weight", "gpt.output.weight")
    values, known = dict(model.named_parameters()), older.state_dict()
    for name, value in values.items():
        if name in tables:
            met = seen_KJ.sum(1) > 0
            value[met] = (seen_KJ[met] / seen_KJ[met].sum(1, keepdim=True)) @ known[name]
        elif name == "text.table.weight":
            rows = {word: row for row, word in enumerate(older.vocabulary.words)}
            for row, word in enumerate(model.vocabulary.words):
                if word in rows:
                    value[row] = known[name][rows[word]]
        elif name not in known or known[name].shape != value.shape:
            before = tuple(known[name].shape) if name in known else "nothing"
            raise InvalidRequest(
                f"{name}: {before} cannot become {tuple(value.shape)}",
                "the two models have one shape but for words and codes",
                "choose the --preset of the older model's size",
            )
        else:
            value.copy_(known[name])
