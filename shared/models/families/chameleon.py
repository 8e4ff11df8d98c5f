"""Chameleon, and Anole, which draws with it: text and image tokens in one sequence and one table.

Sources: Chameleon Team (2024), Chern et al., "Anole" (2024), and their public code. Knows no weight files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.decoding.warp import Warp
from shared.models.families.marked import MarkedModel
from shared.models.tokenizer import check_count


@dataclass(frozen=True)
class Marks:
    """Ids of the tokens around a prompt; they differ between vocabularies, so they are part of a folder."""

    begin: int  # <s>
    turn: int  # <reserved08706>: the end of the text
    image: int  # <racm3:break>: the image begins behind it


class ChameleonModel(MarkedModel[Marks]):
    """`gpt` has a head of image codes alone: restricting the logits to them is exact, and cheaper.

    A prompt is [<s>, text, end of turn, begin of image]; the unguided row is [<s>, begin of image].
    """

    family = "chameleon"
    marks_class = Marks
    warp = Warp(guidance=3.0, temperature=0.7, top_p=0.9)

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
