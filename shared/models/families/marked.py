"""What families have in common whose prompts are tokens of the model's own table, with marks around them.

Knows neither what the marks are nor how a prompt is put together.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from shared.config import TransformerConfig, from_dict, to_dict
from shared.models.family import ImageModel
from shared.models.text import check_length
from shared.models.tokenizer import FolderTokenizer
from shared.models.transformer import Transformer

MarksT = TypeVar("MarksT")


class MarkedModel(ImageModel, Generic[MarksT]):
    """A transformer, the marks as the folder's tokenizer has them, and that tokenizer."""

    marks_class: ClassVar[type]

    def __init__(self, config: TransformerConfig, marks: MarksT, home: Path) -> None:
        super().__init__()
        self.config, self.marks, self.home = config, marks, home
        self.tokenizer = FolderTokenizer(home, self.family)
        self.gpt = Transformer(config)

    @classmethod
    def build(cls, config: dict[str, Any], home: Path) -> Self:
        """As ImageModel; the tokenizer is read from `home` when the first prompt comes."""
        shape = from_dict(TransformerConfig, config["transformer"])
        return cls(shape, from_dict(cls.marks_class, config["marks"]), home)

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
