"""`ciar-train artwork`: a picture folder from clones of public emoji repositories. Knows nothing of training.

Writes `captions.jsonl` and `<style>/<concept>.webp`, lossless RGBA. Artwork is cropped to its alpha box,
scaled so that the longer side is 112 px and centred on 128 x 128: a margin of one token all round.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared.errors import InvalidRequest
from training.clones import (
    CLONES,
    NAMES,
    STYLES,
    Name,
    Names,
    Original,
    commit_of,
    read_names,
    unicode_name,
)
from training.data import PIXELS
from training.scenes import ARTWORK_PX

VISIBLE = 8  # alpha above this counts as artwork
# Skin tones, regional indicators, tags of subdivision flags, keycaps, clock faces.
DROPPED = (
    *range(0x1F3FB, 0x1F400),
    *range(0x1F1E6, 0x1F200),
    *range(0xE0020, 0xE0080),
    0x20E3,
    *range(0x1F550, 0x1F568),
)
DROPPED_PARTS = frozenset(f"{code:04x}" for code in DROPPED)
HAIR = ("1f9b0", "1f9b1", "1f9b2", "1f9b3")  # components, dropped only by themselves
DROPPED_SUBGROUPS = (88, 94, 95)  # media buttons, keycaps, letter and CJK squares
PEOPLE = frozenset(["1f466", "1f467", "1f468", "1f469", "1f9d1"])
GENERIC_FAMILY = "1f9d1-200d-1f91d-200d-1f9d1"


def keeps(concept: str, name: Name) -> bool:
    """Whether a concept is worth drawing: no variants of people, no flags of countries, no mere letters."""
    parts = concept.split("-")
    family = "200d" in parts and sum(part in PEOPLE for part in parts) > 1 and concept != GENERIC_FAMILY
    dropped = bool(DROPPED_PARTS & {*parts}) or concept in HAIR or name.subgroup in DROPPED_SUBGROUPS
    return not family and not dropped


def normalise(image: Image.Image) -> Image.Image | None:
    """Crop to the artwork, scale the longer side to 112 px, centre on 128 x 128; None when nothing shows."""
    rows, columns = np.nonzero(np.asarray(image)[..., 3] > VISIBLE)
    if not rows.size:
        return None
    art = image.crop((int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))
    scale = ARTWORK_PX / max(art.size)
    width, height = (max(1, round(side * scale)) for side in art.size)
    art = art.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (PIXELS, PIXELS))
    canvas.paste(art, ((PIXELS - width) // 2, (PIXELS - height) // 2))
    return canvas


def is_heldout(key: str, styles: int) -> bool:
    """The split of the data set: one (concept, style) pair in twenty, of concepts with at least 3 styles."""
    return styles >= 3 and int(hashlib.sha256(f"ciar-emoji:{key}".encode()).hexdigest()[:8], 16) % 100 < 5


@dataclass(frozen=True)
class Summary:
    """What was made: pictures by style, and what could not be drawn."""

    pictures: Mapping[str, int]
    failed: tuple[str, ...]

    def __str__(self) -> str:
        counts = ", ".join(f"{style} {count}" for style, count in self.pictures.items())
        failed = f"; not drawn: {', '.join(self.failed)}" if self.failed else ""
        return f"{sum(self.pictures.values())} pictures ({counts}){failed}"


def make_artwork(clones: Mapping[str, Path], out: Path) -> Summary:
    """Write a picture folder from clones by name (`CLONES`).

    Concepts drawn in one style only are left out, as are pictures equal to another one of their style. Raises
    InvalidRequest on an unknown or missing clone, or one without artwork.
    """
    unknown = sorted(set(clones) - set(CLONES))
    if unknown or NAMES not in clones:
        problem = f"unknown sources {unknown}" if unknown else f"no source {NAMES!r}, which holds the names"
        raise InvalidRequest(problem, f"allowed: {', '.join(CLONES)}", "give --source NAME=PATH")
    names, rows, failed = read_names(clones[NAMES]), list[dict[str, Any]](), list[str]()
    for style, about in STYLES.items():
        if about.clone in clones:
            found = list(_draw_style(style, clones[about.clone], names, out, failed))
            if not found:
                raise InvalidRequest(f"no {style} artwork in {clones[about.clone]}", "is it the right clone?")
            rows += found
    kept = _settle(rows, out)
    lines = (json.dumps(row, ensure_ascii=False) for row in kept)
    (out / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Summary(Counter(row["style"] for row in kept), tuple(failed))


def _draw_style(
    style: str, clone: Path, names: Names, out: Path, failed: list[str]
) -> Iterator[dict[str, Any]]:
    """Draw what is kept of one style into `out` and yield its rows, without their split."""
    (out / style).mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    commit, done = commit_of(clone), set[str]()
    for original in STYLES[style].find(clone, names):
        name = names.get(original.concept) or unicode_name(original.concept)
        if name is None or not keeps(original.concept, name) or original.concept in done:
            continue
        try:
            drawn = normalise(original.read())
        except ValueError:  # an SVG that cannot be drawn
            drawn = None
        if drawn is None:
            failed.append(f"{style}/{original.concept}")
            continue
        digest = hashlib.sha256(drawn.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            done.add(original.concept)
            drawn.save(out / style / f"{original.concept}.webp", lossless=True)
            yield _row(style, original, name, commit)


def _row(style: str, original: Original, name: Name, commit: str) -> dict[str, Any]:
    about = STYLES[style]
    return {
        "key": f"{style}/{original.concept}", "split": "", "concept": original.concept, "name": name.name,
        "tags": name.tags, "short": name.short, "group": name.group, "subgroup": name.subgroup,
        "style": style, "source": about.source + commit, "license": about.license,
        "attribution": about.attribution, "orig": original.orig,
    }  # fmt: skip


def _settle(rows: list[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """Give every row its split, and drop concepts that only one style draws."""
    styles = Counter(row["concept"] for row in rows)
    for row in rows:
        row["split"] = "heldout" if is_heldout(row["key"], styles[row["concept"]]) else "train"
        if styles[row["concept"]] < 2:
            (out / f"{row['key']}.webp").unlink()
    return [row for row in rows if styles[row["concept"]] > 1]
