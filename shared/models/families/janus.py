"""Janus-Pro, its drawing half: a chat prompt to image tokens with a table and a head of their own.

Sources: Chen et al., "Janus-Pro" (2025), and its public code. Knows no weight files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from shared.config import TransformerConfig, from_dict, to_dict
from shared.decoding.warp import Warp
from shared.models.family import ImageModel
from shared.models.text import check_length
from shared.models.tokenizer import FolderTokenizer, check_count
from shared.models.transformer import Transformer


@dataclass(frozen=True)
class Marks:
    """Ids of the tokens around a prompt, as the folder's tokenizer has them."""

    begin: int  # of the sentence
    pad: int  # stands for every token of the prompt in the unguided row
    image: int  # the image begins behind it


class JanusModel(ImageModel):
    """`gpt` has the rows of the text tokens for prompts alone; image codes never meet them.

    A prompt is [begin, a user's turn and the start of the answer, begin of image]. The unguided row has a
    pad for every token between the two; upstream does not mask them, so both rows begin at the same place.
    """

    family = "janus"
    warp = Warp(guidance=5.0)

    def __init__(self, config: TransformerConfig, marks: Marks, home: Path) -> None:
        super().__init__()
        self.config, self.marks, self.home = config, marks, home
        self.tokenizer = FolderTokenizer(home, self.family)
        self.gpt = Transformer(config)

    @classmethod
    def build(cls, config: dict[str, Any], home: Path) -> Self:
        """As ImageModel; the tokenizer is read from `home` when the first prompt comes."""
        shape = from_dict(TransformerConfig, config["transformer"])
        return cls(shape, from_dict(Marks, config["marks"]), home)

    def describe(self) -> dict[str, Any]:
        """As ImageModel."""
        shape, marks = to_dict(self.config), to_dict(self.marks)
        return {"family": self.family, "transformer": shape, "marks": marks}

    def with_layers(self, layers: int) -> Self:
        """As ImageModel."""
        return type(self)(replace(self.config, n_layer=layers), self.marks, self.home)

    def check_prompt(self, prompt: str) -> None:
        """Raise InvalidPrompt for an empty or overlong text."""
        check_length(prompt)

    def prompt_rows(self, prompt: str) -> Tensor:
        """Prefix rows [2, n, D].

        Raises InvalidPrompt for more than P tokens, ModelUnavailable where the tokenizer is missing.
        """
        self.check_prompt(prompt)
        return self.rows(self.prompt_ids(prompt))

    def rows(self, ids: Sequence[int]) -> Tensor:
        """Prefix rows [2, n, D] of the ids of a whole prefix. Raises InvalidPrompt for more than P."""
        check_count(ids, self.config.prefix_len)
        nothing = [ids[0], *[self.marks.pad] * (len(ids) - 2), ids[-1]]
        return self.gpt.embed_text(torch.tensor([list(ids), nothing]))

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of the whole prefix of a prompt."""
        turns = f"<|User|>: {prompt.strip()}\n\n<|Assistant|>:"
        return [self.marks.begin, *self.tokenizer.ids(turns), self.marks.image]
