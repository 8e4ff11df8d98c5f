"""Tokens to pictures: the VQ decoder, PNG files that say how they were made, and the map of who decided what.

Knows nothing of clouds, gates or command lines.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from device_client.loop import Source
from shared.errors import InvalidRequest
from shared.models.vq import VQModel

SUFFIX = ".png"  # the one format whose text chunks every reader keeps
CHUNK = "ciar"  # the text chunk that holds the settings as JSON
CELL = 24  # pixels per token and side in a source map
LINE = 22  # pixels per line of its legend
INK, PAPER = "#000000", "#ffffff"
# Okabe and Ito's colours: told apart with every common kind of colour vision.
COLOURS: Mapping[Source, str] = {
    Source.PREFIX: "#BBBBBB",
    Source.KEPT: "#009E73",
    Source.VERIFIED: "#56B4E9",
    Source.CORRECTED: "#D55E00",
    Source.BONUS: "#F0E442",
    Source.OFFLINE: "#CC79A7",
}
MEANING: Mapping[Source, str] = {
    Source.PREFIX: "prefix: drawn by the cloud",
    Source.KEPT: "kept: decided on the device",
    Source.VERIFIED: "verified: the cloud agreed",
    Source.CORRECTED: "corrected: the cloud differed",
    Source.BONUS: "bonus: the cloud's next token",
    Source.OFFLINE: "offline: the device alone",
}


def to_image(vq: VQModel, tokens: Sequence[int]) -> Image.Image:
    """Decode the T tokens of one square image, in raster order, to an RGB picture."""
    side = _side(len(tokens))
    ids_1hw = torch.tensor(tokens, dtype=torch.int64).reshape(1, side, side)
    with torch.inference_mode():
        pixels_HW3 = vq.pictures(ids_1hw)[0]
    return Image.fromarray(pixels_HW3.numpy())


def check_target(path: Path) -> None:
    """Raise InvalidRequest unless a PNG can be written to `path`; nothing is created."""
    if path.suffix.lower() != SUFFIX:
        raise InvalidRequest(
            f"cannot write {str(path)!r}", f"allowed endings: {SUFFIX}", f"try {path.stem}.png"
        )
    if path.is_dir():
        raise InvalidRequest(f"{str(path)!r} is a folder", "a file is written", f"try {path / 'image.png'}")
    if not path.parent.is_dir():
        raise InvalidRequest(f"there is no folder {str(path.parent)!r}", "", "make it first")
    if not os.access(path.parent, os.W_OK):
        raise InvalidRequest(f"folder {str(path.parent)!r} cannot be written to", "", "choose another one")


def png_bytes(image: Image.Image, settings: Mapping[str, Any]) -> bytes:
    """The picture as PNG, with `settings` as JSON in the chunk "ciar" and as words in "parameters"."""
    info = PngImagePlugin.PngInfo()
    info.add_text(CHUNK, json.dumps(settings))
    info.add_text("parameters", _words(settings))
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(path: Path, image: Image.Image, settings: Mapping[str, Any]) -> None:
    """Write the picture whole or not at all. Raises InvalidRequest where `path` cannot be written."""
    check_target(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(png_bytes(image, settings))
        draft.replace(path)
    except OSError as error:
        raise InvalidRequest(f"cannot write {str(path)!r}", error.strerror or str(error)) from error
    finally:
        draft.unlink(missing_ok=True)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings inside a picture that `save_png` wrote. Raises InvalidRequest where there are none."""
    with Image.open(path) as image:
        text = image.info.get(CHUNK)
    if not isinstance(text, str):
        raise InvalidRequest(f"{str(path)!r} holds no settings", f"they lie in the PNG text chunk {CHUNK!r}")
    settings: dict[str, Any] = json.loads(text)
    return settings


def source_map(
    sources: Sequence[int], grid: int, scores: Sequence[float | None] | None = None
) -> Image.Image:
    """The token grid coloured by who decided each token, above a legend with counts.

    With `scores` each cell holds a square that grows with the rank of its score: larger is less sure. Tokens
    that the device never scored have none. Raises InvalidRequest unless there are grid * grid sources.
    """
    if len(sources) != grid * grid:
        raise InvalidRequest(f"{len(sources)} sources do not fill the grid", f"expected {grid} x {grid}")
    lines = [(COLOURS[source], f"{MEANING[source]} ({list(sources).count(source)})") for source in COLOURS]
    lines += [(INK, "square: the larger, the less sure")] if scores is not None else []
    font = ImageFont.load_default(14)
    width = max(grid * CELL, 2 * LINE + max(int(font.getlength(text)) for _, text in lines))
    picture = Image.new("RGB", (width, grid * CELL + (len(lines) + 1) * LINE), PAPER)
    pen = ImageDraw.Draw(picture)
    for place, source in enumerate(sources):
        pen.rectangle(_square(place, grid, CELL), fill=COLOURS[Source(source)], outline=PAPER)
    for place, share in enumerate(_ranks(scores) if scores is not None else ()):
        if side := round(CELL / 2 * share):
            pen.rectangle(_square(place, grid, side), fill=INK)
    for row, (colour, text) in enumerate(lines):
        top = grid * CELL + LINE // 2 + row * LINE
        pen.rectangle((4, top + 2, LINE - 2, top + LINE - 4), fill=colour)
        pen.text((LINE + 6, top + LINE // 2), text, fill=INK, font=font, anchor="lm")
    return picture


def _square(place: int, grid: int, side: int) -> tuple[int, int, int, int]:
    """Corners of a centred square of that side inside the cell of a token."""
    row, column = divmod(place, grid)
    left, top = column * CELL + (CELL - side) // 2, row * CELL + (CELL - side) // 2
    return left, top, left + side - 1, top + side - 1


def _ranks(scores: Sequence[float | None]) -> NDArray[np.float64]:
    """Each score's rank among all, in (0, 1]; 0 where there is none. Ranks, because gates differ in scale."""
    values = np.array(scores, dtype=np.float64)  # None becomes NaN
    scored = ~np.isnan(values)
    ranks = np.zeros(len(values))
    ordered = np.sort(values[scored])
    ranks[scored] = np.searchsorted(ordered, values[scored], side="right") / max(len(ordered), 1)
    return ranks


def _side(tokens: int) -> int:
    side = math.isqrt(tokens)
    if side == 0 or side * side != tokens:
        raise InvalidRequest(f"{tokens} tokens fill no square picture", "expected 1, 4, 9, 16, ...")
    return side


def _words(settings: Mapping[str, Any]) -> str:
    """The settings as readers of picture metadata expect them: the prompt, then one line of `name: value`."""
    parts: list[str] = []
    for name, value in settings.items():
        inner = value if isinstance(value, Mapping) else {name: value}
        parts += [f"{name}: {value}" for name, value in inner.items() if name != "prompt"]
    return f"{settings.get('prompt', '')}\n{', '.join(parts)}"
