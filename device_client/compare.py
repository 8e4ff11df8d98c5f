"""A picture against what the cloud alone draws for the same seed: where they differ, and both in one PNG.

Knows nothing of terminals and networks.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from device_client.loop import Progress, Source
from device_client.render import COLOURS, INK, LINE, PAPER
from device_client.wish import Wish

SIDE = 384  # pixels of each picture in the comparison, about
GAP = 12
SHARED = ("prompt", "seed", "acceptance", "guidance", "temperature", "top_k", "top_p")


def base_wish(wish: Wish) -> Wish:
    """The same picture as the cloud alone would draw it: what means nothing in that mode is left out."""
    return Wish.model_validate({**wish.model_dump(include=set(SHARED)), "mode": "cloud-only"})


def differing(mine: Progress, base: Progress) -> list[int]:
    """The places at which two pictures hold different tokens."""
    pairs = zip(mine.tokens, base.tokens, strict=True)
    return [place for place, (one, other) in enumerate(pairs) if one != other]


def beside(mine: Image.Image, base: Image.Image, places: Sequence[int], grid: int) -> Image.Image:
    """Both pictures, and the first one again with an outline around each token that differs."""
    scale = max(1, SIDE // mine.width)
    size = (mine.width * scale, mine.height * scale)
    pictures = [image.resize(size, Image.Resampling.NEAREST) for image in (mine, base, mine)]
    _outline(pictures[2], places, grid)
    titles = ("this picture", "the cloud alone", f"{len(places)} of {grid * grid} tokens differ")
    sheet = Image.new("RGB", (3 * size[0] + 4 * GAP, size[1] + LINE + 2 * GAP), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        left = GAP + column * (size[0] + GAP)
        pen.text((left, GAP + LINE // 2), title, fill=INK, font=font, anchor="lm")
        sheet.paste(picture, (left, GAP + LINE))
    return sheet


def _outline(picture: Image.Image, places: Sequence[int], grid: int) -> None:
    pen, cell = ImageDraw.Draw(picture), picture.width // grid
    for place in places:
        row, column = divmod(place, grid)
        corner = (column * cell, row * cell)
        box = (*corner, corner[0] + cell - 1, corner[1] + cell - 1)
        pen.rectangle(box, outline=COLOURS[Source.CORRECTED], width=max(1, cell // 10))
