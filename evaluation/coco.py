"""Captions of COCO 2017 as prompts, from the file its authors publish (`captions_val2017.json`)."""

from __future__ import annotations

import json
from pathlib import Path

from shared.errors import InvalidRequest


def read_captions(file: Path, count: int | None = None) -> list[str]:
    """One caption a picture, its first, for the first `count` pictures by id.

    Raises InvalidRequest where the file is missing or of another layout.
    """
    if not file.is_file():
        raise InvalidRequest(f"no file {file}", "COCO's captions come as annotations/captions_val2017.json")
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        first: dict[int, tuple[int, str]] = {}
        for entry in told["annotations"]:
            mine = (int(entry["id"]), str(entry["caption"]).strip())
            first[entry["image_id"]] = min(mine, first.get(entry["image_id"], mine))
        pictures = sorted(picture["id"] for picture in told["images"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"{file} holds no COCO captions", f"{type(error).__name__}: {error}") from error
    captions = [first[picture][1] for picture in pictures if picture in first]
    if not captions:
        raise InvalidRequest(f"{file} holds no captions", "an empty list of annotations")
    return captions[:count]
