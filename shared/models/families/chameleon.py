"""Chameleon, and Anole, which draws with it: text and image tokens in one sequence and one table.

Sources: Chameleon Team (2024), Chern et al., "Anole" (2024), and their public code. Knows no weight files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.config import TransformerConfig, from_dict, to_dict
from shared.decoding.warp import Warp
from shared.models.family import ImageModel
from shared.models.text import check_length
from shared.models.tokenizer import FolderTokenizer, check_count
from shared.models.transformer import Transformer


@dataclass(frozen=True)
class Marks:
    """Ids of the tokens around a prompt; they differ between vocabularies, so they are part of a folder."""

    begin: int  # <s>
    turn: int  # <reserved08706>: the end of the text
    image: int  # <racm3:break>: the image begins behind it


class ChameleonModel(ImageModel):
    """`gpt` has a head of image codes alone: restricting the logits to them is exact, and cheaper.

    A prompt is [<s>, text, end of turn, begin of image]; the unguided row is [<s>, begin of image].
    """

    family = "chameleon"
    warp = Warp(guidance=3.0, temperature=0.7, top_p=0.9)

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

    def starts(self, length: int) -> tuple[int, int]:
        """As ImageModel: the unguided row has two tokens, whatever the prompt."""
        end = self.config.prefix_len
        return end - length, end - 2

    def prompt_rows(self, prompt: str) -> Tensor:
        """Prefix rows [2, n, D]; the unguided one is padded on the left with zeros that nothing attends to.

        Raises InvalidPrompt for more than P tokens, ModelUnavailable where the tokenizer is missing.
        """
        self.check_prompt(prompt)
        return self.rows(self.prompt_ids(prompt))

    def rows(self, ids: Sequence[int]) -> Tensor:
        """Prefix rows [2, n, D] of the ids of a whole prefix. Raises InvalidPrompt for more than P."""
        check_count(ids, self.config.prefix_len)
        nothing_2D = self.gpt.embed_text(torch.tensor([self.marks.begin, self.marks.image]))
        padded_ND = F.pad(nothing_2D, (0, 0, len(ids) - 2, 0))
        return torch.stack([self.gpt.embed_text(torch.tensor(list(ids))), padded_ND])

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of the whole prefix of a prompt."""
        return [self.marks.begin, *self.tokenizer.ids(prompt), self.marks.turn, self.marks.image]
