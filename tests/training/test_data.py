"""Scenes are pure functions of (seed, index), and say what they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.errors import InvalidRequest
from training.data import CELL, COLOURS, SceneRange, Scenes, compose, load_pictures, place, scene_split


def test_scene_is_a_function_of_seed_and_index(artwork: Path) -> None:
    pictures = load_pictures(artwork)
    first, again = (Scenes(pictures, SceneRange(), 3) for _ in range(2))
    other = Scenes(pictures, SceneRange(), 4)
    same = [(first[i].caption, first[i].pixels.tobytes()) for i in range(40)]
    assert same == [(again[i].caption, again[i].pixels.tobytes()) for i in range(40)]
    assert same != [(other[i].caption, other[i].pixels.tobytes()) for i in range(40)]


def test_caption_tells_no_lies(artwork: Path) -> None:
    scenes = Scenes(load_pictures(artwork), SceneRange(), 0)
    names = {picture.key: picture for picture in scenes.pictures}
    said = [scenes[i] for i in range(200)]
    for scene in said:
        corner = tuple(int(v) for v in scene.pixels[0, 0])
        assert corner == scene.background
        if not scene.caption:
            continue
        assert names[scene.key].name in scene.caption
        if " style" in scene.caption:
            assert f"{names[scene.key].style} style" in scene.caption
        if "background" in scene.caption:
            colour = scene.caption.split(" on a ")[1].removesuffix(" background")
            assert COLOURS[colour] == scene.background
    empty = sum(not scene.caption for scene in said) / len(said)
    assert 0.03 < empty < 0.2


def test_every_picture_is_visited_once_per_epoch(artwork: Path) -> None:
    scenes = Scenes(load_pictures(artwork), SceneRange(), 0)
    for epoch in range(3):
        keys = [scenes[4 * epoch + i].key for i in range(4)]
        assert sorted(keys) == sorted(p.key for p in scenes.pictures)


def test_place_shifts_by_whole_cells_and_mirrors() -> None:
    rgba = np.zeros((128, 128, 4), np.uint8)
    rgba[40:48, 16:24] = 255
    moved = place(rgba, 1.0, (CELL, -CELL), mirror=False)
    assert moved[48:56, 8:16].min() == 255 and moved.astype(int).sum() == rgba.astype(int).sum()
    assert place(rgba, 1.0, (0, 0), mirror=True)[40:48, 104:112].min() == 255


def test_compose_blends_straight_alpha() -> None:
    rgba = np.array([[[200, 100, 0, 128]]], np.uint8)
    assert compose(rgba, (0, 0, 255)).tolist() == [[[100, 50, 127]]]


def test_held_back_pictures_are_never_trained_on(artwork: Path) -> None:
    train, held_back = scene_split(artwork, None, SceneRange(), 0)
    assert {p.key for p in held_back.pictures} == {"noto/1f415"}
    assert not {p.key for p in train.pictures} & {p.key for p in held_back.pictures}


def test_wrong_folders_are_named(artwork: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"captions\.jsonl"):
        load_pictures(tmp_path)
    with pytest.raises(InvalidRequest, match="unicorn"):
        load_pictures(artwork, concepts=["unicorn"])
    (tmp_path / "captions.jsonl").write_text((artwork / "captions.jsonl").read_text(encoding="utf-8"))
    with pytest.raises(InvalidRequest, match="flat/1f408"):
        load_pictures(tmp_path)
