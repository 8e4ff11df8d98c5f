"""A picture folder small enough to train on in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw


@pytest.fixture(scope="session")
def artwork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two concepts in two styles, one of them held back, as single files with captions.jsonl."""
    folder = tmp_path_factory.mktemp("artwork")
    rows = []
    for style, colour in (("flat", (200, 40, 40)), ("noto", (40, 40, 200))):
        for concept, name in (("1f408", "cat"), ("1f415", "dog")):
            image = Image.new("RGBA", (128, 128))
            box = (16, 24, 112, 112) if name == "cat" else (24, 16, 104, 112)
            ImageDraw.Draw(image).ellipse(box, fill=(*colour, 255))
            (folder / style).mkdir(exist_ok=True)
            image.save(folder / style / f"{concept}.webp", lossless=True)
            split = "heldout" if (style, name) == ("noto", "dog") else "train"
            rows.append({"key": f"{style}/{concept}", "split": split, "name": name, "style": style})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return folder
