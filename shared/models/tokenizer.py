"""The tokenizer of a model folder, loaded at the first prompt. Knows no family's prompts."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from shared.errors import InvalidPrompt, ModelUnavailable

TOKENIZER = Path("tokenizer", "tokenizer.json")


class FolderTokenizer:
    """`home`/tokenizer/tokenizer.json; `family` is the extra that installs what reads it."""

    def __init__(self, home: Path, family: str) -> None:
        self.home, self.family = home, family

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, nothing put around them; special tokens inside it are recognised.

        Raises ModelUnavailable that says which file or package is missing.
        """
        ids: list[int] = self._loaded.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _loaded(self) -> Any:  # noqa: ANN401 - the class of an optional package
        file = self.home / TOKENIZER
        if not file.is_file():
            why = "ciar-train convert puts it there"
            raise ModelUnavailable(f"there is no tokenizer in {file.parent}", why, f"its name is {file.name}")
        try:
            return importlib.import_module("tokenizers").Tokenizer.from_file(str(file))
        except ImportError as error:
            what = f"the prompts of family {self.family!r} need the package tokenizers"
            raise ModelUnavailable(what, str(error), f"pip install 'ciar[{self.family}]'") from error


def check_count(ids: Sequence[int], limit: int) -> None:
    """Raise InvalidPrompt for a prefix of more than `limit` tokens."""
    if len(ids) > limit:
        why = f"allowed: up to {limit}, with what the model wants around it"
        raise InvalidPrompt(f"the prompt has {len(ids)} tokens", why)
