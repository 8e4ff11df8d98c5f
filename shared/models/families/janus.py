"""Janus-Pro, its drawing half: a chat prompt to image tokens with a table and a head of their own.

Sources: Chen et al., "Janus-Pro" (2025), and its public code. Knows no weight files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.decoding.warp import Warp
from shared.models.families.marked import MarkedModel
from shared.models.tokenizer import check_count


@dataclass(frozen=True)
class Marks:
    """Ids of the tokens around a prompt, as the folder's tokenizer has them."""

    begin: int  # of the sentence
    pad: int  # stands for every token of the prompt in the unguided row
    image: int  # the image begins behind it


class JanusModel(MarkedModel[Marks]):
    """`gpt` has the rows of the text tokens for prompts alone; image codes never meet them.

    A prompt is [begin, a user's turn and the start of the answer, begin of image]. The unguided row has a
    pad for every token between the two; upstream does not mask them, so both rows begin at the same place.
    """

    family = "janus"
    marks_class = Marks
    warp = Warp(guidance=5.0)

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
