"""Where emoji artwork comes from: the layouts, licences and names of public repositories. Knows nothing of
what is made of it.

A source is a local clone. One clone may hold several styles; svgmoji holds the names and tags of all.
"""

from __future__ import annotations

import importlib
import io
import json
import re
import subprocess
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from shared.errors import InvalidRequest

SVG_WIDTH = 256  # pixels, before scaling down
PICTOGRAPHS = 0x1F000  # first code point of Unicode's blocks of pictographs


@dataclass(frozen=True)
class Original:
    """One drawing of a clone: the concept in lower-case hex, where it stands, and how to get its RGBA."""

    concept: str
    orig: str
    read: Callable[[], Image.Image]


@dataclass(frozen=True)
class Name:
    """What a concept is called: CLDR short name and keywords, emojibase's shortcodes and numbering."""

    name: str
    tags: tuple[str, ...]
    short: tuple[str, ...]
    group: int | None
    subgroup: int | str | None


Names = Mapping[str, Name]


@dataclass(frozen=True)
class Style:
    """One style: the clone it is in, whom to credit, and how to list its drawings."""

    clone: str
    source: str
    license: str
    attribution: str
    find: Callable[[Path, Names], Iterator[Original]]


def concept_of(codes: str) -> str | None:
    """Hex code points joined by "-" or "_" in canonical form, without variation selectors; None when they are
    not."""
    parts = re.split("[-_]", codes)
    if not all(re.fullmatch("[0-9A-Fa-f]{2,6}", part) for part in parts):
        return None
    padded = (f"{int(part, 16):04x}" for part in parts)
    return "-".join(part for part in padded if part not in ("fe0f", "fe0e")) or None


def read_png(path: Path) -> Image.Image:
    """A picture file as RGBA."""
    with Image.open(path) as image:
        return image.convert("RGBA")


def render_svg(svg: str) -> Image.Image:
    """Draw an SVG, SVG_WIDTH pixels wide, without system fonts: RGBA.

    Raises InvalidRequest where resvg-py is not installed, ValueError on an SVG it cannot draw.
    """
    try:
        resvg = importlib.import_module("resvg_py")
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            "drawing SVG artwork needs resvg-py", "it is an optional extra", 'pip install "ciar[artwork]"'
        ) from error
    drawn: bytes = resvg.svg_to_bytes(svg_string=svg, width=SVG_WIDTH, skip_system_fonts=True)
    return Image.open(io.BytesIO(drawn)).convert("RGBA")


def _files(pattern: str, code: str) -> Callable[[Path, Names], Iterator[Original]]:
    """Drawings in files: `pattern` is a glob, `code` a regular expression with the code points as group 1."""

    def find(clone: Path, names: Names) -> Iterator[Original]:
        for path in sorted(clone.glob(pattern)):
            match = re.fullmatch(code, path.name)
            concept = concept_of(match[1]) if match else None
            if concept:
                yield Original(concept, path.relative_to(clone).as_posix(), _reader(path))

    return find


def _reader(path: Path) -> Callable[[], Image.Image]:
    if path.suffix == ".svg":
        return lambda: render_svg(path.read_text(encoding="utf-8"))
    return lambda: read_png(path)


def _iconify(clone: Path, names: Names) -> Iterator[Original]:
    """EmojiTwo as Iconify keeps it: bodies of SVGs under slugs of CLDR names."""
    file = clone / "json/emojione.json"
    if not file.is_file():
        return
    icons = json.loads(file.read_text(encoding="utf-8"))
    by_slug = {slug(name.name): concept for concept, name in names.items()}
    for key, icon in sorted(icons["icons"].items()):
        if key in by_slug:
            size = [icon.get(side, icons.get(side, 16)) for side in ("width", "height")]
            yield Original(by_slug[key], key, _body_reader(icon["body"], *size))


def _body_reader(body: str, width: float, height: float) -> Callable[[], Image.Image]:
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return lambda: render_svg(f'<svg {spaces} viewBox="0 0 {width} {height}">{body}</svg>')


