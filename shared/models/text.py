"""Words to caption features: a closed vocabulary and an embedding per word. Knows nothing of transformers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.errors import InvalidPrompt

MAX_PROMPT_CHARS = 1000
# Words that connect others and name nothing: a prompt of these alone describes no picture.
GLUE = frozenset(["a", "an", "and", "at", "background", "in", "of", "on", "style", "the", "to", "with"])


def split_words(text: str) -> list[str]:
    """Lower-case runs of letters and digits, in order."""
    return re.findall(r"[a-z0-9]+", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


def check_length(prompt: str) -> None:
    """Raise InvalidPrompt unless the prompt has 1 .. MAX_PROMPT_CHARS characters, not all of them blank."""
    if not prompt.strip():
        raise InvalidPrompt("the prompt is empty", "the model draws what it is told", 'try "a cat"')
    if len(prompt) > MAX_PROMPT_CHARS:
        raise InvalidPrompt(f"the prompt has {len(prompt)} characters", f"allowed: 1 to {MAX_PROMPT_CHARS}")


class Vocabulary:
    """The words a model knows. Ids are places in the sorted list."""

    def __init__(self, words: Sequence[str], max_words: int) -> None:
        self.words, self.max_words = tuple(words), max_words
        self._ids = {word: index for index, word in enumerate(self.words)}

    def known(self, text: str) -> list[int]:
        """Ids of the known words of `text`, in order; unknown words are left out."""
        return [self._ids[word] for word in split_words(text) if word in self._ids]

    def unknown(self, text: str) -> list[str]:
        """Words of `text` that the model has never seen."""
        return [word for word in split_words(text) if word not in self._ids]

    def encode(self, prompt: str) -> list[int]:
        """Word ids of a prompt, 1 .. max_words of them.

        Raises InvalidPrompt when it is empty, too long, or names nothing the model knows.
        """
        check_length(prompt)
        ids = self.known(prompt)
        if not {self.words[index] for index in ids} - GLUE:
            raise InvalidPrompt(
                f"no word of {prompt[:60]!r} names something this model knows",
                self._hint(prompt),
                'try "a cat"',
            )
        if len(ids) > self.max_words:
            raise InvalidPrompt(f"the prompt has {len(ids)} known words", f"allowed: 1 to {self.max_words}")
        return ids

    def _hint(self, prompt: str) -> str:
        names = [word for word in self.words if word not in GLUE]
        near = [match for word in split_words(prompt) for match in difflib.get_close_matches(word, names, 2)]
        return f"near words it knows: {near}" if near else f"it knows {len(names)} words, such as {names[:8]}"


class WordEmbedding(nn.Module):
    """One learned feature vector per word: ids [B, n] -> caption features [B, n, C]."""

    def __init__(self, words: int, caption_dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(words, caption_dim)

    def forward(self, ids_BN: Tensor) -> Tensor:
        """Look the words up."""
        out: Tensor = self.table(ids_BN)
        return out


def ids_tensor(ids: Sequence[int]) -> Tensor:
    """Word ids as a batch of one: [1, n]."""
    return torch.tensor([list(ids)], dtype=torch.int64)
