"""The bundled family: a small LlamaGen whose captions come from a closed vocabulary of words. Knows no
files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from shared.config import TransformerConfig, from_dict, to_dict
from shared.decoding.warp import Warp
from shared.models.family import ImageModel
from shared.models.text import GLUE, Vocabulary, WordEmbedding, ids_tensor
from shared.models.transformer import Transformer
from shared.models.unsaid import Unsaid


class EmojiModel(ImageModel):
    """Words -> prefix rows -> image tokens. `gpt` is the transformer, `text` the word table."""

    family = "emoji"
    warp = Warp(guidance=2.0, temperature=0.7, top_p=0.9)

    def __init__(self, config: TransformerConfig, words: Sequence[str], unsaid: Unsaid | None = None) -> None:
        super().__init__()
        self.config, self.unsaid = config, unsaid or Unsaid()
        self.vocabulary = Vocabulary(words, config.prefix_len)
        self.text = WordEmbedding(len(words), config.caption_dim)
        self.gpt = Transformer(config)

    @classmethod
    def build(cls, config: dict[str, Any], home: Path) -> Self:
        """As ImageModel; words, and what stands for the unsaid, are part of the description."""
        unsaid = from_dict(Unsaid, config.get("unsaid", {}))
        return cls(from_dict(TransformerConfig, config["transformer"]), config["words"], unsaid)

    def describe(self) -> dict[str, Any]:
        """As ImageModel."""
        words = list(self.vocabulary.words)
        described = {"family": self.family, "transformer": to_dict(self.config), "words": words}
        return described | ({} if self.unsaid == Unsaid() else {"unsaid": to_dict(self.unsaid)})

    def with_layers(self, layers: int) -> Self:
        """As ImageModel."""
        return type(self)(replace(self.config, n_layer=layers), self.vocabulary.words, self.unsaid)

    def check_prompt(self, prompt: str) -> None:
        """Raise InvalidPrompt as `Vocabulary.encode` does."""
        self.vocabulary.encode(prompt)

    def complete(self, prompt: str, seed: int) -> str:
        """As ImageModel, as far as there is room, behind something that the model knows."""
        if not {self.vocabulary.words[index] for index in self.vocabulary.known(prompt)} - GLUE:
            return prompt
        whole = prompt.rstrip(" .,;")
        for addition in self.unsaid.additions(prompt, seed):
            if len(self.vocabulary.known(whole + addition)) <= self.vocabulary.max_words:
                whole += addition
        return whole

    def unknown_words(self, prompt: str) -> list[str]:
        """Words outside the vocabulary."""
        return self.vocabulary.unknown(prompt)

    def prompt_rows(self, prompt: str) -> Tensor:
        """Prefix embeddings [2, n, D] of a prompt: the caption's row and the unguided row, both n words long.

        Raises InvalidPrompt as `Vocabulary.encode` does.
        """
        ids = self.vocabulary.encode(prompt)
        caption_1ND = self.gpt.embed_caption(self.text(ids_tensor(ids).to(self.gpt.device)))
        return torch.cat([caption_1ND, self.gpt.embed_nothing(len(ids))[None]])