def slug(name: str) -> str:
    """A name as Iconify writes it."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


FLUENT = ("fluentui-emoji-unicode", "microsoft/fluentui-emoji via shuding/fluentui-emoji-unicode", "MIT")
FLUENT_CREDIT = "Fluent Emoji, (c) Microsoft Corporation"
SVGMOJI = "packages/svgmoji__{}/svg/*.svg"
STYLES: dict[str, Style] = {
    "noto": Style(
        "noto-emoji", "googlefonts/noto-emoji", "Apache-2.0", "Noto Emoji, (c) Google Inc. and its authors",
        _files("png/128/*.png", r"emoji_u([0-9a-f_]+)\.png"),
    ),
    "3d": Style(*FLUENT, FLUENT_CREDIT, _files("assets/*_3d.png", r"(.+)_3d\.png")),
    "fluent": Style(*FLUENT, FLUENT_CREDIT, _files("assets/*_color.svg", r"(.+)_color\.svg")),
    "flat": Style(*FLUENT, FLUENT_CREDIT, _files("assets/*_flat.svg", r"(.+)_flat\.svg")),
    "twemoji": Style(
        "svgmoji", "twitter/twemoji via svgmoji/svgmoji", "CC-BY-4.0",
        "Copyright 2020 Twitter, Inc and other contributors, graphics licensed under CC-BY 4.0: "
        "https://creativecommons.org/licenses/by/4.0/",
        _files(SVGMOJI.format("twemoji"), r"([0-9A-F-]+)\.svg"),
    ),
    "blob": Style(
        "svgmoji", "C1710/blobmoji via svgmoji/svgmoji", "Apache-2.0", "Blobmoji by C1710 and Google Inc.",
        _files(SVGMOJI.format("blob"), r"([0-9A-F-]+)\.svg"),
    ),
    "emojitwo": Style(
        "icon-sets", "EmojiTwo/emojitwo 2.3 via iconify/icon-sets", "CC-BY-4.0",
        "Emoji artwork is provided by Emojitwo (https://emojitwo.github.io/), originally released as "
        "Emojione 2.2 (https://www.emojione.com) by Ranks.com with contributions from the Emojitwo "
        "community and is licensed under CC-BY 4.0",
        _iconify,
    ),
    "fxemoji": Style(
        "fxemoji", "mozilla/fxemoji", "CC-BY-4.0", "FxEmojis, (c) Mozilla Foundation",
        _files("svgs/FirefoxEmoji/*.svg", r"u([0-9A-F]+(?:-[0-9A-F]{4,6})*)-.*\.svg"),
    ),
}  # fmt: skip
NAMES = "svgmoji"  # the clone that holds names and tags
CLONES = tuple(dict.fromkeys(style.clone for style in STYLES.values()))


def read_names(clone: Path) -> dict[str, Name]:
    """Names by concept from svgmoji's `emoji.json`. Raises InvalidRequest when it is not there."""
    file = clone / "packages/svgmoji/emoji.json"
    if not file.is_file():
        raise InvalidRequest(f"no packages/svgmoji/emoji.json in {clone}", "names and tags come from there")
    rows = json.loads(file.read_text(encoding="utf-8"))
    return {concept: _name(row) for row in rows if (concept := concept_of(row["hexcode"]))}


def _name(row: dict[str, Any]) -> Name:
    tags, short = (tuple(row.get(key, ())) for key in ("tags", "shortcodes"))
    return Name(row["annotation"], tags, short, row.get("group"), row.get("subgroup"))


def unicode_name(concept: str) -> Name | None:
    """The Unicode name of a single pictograph newer than the name list; None where it has none."""
    if "-" in concept or int(concept, 16) < PICTOGRAPHS:
        return None
    name = unicodedata.name(chr(int(concept, 16)), "").lower()
    return Name(name, (), (), None, "extra") if name else None


def commit_of(clone: Path) -> str:
    """ "@" and ten digits of the commit that is checked out; "" for a folder that is no clone."""
    if not (clone / ".git").exists():
        return ""
    command = ["git", "-C", str(clone), "rev-parse", "--short=10", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"@{found.stdout.strip()}" if found.returncode == 0 else ""
