"""A picture folder is read whole, or the error names what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import InvalidRequest
from training.data import load_pictures


def test_pictures_come_sorted_with_their_split(artwork: Path) -> None:
    pictures = load_pictures(artwork)
    assert [p.key for p in pictures] == ["flat/1f408", "flat/1f415", "noto/1f408", "noto/1f415"]
    assert pictures[0].concept == "1f408" and pictures[0].rgba.shape == (128, 128, 4)
    assert len(load_pictures(artwork, split="train")) == 3


def test_wrong_folders_are_named(artwork: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"captions\.jsonl"):
        load_pictures(tmp_path)
    with pytest.raises(InvalidRequest, match="unicorn"):
        load_pictures(artwork, concepts=["unicorn"])
    (tmp_path / "captions.jsonl").write_text((artwork / "captions.jsonl").read_text(encoding="utf-8"))
    with pytest.raises(InvalidRequest, match="flat/1f408"):
        load_pictures(tmp_path)
