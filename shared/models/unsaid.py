"""What a prompt leaves unsaid: the seed chooses the style, the background is the usual one. Knows no models.

Of a prompt that says little a model draws a mixture of all that it has learnt, and pictures that begin in one
style and end in another. Seeds that follow each other go through all styles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

from shared.models.text import split_words

BACKGROUND_WORDS = {"background", "on"}  # one of them is in every way of naming one


@dataclass(frozen=True)
class Unsaid:
    """The styles a model knows, of some phrases those that it never saw them drawn in, and the colour that a
    background has where nobody names one; none of it: prompts stay as they are."""

    styles: tuple[str, ...] = ()
    unlearnt: Mapping[str, Sequence[str]] = field(default_factory=dict)  # words joined by blanks -> styles
    background: str = ""

    def additions(self, prompt: str, seed: int) -> list[str]:
        """What is to stand behind the prompt, the most telling first; nothing that it says itself."""
        words = split_words(prompt)
        found = []
        if self.styles and not {*words} & {*self.styles}:
            found.append(f", {self._style(words, seed)} style")
        if self.background and not {*words} & {*BACKGROUND_WORDS, self.background}:
            found.append(f" on a {self.background} background")
        return found

    def _style(self, words: Sequence[str], seed: int) -> str:
        said = f" {' '.join(words)} "
        missing = {
            style for phrase, styles in self.unlearnt.items() if f" {phrase} " in said for style in styles
        }
        open_ = [style for style in self.styles if style not in missing] or self.styles
        start = crc32(said.encode())  # one seed does not draw all prompts in one style
        return open_[(start + seed) % len(open_)]
