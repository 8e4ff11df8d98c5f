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
from shared.models.styles import OpenStyles
from shared.models.text import GLUE, Vocabulary, WordEmbedding, ids_tensor
from shared.models.transformer import Transformer


class EmojiModel(ImageModel):
    """Words -> prefix rows -> image tokens. `gpt` is the transformer, `text` the word table."""

    family = "emoji"
    warp = Warp(guidance=2.0, temperature=0.7, top_p=0.9)

    def __init__(
        self, config: TransformerConfig, words: Sequence[str], styles: OpenStyles | None = None
    ) -> None:
        super().__init__()
        self.config, self.styles = config, styles or OpenStyles()
        self.vocabulary = Vocabulary(words, config.prefix_len)
        self.text = WordEmbedding(len(words), config.caption_dim)
        self.gpt = Transformer(config)

    @classmethod
    def build(cls, config: dict[str, Any], home: Path) -> Self:
        """As ImageModel; words and styles are part of the description."""
        styles = from_dict(OpenStyles, config.get("styles", {}))
        return cls(from_dict(TransformerConfig, config["transformer"]), config["words"], styles)

    def describe(self) -> dict[str, Any]:
        """As ImageModel."""
        words = list(self.vocabulary.words)
        described = {"family": self.family, "transformer": to_dict(self.config), "words": words}
        return described | ({"styles": to_dict(self.styles)} if self.styles.known else {})

    def with_layers(self, layers: int) -> Self:
        """As ImageModel."""
        return type(self)(replace(self.config, n_layer=layers), self.vocabulary.words, self.styles)

    def check_prompt(self, prompt: str) -> None:
        """Raise InvalidPrompt as `Vocabulary.encode` does."""
        self.vocabulary.encode(prompt)

    def complete(self, prompt: str, seed: int) -> str:
        """As ImageModel: the style, where there is room for it behind something the model knows."""
        words = self.vocabulary.known(prompt)
        named = {self.vocabulary.words[index] for index in words} - GLUE
        longer = self.styles.complete(prompt, seed)
        return longer if named and len(self.vocabulary.known(longer)) <= self.vocabulary.max_words else prompt

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
