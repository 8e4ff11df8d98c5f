"""Pictures and scenes: artwork with captions, composed on the fly. Knows nothing of models.

A picture folder holds `captions.jsonl` (one JSON object per picture: key "style/concept", split "train" or
"heldout", name, style) and the pictures themselves, square RGBA, as `<style>/<concept>.webp|png` or inside
`<style>.tar`. A scene is one picture placed on a coloured background with a caption; it is a pure function of
(seed, index).
"""

from __future__ import annotations

import io
import json
import re
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
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "light blue": (190, 222, 248),
    "pink": (250, 205, 220),
    "yellow": (252, 238, 170),
    "light green": (200, 236, 200),
}
# Words on pictures read from left to right, so these are never mirrored.
NEVER_MIRRORED = re.compile(r"button|sign|clock|calendar|book|music|musical|number|letter|arrow|soon|money")

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Picture:
    """One piece of artwork: straight-alpha RGBA [128, 128, 4]."""

    key: str
    split: str
    name: str
    style: str
    rgba: Pixels


@dataclass(frozen=True)
class SceneRange:
    """How far a scene may leave the canonical one; the defaults are the mild augmentation of the bundled
    models."""

    shift_cells: int = 1  # whole tokens in each direction
    scales: tuple[float, ...] = (1.0, 1.0, 0.9, 0.8)
    mirror: bool = True
    white: float = 0.5  # share of white backgrounds
    colours: tuple[str, ...] = tuple(COLOURS)


@dataclass(frozen=True, eq=False)
class Scene:
    """What is drawn and what is said: pixels [128, 128, 3], the background colour and a caption ("" =
    nothing)."""

    pixels: Pixels
    background: tuple[int, int, int]
    caption: str
    key: str


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


def compose(rgba: Pixels, background: tuple[int, int, int]) -> Pixels:
    """Lay a straight-alpha picture over one colour: [H, W, 4] -> [H, W, 3]."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    over = rgba[..., :3] * alpha + np.asarray(background, np.float32) * (1 - alpha)
    return np.rint(over).astype(np.uint8)


def place(rgba: Pixels, scale: float, shift: tuple[int, int], mirror: bool) -> Pixels:
    """Scale about the centre, mirror, then shift by whole pixels (rows, columns); what leaves the canvas is
    lost."""
    if mirror:
        rgba = rgba[:, ::-1]
    canvas = Image.fromarray(np.ascontiguousarray(rgba))
    if scale != 1.0:
        side = round(PIXELS * scale / CELL) * CELL
        small = canvas.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS).convert("RGBA")
        canvas = Image.new("RGBA", (PIXELS, PIXELS))
        canvas.paste(small, ((PIXELS - side) // 2, (PIXELS - side) // 2))
    moved = np.zeros((PIXELS, PIXELS, 4), np.uint8)
    dy, dx = shift
    source = np.asarray(canvas)
    rows, columns = slice(max(dy, 0), PIXELS + min(dy, 0)), slice(max(dx, 0), PIXELS + min(dx, 0))
    moved[rows, columns] = source[max(-dy, 0) : PIXELS - max(dy, 0), max(-dx, 0) : PIXELS - max(dx, 0)]
    return moved


def keyed_generator(seed: int, index: int) -> np.random.Generator:
    """The generator of one scene or training step: a pure function of (seed, index)."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))


class Scenes:
    """An endless list of scenes over some pictures; item `index` is always the same for the same seed."""

    def __init__(self, pictures: Sequence[Picture], limits: SceneRange, seed: int) -> None:
        if not pictures:
            raise InvalidRequest("no pictures to compose scenes from")
        self.pictures, self.limits, self.seed = pictures, limits, seed

    def __getitem__(self, index: int) -> Scene:
        """Compose scene `index`; epochs visit every picture once in a keyed order."""
        epoch, place_in_epoch = divmod(index, len(self.pictures))
        order = keyed_generator(self.seed + 1, epoch).permutation(len(self.pictures))
        picture = self.pictures[order[place_in_epoch]]
        rng = keyed_generator(self.seed, index)
        limits = self.limits
        white = rng.random() < limits.white
        colour = "white" if white else str(rng.choice(limits.colours))
        shift = rng.integers(-limits.shift_cells, limits.shift_cells + 1, size=2) * CELL
        scale = float(rng.choice(limits.scales))
        mirror = bool(limits.mirror and rng.random() < 0.5 and not NEVER_MIRRORED.search(picture.name))
        rgba = place(picture.rgba, scale, (int(shift[0]), int(shift[1])), mirror)
        return Scene(
            compose(rgba, COLOURS[colour]), COLOURS[colour], caption(picture, colour, rng), picture.key
        )


def scene_split(
    folder: Path, concepts: Sequence[str] | None, limits: SceneRange, seed: int
) -> tuple[Scenes, Scenes]:
    """Training scenes, and canonical white scenes of the held-back pictures (of all pictures where none
    are)."""
    pictures = load_pictures(folder, concepts)
    canonical = SceneRange(shift_cells=0, scales=(1.0,), mirror=False, white=1.0)
    held_back = [picture for picture in pictures if picture.split == "heldout"] or pictures
    train = [picture for picture in pictures if picture.split == "train"]
    return Scenes(train, limits, seed), Scenes(held_back, canonical, seed)


def caption(picture: Picture, colour: str, rng: np.random.Generator) -> str:
    """Say the name always, the style and the background sometimes; one caption in ten says nothing."""
    if rng.random() < 0.1:
        return ""
    words = [picture.name.lower()]
    if rng.random() < 0.6:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    if rng.random() < 0.6:
        words.append(f"{picture.style} style")
    if rng.random() < (0.7 if colour != "white" else 0.3):
        words.append(f"on a {colour} background")
    return " ".join(words)


def batch_pixels(scenes: Sequence[Scene]) -> Pixels:
    """Stack scenes: [B, 128, 128, 3]."""
    return np.stack([scene.pixels for scene in scenes])
