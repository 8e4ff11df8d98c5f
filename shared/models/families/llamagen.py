"""LlamaGen: captions (t2i) or classes (c2i) to image tokens, in upstream's layout and names.

Source: Sun et al., "Autoregressive Model Beats Diffusion" (2024), and its public code. Knows no files.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from shared.config import TransformerConfig, from_dict, to_dict
from shared.decoding.warp import Warp
from shared.errors import InvalidPrompt
from shared.models.family import ImageModel
from shared.models.t5 import T5Captions
from shared.models.text import check_length
from shared.models.transformer import Transformer

# Heads of the published sizes, by width: B, L, XL, XXL, 1B, XXXL, 3B, 7B.
HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}
T5_FOLDER = "t5"


class LlamaGenModel(ImageModel):
    """`gpt` is upstream's GPT; `captions` turns a prompt into T5 features [n, C] and is not saved with it."""

    family = "llamagen"

    def __init__(self, config: TransformerConfig, home: Path) -> None:
        super().__init__()
        self.config, self.home = config, home
        self.warp = Warp(4.0, top_k=2000) if config.classes else Warp(7.5, top_k=1000)
        self.captions = T5Captions(home / T5_FOLDER, config.prefix_len)
        self.gpt = Transformer(config)

    @classmethod
    def build(cls, config: dict[str, Any], home: Path) -> Self:
        """As ImageModel; T5 is looked for in `home`/t5 when the first caption comes."""
        return cls(from_dict(TransformerConfig, config["transformer"]), home)

    def describe(self) -> dict[str, Any]:
        """As ImageModel."""
        return {"family": self.family, "transformer": to_dict(self.config)}

    def with_layers(self, layers: int) -> Self:
        """As ImageModel."""
        return type(self)(replace(self.config, n_layer=layers), self.home)

    def check_prompt(self, prompt: str) -> None:
        """Raise InvalidPrompt for an empty or overlong caption, or for what is no class."""
        if self.config.classes:
            self._class(prompt)
        else:
            check_length(prompt)

    def prompt_rows(self, prompt: str) -> Tensor:
        """Prefix rows [2, n, D]: n caption tokens, or one class.

        The unguided row is the last n rows of `uncond_embedding`: upstream masks it like the caption.
        Raises InvalidPrompt as `check_prompt` does, ModelUnavailable where T5 is missing.
        """
        self.check_prompt(prompt)
        if self.config.classes:
            return self.gpt.embed_class(torch.tensor([self._class(prompt), self.config.classes]))
        features_NC = self.captions.features(prompt)
        nothing_NC = self.gpt.no_caption(len(features_NC))
        return self.gpt.embed_caption(torch.stack([features_NC.to(nothing_NC), nothing_NC]))

    def _class(self, prompt: str) -> int:
        text = prompt.strip()
        if not (text.isascii() and text.isdigit() and int(text) < self.config.classes):
            last = self.config.classes - 1
            raise InvalidPrompt(f"{prompt[:60]!r} is no class", f"allowed: 0 to {last}")
        return int(text)
