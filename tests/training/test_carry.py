"""A base that grows from one of other words and codes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shared.errors import InvalidRequest
from shared.models.families.emoji import EmojiModel
from training.base import initialise
from training.carry import carry_over
from training.presets import preset


def fresh(words: list[str], seed: int, layers: int = 2) -> EmojiModel:
    torch.manual_seed(seed)
    model = EmojiModel(replace(preset("tiny").model, n_layer=layers), words)
    initialise(model)
    return model


def test_words_are_found_by_spelling_and_codes_by_where_they_stood() -> None:
    older, model = fresh(["", "cat", "dog"], 1), fresh(["", "ant", "cat"], 2)
    untouched = model.text.table.weight[1].clone(), model.gpt.output.weight[2].clone()
    seen = torch.zeros(64, 64)
    seen[0, 5], seen[1, 6], seen[1, 7] = 4, 1, 3
    carry_over(model, older, seen)
    codes, old_codes = model.gpt.tok_embeddings.weight, older.gpt.tok_embeddings.weight
    torch.testing.assert_close(codes[0], old_codes[5])
    torch.testing.assert_close(codes[1], old_codes[6] / 4 + old_codes[7] * 3 / 4)
    assert torch.equal(model.text.table.weight[2], older.text.table.weight[1])
    assert torch.equal(model.text.table.weight[1], untouched[0])
    assert torch.equal(model.gpt.output.weight[2], untouched[1])
    assert torch.equal(model.gpt.layers[1].attention.wo.weight, older.gpt.layers[1].attention.wo.weight)


def test_another_shape_is_refused_by_the_name_of_the_weight() -> None:
    with pytest.raises(InvalidRequest, match=r"gpt.layers.1.*nothing cannot become.*--preset"):
        carry_over(fresh(["", "cat"], 1), fresh(["", "cat"], 2, layers=1), torch.zeros(64, 64))
