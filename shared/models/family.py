"""The seam: what engine, drafter and training need of any family of image models.

A family is one file in `shared/models/families/`. It says what a prompt becomes, what its folder has to hold
beside the weights, and which shape its transformer has. Knows no family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from shared.config import TransformerConfig
from shared.decoding.warp import Warp
from shared.models.transformer import Transformer


class ImageModel(nn.Module, ABC):
    """Prompt -> prefix rows -> image tokens. A base class and no Protocol: it is a module with weights.

    family   the name in `config.json`
    warp     how the family's own programs draw, where nothing else is calibrated
    gpt      the transformer; everything but the prompt goes through it
    """

    family: ClassVar[str]
    warp: Warp
    config: TransformerConfig
    gpt: Transformer

    @classmethod
    @abstractmethod
    def build(cls, config: dict[str, Any], home: Path) -> Self:
        """The model a `config.json` describes, weights not loaded.

        `home` is the model folder, in which tokenizers and text encoders lie beside `cloud/` and `device/`.
        Raises InvalidRequest or ModelUnavailable where the description does not fit.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What `build` needs, in JSON; every family has the keys `family` and `transformer`."""

    @abstractmethod
    def with_layers(self, layers: int) -> Self:
        """A model of the same family and shape with that many layers and weights of its own."""

    @abstractmethod
    def check_prompt(self, prompt: str) -> None:
        """Raise InvalidPrompt where `prompt_rows` would; cheap, and without the text encoder."""

    @abstractmethod
    def prompt_rows(self, prompt: str) -> Tensor:
        """Prefix embeddings [2, n, D]: the prompt's row and the unguided row, valid from `starts(n)` on.

        Raises InvalidPrompt, or ModelUnavailable where a text encoder is missing.
        """

    def starts(self, length: int) -> tuple[int, int]:
        """First valid positions of the two rows of a prefix of `length` rows that ends at P - 1."""
        first = self.config.prefix_len - length
        return first, first

    def complete(self, prompt: str, seed: int) -> str:
        """The prompt with what it leaves open chosen by the seed; most families leave it as it is."""
        return prompt

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of the prompt that the model will leave out; most families leave out none."""
        return []
