"""Any transformer with random weights, behind prompts that need no tokenizer and no text encoder.

For measurements of speed and memory, where weights and words do not matter.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from cloud_server.engine import ROWS
from shared.config import DeviceConfig, TransformerConfig, to_dict
from shared.decoding.warp import Warp
from shared.errors import InvalidPrompt, InvalidRequest
from shared.models.family import ImageModel
from shared.models.transformer import Transformer
from shared.models.zoo import CloudModel


class PromptlessModel(ImageModel):
    """A transformer whose prompt is a number: so many rows of noise."""

    family = "promptless"
    warp = Warp(guidance=7.5, top_k=1000)

    def __init__(self, gpt: Transformer) -> None:
        super().__init__()
        self.gpt, self.config = gpt, gpt.config

    @classmethod
    def build(cls, config: dict[str, Any], home: Path) -> Self:
        """It is never read from a folder: raises InvalidRequest."""
        raise InvalidRequest(f"a {cls.family} model has no folder", str(home))

    def describe(self) -> dict[str, Any]:
        """As ImageModel."""
        return {"family": self.family, "transformer": to_dict(self.config)}

    def with_layers(self, layers: int) -> Self:
        """The first layers of the same transformer."""
        shorter = copy.copy(self.gpt)
        shorter.layers = self.gpt.layers[:layers]
        return type(self)(shorter)

    def check_prompt(self, prompt: str) -> None:
        """Raise InvalidPrompt for what is no number of rows, or does not fit."""
        if not prompt.isdigit() or not 0 < int(prompt) <= self.config.prefix_len:
            raise InvalidPrompt(f"{prompt!r} prompt rows", f"allowed: 1 to {self.config.prefix_len}")

    def prompt_rows(self, prompt: str) -> Tensor:
        """Rows [2, n, D] of noise. Raises InvalidPrompt as `check_prompt`."""
        self.check_prompt(prompt)
        noise = torch.Generator().manual_seed(0)
        rows_2ND = torch.randn(ROWS, int(prompt), self.config.dim, generator=noise)
        return rows_2ND.to(self.gpt.device, self.gpt.dtype)


def random_transformer(shape: TransformerConfig, dtype: torch.dtype, device: str = "cpu") -> Transformer:
    """A transformer with random weights, drawn directly in `dtype` on `device`: nothing is ever wider."""
    with torch.device("meta"):
        gpt = Transformer(shape)
    gpt.to(dtype).to_empty(device=device)
    gpt.reset_table()
    noise = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for value in gpt.parameters():
            if value.ndim == 1:
                value.fill_(1)
            else:  # the variance of a unit row, whatever its width
                value.uniform_(-1, 1, generator=noise).mul_((3 / value.shape[-1]) ** 0.5)
    return gpt.eval()


def promptless_cloud(gpt: Transformer, name: str) -> CloudModel:
    """The transformer as an engine wants it, without a bridge."""
    bridge_DF = torch.zeros(gpt.config.dim, DeviceConfig.feature_width, device=gpt.device)
    return CloudModel(name, "", PromptlessModel(gpt), bridge_DF)
