"""A picture in a terminal: two pixels per character, the upper half block in front of the lower one's colour.

Knows nothing of how the picture is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

HALF = "\u2580"
WIDEST = 64  # characters: more would not look better
BELOW = 4  # lines that stay free for the bar and the prompt of the shell

Pixel = tuple[int, int, int]


class HalfBlocks:
    """A picture as something rich can print, as large as the terminal allows."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image.convert("RGB")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One segment per two pixels, a line break per two rows."""
        lines = max(1, options.size.height - BELOW)
        side = min(WIDEST, options.max_width, 2 * lines) // 2 * 2
        for row in _rows(self._image.resize((side, side), Image.Resampling.BOX)):
            yield from row
            yield Segment.line()


def _rows(image: Image.Image) -> Iterator[list[Segment]]:
    pixels, side = image.tobytes(), image.width
    for top in range(0, image.height, 2):
        yield [
            Segment(HALF, _style(_pixel(pixels, top * side + x), _pixel(pixels, (top + 1) * side + x)))
            for x in range(side)
        ]


def _pixel(pixels: bytes, place: int) -> Pixel:
    red, green, blue = pixels[3 * place : 3 * place + 3]
    return red, green, blue


@lru_cache(4096)
def _style(above: Pixel, below: Pixel) -> Style:
    return Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))
