"""Pictures of the method at work: a row of drawn images, and one beside the map of who decided its tokens.

Knows nothing of how they are drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from device_client.progress import Progress
from device_client.render import CELL, source_map, to_image
from evaluation.campaign import Campaign, Turn
from evaluation.policies import CIAR
from evaluation.report import Images
from shared.models.vq import VQModel

SIDE, GAP, COLUMNS, CHARS, LINE_PX = 160, 12, 5, 24, 16  # pixels; pictures and letters a line


def picture_rows(campaign: Campaign, images: Images) -> Image.Image:
    """Images of the default mode, COLUMNS a row, the prompt and seed under each."""
    drawn = _drawn(campaign, images)
    font = ImageFont.load_default(LINE_PX - 4)
    rows, height = -(-len(drawn) // COLUMNS), SIDE + 2 * LINE_PX + GAP
    width = min(len(drawn), COLUMNS) * (SIDE + GAP) + GAP
    paper = Image.new("RGB", (width, rows * height + GAP), "white")
    pen = ImageDraw.Draw(paper)
    for place, (progress, (prompt, seed)) in enumerate(zip(drawn, images, strict=True)):
        row, column = divmod(place, COLUMNS)
        x, y = GAP + column * (SIDE + GAP), GAP + row * height
        paper.paste(_scaled(campaign.package().vq, progress, SIDE), (x, y))
        for line, text in enumerate(textwrap.wrap(f"{prompt}, seed {seed}", CHARS)[:2]):
            pen.text((x, y + SIDE + 2 + line * LINE_PX), text, fill="black", font=font)
    return paper


def picture_and_map(campaign: Campaign, images: Images) -> Image.Image:
    """The first image of the default mode beside its map, of the same size."""
    (progress,) = _drawn(campaign, images[:1])
    grid = round(len(progress.tokens) ** 0.5)
    who = source_map(progress.sources, grid, progress.scores)
    side = grid * CELL
    paper = Image.new("RGB", (side + GAP + who.width, who.height), "white")
    paper.paste(_scaled(campaign.package().vq, progress, side), (0, 0))
    paper.paste(who, (side + GAP, 0))
    return paper


def _drawn(campaign: Campaign, images: Images) -> Sequence[Progress]:
    return [campaign.watch(Turn(CIAR), image)[-1] for image in images]


def _scaled(vq: VQModel, progress: Progress, side: int) -> Image.Image:
    return to_image(vq, progress.tokens).resize((side, side), Image.Resampling.LANCZOS)
