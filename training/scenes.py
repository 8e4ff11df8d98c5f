"""Scenes: artwork on a coloured background with a caption, composed on the fly. Knows nothing of models.

A scene is a pure function of (seed, index): a layout is drawn first (what stands where, what is said), then
its pixels. What is held back is never laid out: the pictures that the data set's split holds back, and a
share of (concept, colour) pairs chosen by their hash.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.errors import InvalidRequest
from shared.models.text import split_words
from shared.models.unsaid import Unsaid
from training.captions import CaptionRange, Facts, aliases, caption, vocabulary
from training.data import CELL, PIXELS, Picture, Pixels, keyed_generator, load_pictures
from training.words import COLOURS

ARTWORK_PX = 112  # longer side of the artwork within its 128 px canvas
SMALL_PX, LARGE_PX = 88, 112  # at most, at least: what a caption may call small and large
CLEARLY_PX = 16  # a shift that a caption may call left, right, top or bottom
PAIR_WORDS = 3  # names of more words leave no room for a second thing


@dataclass(frozen=True)
class SceneRange:
    """How far a scene may leave the canonical one; the defaults are the mild augmentation of the preset
    `first`."""

    shift_cells: int = 1  # whole tokens in each direction, as far as the thing fits
    sizes: tuple[int, ...] = (ARTWORK_PX,)  # longer side in pixels
    mirror: bool = True
    # Names read from left to right, and things that have a handedness, are never mirrored.
    never_mirrored: str = r"button|sign|clock|calendar|book|music|musical|number|letter|arrow|soon|money"
    white: float = 0.5  # share of white backgrounds, before the colours are drawn
    colours: tuple[str, ...] = ("white", "light blue", "pink", "yellow", "light green")
    held_colours: float = 0.0  # share of (concept, colour) pairs that are never trained on; never white
    blends: float = 0.0  # share of coloured backgrounds that lie between two colours and have no name
    pairs: float = 0.0  # share of scenes with two things
    pair_sizes: tuple[int, ...] = (80, 88)
    captions: CaptionRange = field(default_factory=CaptionRange)

    def __post_init__(self) -> None:
        unknown = sorted({*self.colours} - {*COLOURS})
        if unknown:
            raise InvalidRequest(f"unknown colours {unknown}", f"allowed: {', '.join(COLOURS)}")


CANONICAL = SceneRange(shift_cells=0, mirror=False, white=1.0)


@dataclass(frozen=True)
class Thing:
    """One picture of a layout: its key, its longer side and shift (rows, columns) in pixels."""

    key: str
    size: int = ARTWORK_PX
    shift: tuple[int, int] = (0, 0)
    mirror: bool = False


@dataclass(frozen=True)
class Layout:
    """A scene before its pixels: things in painting order, a background colour, and what is true and said."""

    things: tuple[Thing, ...]
    facts: Facts
    caption: str
    background: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Scene:
    """What is drawn and what is said: pixels [128, 128, 3], the background colour and a caption ("" =
    nothing). `key` names the first picture."""

    pixels: Pixels
    background: tuple[int, int, int]
    caption: str
    key: str


def is_held_back(concept: str, colour: str, share: float) -> bool:
    """Whether scenes of this concept on this colour are kept out of training; white never is."""
    if colour == "white" or share <= 0:
        return False
    number = int(hashlib.sha256(f"ciar-scene:{concept}/{colour}".encode()).hexdigest()[:8], 16)
    return number / 2**32 < share


def compose(rgba: Pixels, background: tuple[int, int, int] | Pixels) -> Pixels:
    """Lay a straight-alpha picture over one colour or other pixels: [H, W, 4] -> [H, W, 3]."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    over = rgba[..., :3] * alpha + np.asarray(background, np.float32) * (1 - alpha)
    return np.rint(over).astype(np.uint8)


