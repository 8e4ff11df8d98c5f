"""Tiny clones of the repositories that emoji artwork is taken from, in their layouts."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

INKS = {"noto": "red", "3d": "blue", "fluent": "green", "flat": "orange", "twemoji": "teal", "blob": "gold"}
# A cat is a wide ellipse, a dog a tall rectangle; the rest is there to be left out.
SHAPES = {
    "1F408": '<ellipse cx="32" cy="32" rx="30" ry="20" fill="{}"/>',
    "1F415": '<rect x="20" y="4" width="24" height="56" fill="{}"/>',
    "1F44B-1F3FB": '<rect width="64" height="64" fill="{}"/>',
    "0023-FE0F-20E3": '<rect width="50" height="64" fill="{}"/>',
    "1F550": '<rect width="40" height="64" fill="{}"/>',
}
ANIMAL = {"tags": ["pet"], "group": 3, "subgroup": 1}
NAMES = [
    {"annotation": "cat", "hexcode": "1F408", "shortcodes": ["cat"], **ANIMAL},
    {"annotation": "dog", "hexcode": "1F415", "shortcodes": ["dog"], **ANIMAL},
    {"annotation": "waving hand: light skin tone", "hexcode": "1F44B-1F3FB", "group": 1, "subgroup": 15},
    {"annotation": "keycap: #", "hexcode": "0023-FE0F-20E3", "group": 8, "subgroup": 94},
    {"annotation": "one o'clock", "hexcode": "1F550", "group": 5, "subgroup": 60},
    {"annotation": "snowman", "hexcode": "2603-FE0F", "tags": ["cold"], "group": 5, "subgroup": 1},
]  # fmt: skip


def write_clones(root: Path) -> dict[str, Path]:
    """Write all five below `root` and return them by name."""
    clones = {
        name: root / name
        for name in ("noto-emoji", "fluentui-emoji-unicode", "svgmoji", "icon-sets", "fxemoji")
    }
    for code, shape in SHAPES.items():
        lower = code.lower()
        _png(clones["noto-emoji"] / f"png/128/emoji_u{lower.replace('-', '_')}.png", code, "red")
        _png(clones["fluentui-emoji-unicode"] / f"assets/{lower}_3d.png", code, "blue")
        for kind, ink in (("color", "green"), ("flat", "orange")):
            _svg(clones["fluentui-emoji-unicode"] / f"assets/{lower}_{kind}.svg", shape.format(ink))
        for style in ("twemoji", "blob"):
            folder = clones["svgmoji"] / f"packages/svgmoji__{style}/svg"
            _svg(folder / f"{code}.svg", shape.format(INKS[style]))
        if "-" not in code:
            _svg(clones["fxemoji"] / f"svgs/FirefoxEmoji/u{code}-thing.svg", shape.format("navy"))
    _svg(clones["svgmoji"] / "packages/svgmoji__blob/svg/2603-FE0F.svg", SHAPES["1F408"].format("black"))
    _write(clones["svgmoji"] / "packages/svgmoji/emoji.json", json.dumps(NAMES))
    icons = {"cat": {"body": SHAPES["1F408"].format("pink")}, "dog": {"body": SHAPES["1F415"].format("pink")}}
    one_more = {"keycap-number-sign": {"body": "<g/>"}}
    collection = {"prefix": "emojione", "icons": {**icons, **one_more}, "width": 64, "height": 64}
    _write(clones["icon-sets"] / "json/emojione.json", json.dumps(collection))
    return clones


def _png(path: Path, code: str, ink: str) -> None:
    image = Image.new("RGBA", (128, 128))
    box = {"1F408": (4, 24, 123, 103), "1F415": (40, 8, 87, 119)}.get(code, (0, 0, 127, len(code)))
    ImageDraw.Draw(image).rectangle(box, fill=ink)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _svg(path: Path, body: str) -> None:
    _write(path, f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">{body}</svg>')


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
