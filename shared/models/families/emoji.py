"""The bundled family: a small LlamaGen whose captions come from a closed vocabulary of words. Knows no
files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.config import TransformerConfig
from shared.models.text import Vocabulary, WordEmbedding, ids_tensor
from shared.models.transformer import Transformer


class EmojiModel(nn.Module):
    """Words -> prefix rows -> image tokens. `gpt` is the transformer, `text` the word table."""

    def __init__(self, config: TransformerConfig, words: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = Vocabulary(words, config.prefix_len)
        self.text = WordEmbedding(len(words), config.caption_dim)
        self.gpt = Transformer(config)

    def prompt_rows(self, prompt: str) -> Tensor:
        """Prefix embeddings [2, n, D] of a prompt: the caption's row and the unguided row, both n words long.

        Raises InvalidPrompt as `Vocabulary.encode` does.
        """
        ids = self.vocabulary.encode(prompt)
        caption_1ND = self.gpt.embed_caption(self.text(ids_tensor(ids)))
        return torch.cat([caption_1ND, self.gpt.embed_nothing(len(ids))[None]])
