"""The style that a prompt leaves open: the seed chooses it. Knows no models.

Of a prompt that names no style a model draws a mixture of all it has learnt, and pictures that begin in one
and end in another. Seeds that follow each other go through all styles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

from shared.models.text import split_words


@dataclass(frozen=True)
class OpenStyles:
    """The styles a model knows, and of some phrases those that it never saw them drawn in."""

    known: tuple[str, ...] = ()
    unlearnt: Mapping[str, Sequence[str]] = field(default_factory=dict)  # words joined by blanks -> styles

    def complete(self, prompt: str, seed: int) -> str:
        """The prompt with a style; as it is where it names one, or where there is none to choose."""
        words = split_words(prompt)
        if not self.known or {*words} & {*self.known}:
            return prompt
        said = f" {' '.join(words)} "
        missing = {
            style for phrase, styles in self.unlearnt.items() if f" {phrase} " in said for style in styles
        }
        open_ = [style for style in self.known if style not in missing] or self.known
        start = crc32(said.encode())  # one seed does not draw all prompts in one style
        return f"{prompt.rstrip(' .,;')}, {open_[(start + seed) % len(open_)]} style"
