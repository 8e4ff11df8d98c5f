"""Pictures for the eyes: tokens become pixels, folders become pictures. Knows nothing of figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from evaluation.metrics import Eye, Looks, Reference
from evaluation.records import Record
from shared.errors import InvalidRequest
from shared.models.vq import VQModel, to_pixels

CHUNK = 16  # pictures decoded at once
KINDS = (".png", ".jpg", ".jpeg", ".webp")


@torch.no_grad()
def pictures(vq: VQModel, records: Sequence[Record]) -> Tensor:
    """The pictures of records: uint8 [B, H, W, 3]."""
    tokens = torch.tensor([record.tokens for record in records])
    grid = round(tokens.shape[1] ** 0.5)
    squares = tokens.reshape(-1, grid, grid)
    starts = range(0, len(squares), CHUNK)
    return torch.cat([to_pixels(vq.decode(squares[start : start + CHUNK])) for start in starts])


def read_pictures(folder: Path, pixels: int | None, count: int | None = None) -> Tensor:
    """The first `count` pictures of a folder by name, cut to squares and, where `pixels` is given, scaled.

    Returns uint8 [B, H, H, 3]. Raises InvalidRequest for a folder without pictures and for unlike sizes.
    """
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in KINDS)[:count]
    if not files:
        raise InvalidRequest(f"no pictures in {folder}", f"allowed: {', '.join(KINDS)}")
    read = [_square(file, pixels) for file in files]
    if len({picture.shape for picture in read}) > 1:
        raise InvalidRequest(f"the pictures in {folder} differ in size", "name one size for all")
    return torch.from_numpy(np.stack(read))


def _square(file: Path, pixels: int | None) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        with Image.open(file) as image:
            picture = image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise InvalidRequest(f"{file} is no picture", str(error)) from error
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    picture = picture.crop((left, top, left + side, top + side))
    if pixels is not None and pixels != side:
        picture = picture.resize((pixels, pixels), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def looks(eye: Eye, pixels_BHW3: Tensor, captions: Sequence[str], reference: Reference) -> Looks:
    """What an eye makes of pictures with their captions."""
    fits_N = np.array(eye.fits(pixels_BHW3, captions), dtype=np.float64)
    return Looks(eye.look(pixels_BHW3), fits_N, reference)