def place(rgba: Pixels, thing: Thing) -> Pixels:
    """Mirror, scale about the centre, then shift; what leaves the canvas is lost."""
    if thing.mirror:
        rgba = rgba[:, ::-1]
    canvas = Image.fromarray(np.ascontiguousarray(rgba))
    if thing.size != ARTWORK_PX:
        side = -(-PIXELS * thing.size // ARTWORK_PX)  # rounded up: a thing is never smaller than it says
        small = canvas.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS).convert("RGBA")
        canvas = Image.new("RGBA", (PIXELS, PIXELS))
        canvas.paste(small, ((PIXELS - side) // 2, (PIXELS - side) // 2))
    moved = np.zeros((PIXELS, PIXELS, 4), np.uint8)
    dy, dx = thing.shift
    source = np.asarray(canvas)
    rows, columns = slice(max(dy, 0), PIXELS + min(dy, 0)), slice(max(dx, 0), PIXELS + min(dx, 0))
    moved[rows, columns] = source[max(-dy, 0) : PIXELS - max(dy, 0), max(-dx, 0) : PIXELS - max(dx, 0)]
    return moved


@functools.lru_cache(maxsize=8)
def keyed_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of `count` pictures in one epoch."""
    return keyed_generator(seed + 1, epoch).permutation(count)


class Scenes:
    """An endless list of scenes over some pictures; item `index` is always the same for the same seed."""

    def __init__(self, pictures: Sequence[Picture], limits: SceneRange, seed: int) -> None:
        if not pictures:
            raise InvalidRequest("no pictures to compose scenes from")
        self.pictures, self.limits, self.seed = pictures, limits, seed
        self._by_key = {picture.key: picture for picture in pictures}
        self._mirrored = {p.key for p in pictures if not re.search(limits.never_mirrored, p.name)}
        self._by_style: dict[str, list[Picture]] = {}
        for picture in filter(_short, pictures):
            self._by_style.setdefault(picture.style, []).append(picture)

    def __getitem__(self, index: int) -> Scene:
        """Compose scene `index`."""
        return self.draw(self.layout(index))

    def layout(self, index: int) -> Layout:
        """What scene `index` shows and says; epochs lay every picture out once in a keyed order."""
        epoch, place_in_epoch = divmod(index, len(self.pictures))
        picture = self.pictures[keyed_order(self.seed, epoch, len(self.pictures))[place_in_epoch]]
        rng = keyed_generator(self.seed, index)
        others = self._by_style.get(picture.style, []) if _short(picture) else []
        if self.limits.pairs and len(others) > 1 and rng.random() < self.limits.pairs:
            return self._pair(picture, others, rng)
        return self._single(picture, rng)

    def draw(self, layout: Layout) -> Scene:
        """The pixels of a layout."""
        pixels: tuple[int, int, int] | Pixels = layout.background
        for thing in layout.things:
            pixels = compose(place(self._by_key[thing.key].rgba, thing), pixels)
        return Scene(np.asarray(pixels), layout.background, layout.caption, layout.things[0].key)

    def canonical(self, picture: Picture, colour: str) -> Scene:
        """A picture as it is, in the middle, with everything said."""
        facts = Facts((picture.name,), picture.style, colour)
        said = f"{picture.name.lower()} {picture.style} style on a {colour} background"
        return self.draw(Layout((Thing(picture.key),), facts, said, COLOURS[colour]))

    def vocabulary(self) -> list[str]:
        """Every word that a caption of these scenes can contain, sorted."""
        names, styles = ({getattr(p, part) for p in self.pictures} for part in ("name", "style"))
        return vocabulary(names, styles, self.limits.colours, self.limits.captions)

    def unsaid(self) -> Unsaid:
        """All styles, which of them each name and alias is never drawn in, and the commonest background."""
        known = sorted({picture.style for picture in self.pictures})
        unlearnt: dict[str, set[str]] = {}
        for name in {picture.name for picture in self.pictures}:
            drawn = {picture.style for picture in self.pictures if picture.name == name}
            for phrase in (name, *aliases(name)):
                unlearnt.setdefault(" ".join(split_words(phrase)), set()).update({*known} - drawn)
        found = {phrase: tuple(sorted(missing)) for phrase, missing in sorted(unlearnt.items()) if missing}
        return Unsaid(tuple(known), found, "white" if self.limits.white else "")

    def _single(self, picture: Picture, rng: np.random.Generator) -> Layout:
        limits = self.limits
        colour, background = self._background([picture], rng)
        size = int(rng.choice(limits.sizes))
        cells = min(limits.shift_cells, _reach(size) // CELL)
        dy, dx = (int(shift) * CELL for shift in rng.integers(-cells, cells + 1, size=2))
        thing = Thing(picture.key, size, (dy, dx), self._mirror(picture, rng))
        facts = Facts((picture.name,), picture.style, colour, _size_word(size), _place_word(dy, dx))
        return Layout((thing,), facts, caption(facts, limits.captions, rng), background)

    def _pair(self, behind: Picture, others: Sequence[Picture], rng: np.random.Generator) -> Layout:
        """Two things of one style as far apart as they fit along one axis, less than that along the other."""
        limits = self.limits
        step = int(rng.integers(1, len(others)))
        before = others[(others.index(behind) + step) % len(others)]
        colour, background = self._background([behind, before], rng)
        size = int(rng.choice(limits.pair_sizes))
        sign, upright = int(rng.choice((-1, 1))), bool(rng.random() < 0.5)
        cells = _reach(size) // CELL
        across = int(rng.integers(-cells, cells + 1)) * CELL
        things = tuple(
            Thing(picture.key, size, _along(picture, size, side, upright, across), self._mirror(picture, rng))
            for picture, side in ((behind, sign), (before, -sign))
        )
        names = (behind.name, before.name) if sign < 0 else (before.name, behind.name)
        facts = Facts(names, behind.style, colour, relation="above" if upright else "left of")
        return Layout(things, facts, caption(facts, limits.captions, rng), background)

    def _background(
        self, pictures: Sequence[Picture], rng: np.random.Generator
    ) -> tuple[str, tuple[int, int, int]]:
        """A colour by its name and its value; a blend of two has no name."""
        if rng.random() < self.limits.white:
            return "white", COLOURS["white"]
        share = self.limits.held_colours
        allowed = [
            colour
            for colour in self.limits.colours
            if not any(is_held_back(picture.concept, colour, share) for picture in pictures)
        ]
        if self.limits.blends and rng.random() < self.limits.blends:
            one, other = (np.asarray(COLOURS[str(name)]) for name in rng.choice(allowed or ["white"], 2))
            red, green, blue = np.rint(one + rng.random() * (other - one)).astype(int).tolist()
            return "", (red, green, blue)
        name = str(rng.choice(allowed or ["white"]))
        return name, COLOURS[name]

    def _mirror(self, picture: Picture, rng: np.random.Generator) -> bool:
        return bool(self.limits.mirror and rng.random() < 0.5 and picture.key in self._mirrored)


def _short(picture: Picture) -> bool:
    return len(split_words(picture.name)) <= PAIR_WORDS


def _reach(size: int) -> int:
    """How many pixels a thing of this size can move from the centre before it leaves the canvas."""
    return (PIXELS - size) // 2


def _along(picture: Picture, size: int, side: int, upright: bool, across: int) -> tuple[int, int]:
    """The shift that takes a thing to one `side` (-1 or 1) of an axis: narrow things get further away."""
    visible = np.nonzero(picture.rgba[..., 3].any(axis=1 if upright else 0))[0]
    extent = -(-size * (int(np.ptp(visible)) + 1) // ARTWORK_PX) if visible.size else size
    along = side * _reach(extent)
    return (along, side * across) if upright else (side * across, along)


def _size_word(size: int) -> str:
    if size <= SMALL_PX:
        return "small"
    return "large" if size >= LARGE_PX else ""


def _place_word(dy: int, dx: int) -> str:
    row = "top" if dy <= -CLEARLY_PX else "bottom" if dy >= CLEARLY_PX else ""
    column = "left" if dx <= -CLEARLY_PX else "right" if dx >= CLEARLY_PX else ""
    return f"{row} {column}".strip()


def scene_split(
    folder: Path, concepts: Sequence[str] | None, limits: SceneRange, seed: int
) -> tuple[Scenes, Scenes]:
    """Training scenes, and canonical white scenes of the held-back pictures (of all pictures where none
    are)."""
    pictures = load_pictures(folder, concepts)
    held_back = [picture for picture in pictures if picture.split == "heldout"] or pictures
    train = [picture for picture in pictures if picture.split == "train"]
    return Scenes(train, limits, seed), Scenes(held_back, CANONICAL, seed)


def batch_pixels(scenes: Sequence[Scene]) -> Pixels:
    """Stack scenes: [B, 128, 128, 3]."""
    return np.stack([scene.pixels for scene in scenes])
