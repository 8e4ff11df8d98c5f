"""Pictures: artwork by key, read from a picture folder. Knows nothing of scenes or models.

A picture folder holds `captions.jsonl` (one JSON object per picture: key "style/concept", split "train" or
"heldout", name, style) and the pictures themselves, square RGBA, as `<style>/<concept>.webp|png` or inside
`<style>.tar`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.errors import InvalidRequest

PIXELS = 128
CELL = 8  # pixels per token
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Picture:
    """One piece of artwork: straight-alpha RGBA [128, 128, 4]."""

    key: str
    split: str
    name: str
    style: str
    rgba: Pixels

    @property
    def concept(self) -> str:
        """The part of the key that names what is shown, whatever the style."""
        return self.key.rpartition("/")[2]


def load_pictures(
    folder: Path, concepts: Sequence[str] | None = None, split: str | None = None
) -> list[Picture]:
    """Read a picture folder, sorted by key; `concepts` are CLDR names, None means all.

    Raises InvalidRequest when the folder has no captions, a picture is missing, or a concept is unknown.
    """
    captions = folder / "captions.jsonl"
    if not captions.is_file():
        raise InvalidRequest(
            f"no captions.jsonl in {folder}", "a picture folder needs one JSON object per picture"
        )
    rows = [json.loads(line) for line in captions.read_text(encoding="utf-8").splitlines() if line]
    if concepts is not None:
        unknown = sorted(set(concepts) - {row["name"] for row in rows})
        if unknown:
            raise InvalidRequest(
                f"no pictures named {unknown}", f"{folder} knows {len(rows)} pictures by CLDR name"
            )
        rows = [row for row in rows if row["name"] in set(concepts)]
    rows = sorted((row for row in rows if split in (None, row["split"])), key=lambda row: str(row["key"]))
    pixels = _read_pixels(folder, rows)
    return [Picture(row["key"], row["split"], row["name"], row["style"], pixels[row["key"]]) for row in rows]


def _read_pixels(folder: Path, rows: Iterable[dict[str, Any]]) -> dict[str, Pixels]:
    by_style: dict[str, list[str]] = {}
    for row in rows:
        by_style.setdefault(row["style"], []).append(row["key"])
    found: dict[str, Pixels] = {}
    for style, keys in by_style.items():
        archive = folder / f"{style}.tar"
        found.update(_from_tar(archive, keys) if archive.is_file() else _from_files(folder, keys))
    return found


def _from_tar(archive: Path, keys: Sequence[str]) -> dict[str, Pixels]:
    wanted = {key.split("/", 1)[1]: key for key in keys}
    found: dict[str, Pixels] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            key = wanted.get(Path(member.name).stem)
            data = tar.extractfile(member) if key else None
            if key and data:
                found[key] = _rgba(Image.open(io.BytesIO(data.read())))
    missing = sorted(set(keys) - found.keys())
    if missing:
        raise InvalidRequest(f"{archive} lacks {missing[:5]}", "captions.jsonl names them")
    return found


def _from_files(folder: Path, keys: Sequence[str]) -> dict[str, Pixels]:
    found: dict[str, Pixels] = {}
    for key in keys:
        path = next((p for s in (".webp", ".png") if (p := folder / f"{key}{s}").is_file()), None)
        if path is None:
            raise InvalidRequest(f"no picture {key}.webp or {key}.png in {folder}", "captions.jsonl names it")
        with Image.open(path) as image:
            found[key] = _rgba(image)
    return found


def _rgba(image: Image.Image) -> Pixels:
    image = image.convert("RGBA")
    if image.size != (PIXELS, PIXELS):
        image = image.resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.uint8)


def keyed_generator(seed: int, index: int) -> np.random.Generator:
    """The generator of one scene or training step: a pure function of (seed, index)."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
