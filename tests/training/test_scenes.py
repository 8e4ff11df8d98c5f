"""Scenes are pure functions of (seed, index), show what they say, and never show what is held back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shared.errors import InvalidRequest
from shared.models.unsaid import Unsaid
from training.captions import Facts
from training.data import CELL, PIXELS, Picture, load_pictures
from training.held_back import held_back_combinations, seen_beside
from training.presets import ALL_SCENES, EVERYDAY_SCENES, PRESETS
from training.scenes import (
    CANONICAL,
    SceneRange,
    Scenes,
    Thing,
    compose,
    is_held_back,
    place,
    scene_split,
)
from training.words import COLOURS

NAMES = ("cat", "bus", "red apple", "left arrow", "face with open eyes and hand over mouth", "owl")
INKS = ((250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10), (10, 250, 250), (250, 10, 250))


def pictures(styles: Sequence[str] = ("flat", "noto")) -> list[Picture]:
    """Six concepts in each style: full-size discs, each of its own ink."""
    y, x = np.mgrid[:PIXELS, :PIXELS] - 63.5
    disc = (x**2 + y**2 < 56**2)[..., None]
    found = []
    for style in styles:
        for index, (name, ink) in enumerate(zip(NAMES, INKS, strict=True)):
            rgba = np.where(disc, np.array([*ink, 255]), 0).astype(np.uint8)
            found.append(Picture(f"{style}/1f{index:03x}", "train", name, style, rgba))
    return found


def centroid(pixels: np.ndarray, ink: tuple[int, int, int]) -> np.ndarray:
    """Mean (row, column) of the pixels that have exactly this ink."""
    return np.argwhere((pixels == ink).all(-1)).mean(0)


@pytest.mark.parametrize("limits", [SceneRange(), ALL_SCENES])
def test_scene_is_a_function_of_seed_and_index(limits: SceneRange) -> None:
    first, again = (Scenes(pictures(), limits, 3) for _ in range(2))
    other = Scenes(pictures(), limits, 4)
    same = [(first[i].caption, first[i].pixels.tobytes()) for i in range(30)]
    backwards = [(again[i].caption, again[i].pixels.tobytes()) for i in reversed(range(30))]
    assert same == backwards[::-1]
    assert same != [(other[i].caption, other[i].pixels.tobytes()) for i in range(30)]


def test_the_scenes_of_the_first_preset_stay_what_they_were(artwork: Path) -> None:
    """A run of this preset can be resumed only while its scenes are the same to the bit."""
    scenes, total = Scenes(load_pictures(artwork), PRESETS["first"].scenes, 0), hashlib.sha256()
    for index in range(64):
        total.update(scenes[index].caption.encode() + b"|" + scenes[index].pixels.tobytes())
    assert total.hexdigest()[:16] == "b96cede5f0fe95ba"


@pytest.mark.parametrize("limits", [SceneRange(), EVERYDAY_SCENES, ALL_SCENES])
def test_things_stand_where_the_layout_says(limits: SceneRange) -> None:
    scenes = Scenes(pictures(), limits, 0)
    inks = {p.key: ink for p, ink in zip(pictures(), INKS * 2, strict=True)}
    for index in range(60):
        layout = scenes.layout(index)
        scene = scenes.draw(layout)
        assert scene.background == layout.background and scene.caption == layout.caption
        assert not layout.facts.colour or scene.background == COLOURS[layout.facts.colour]
        front = layout.things[-1]
        middle = centroid(scene.pixels, inks[front.key])
        assert np.abs(middle - (63.5 + np.array(front.shift))).max() < 1
        rows = np.argwhere((scene.pixels == inks[front.key]).all(-1))
        # Antialiased edges are not exactly the ink.
        assert front.size - 8 <= np.ptp(rows[:, 0]) <= front.size


def test_two_things_stand_as_they_are_related() -> None:
    scenes = Scenes(pictures(), replace(ALL_SCENES, pairs=1.0), 0)
    ink = {name: value for name, value in zip(NAMES, INKS, strict=True)}
    seen = set()
    for index in range(80):
        layout = scenes.layout(index)
        if len(layout.things) == 1:
            assert len(layout.facts.names[0].split()) > 3
            continue
        first, second = (centroid(scenes.draw(layout).pixels, ink[name]) for name in layout.facts.names)
        down, across = second - first
        assert (across if layout.facts.relation == "left of" else down) > 20
        assert all(thing.size >= 80 for thing in layout.things)
        assert len({thing.key.split("/")[0] for thing in layout.things}) == 1
        seen.add(layout.facts.relation)
    assert seen == {"left of", "above"}


def test_pairs_are_at_most_fifteen_in_a_hundred_and_only_where_asked() -> None:
    share = {}
    for name, preset in PRESETS.items():
        scenes = Scenes(pictures(), preset.scenes, 0)
        share[name] = np.mean([len(scenes.layout(i).things) == 2 for i in range(1200)])
    assert 0.04 < share.pop("all") < 0.15 and 0.04 < share.pop("tiny") < 0.15
    assert not any(share.values())


def test_every_picture_is_laid_out_once_per_epoch() -> None:
    scenes = Scenes(pictures(), ALL_SCENES, 0)
    for epoch in range(3):
        keys = [scenes.layout(12 * epoch + i).things[0].key for i in range(12)]
        assert sorted(keys) == sorted(p.key for p in scenes.pictures)


def test_handed_pictures_are_never_mirrored() -> None:
    scenes = Scenes(pictures(), EVERYDAY_SCENES, 0)
    mirrored = {scenes.layout(i).facts.names[0] for i in range(400) if scenes.layout(i).things[0].mirror}
    assert mirrored == set(NAMES) - {"left arrow", "bus"}


def test_held_back_combinations_are_never_shown() -> None:
    limits = replace(ALL_SCENES, held_colours=0.3, white=0.1, pairs=0.3)
    scenes = Scenes(pictures(), limits, 0)
    concepts = {p.name: p.concept for p in scenes.pictures}
    shown = set()
    for index in range(3000):
        facts = scenes.layout(index).facts
        shown |= {(concepts[name], facts.colour) for name in facts.names}
    allowed = {
        (c, colour) for c in concepts.values() for colour in COLOURS if not is_held_back(c, colour, 0.3)
    }
    assert shown == allowed and len(allowed) < len(concepts) * len(COLOURS)
    held = held_back_combinations(scenes, 100)
    assert {(s.key.split("/")[1], s.background) for s in held} == {
        (c, COLOURS[colour]) for c in concepts.values() for colour in COLOURS if is_held_back(c, colour, 0.3)
    }
    assert held_back_combinations(Scenes(pictures(), SceneRange(), 0), 5) == []
    beside = seen_beside(scenes, 100)
    assert [s.key for s in beside] == [s.key for s in held]
    names = {value: name for name, value in COLOURS.items()}
    assert all((s.key.split("/")[1], names[s.background]) in allowed for s in beside)
    assert all(s.background != COLOURS["white"] for s in beside)


def test_blends_lie_between_two_colours_and_are_not_spoken_of() -> None:
    limits = replace(EVERYDAY_SCENES, colours=("white", "black"), white=0.0, blends=0.5)
    scenes = Scenes(pictures(), limits, 0)
    layouts = [scenes.layout(index) for index in range(400)]
    blends = [layout for layout in layouts if not layout.facts.colour]
    assert 0.4 < len(blends) / len(layouts) < 0.6
    assert not any("background" in layout.caption or "black" in layout.caption for layout in blends)
    low, high = np.array(COLOURS["black"]), np.array(COLOURS["white"])
    values = np.array([layout.background for layout in blends])
    assert (values >= low).all() and (values <= high).all() and len({*map(tuple, values.tolist())}) > 40


def test_one_pair_in_twenty_is_held_back() -> None:
    pairs = [(f"1f{index:03x}", colour) for index in range(1455) for colour in COLOURS if colour != "white"]
    share = np.mean([is_held_back(*pair, ALL_SCENES.held_colours) for pair in pairs])
    assert 0.045 < share < 0.055
    assert not is_held_back("1f408", "white", 1.0)


def test_held_back_pictures_are_never_trained_on(artwork: Path) -> None:
    limits = replace(ALL_SCENES, pairs=1.0)
    train, held_back = scene_split(artwork, None, limits, 0)
    assert {p.key for p in held_back.pictures} == {"noto/1f415"} and held_back.limits == CANONICAL
    shown = {thing.key for index in range(200) for thing in train.layout(index).things}
    assert shown == {"flat/1f408", "flat/1f415", "noto/1f408"}


def test_place_shifts_by_whole_cells_and_mirrors() -> None:
    rgba = np.zeros((128, 128, 4), np.uint8)
    rgba[40:48, 16:24] = 255
    moved = place(rgba, Thing("", shift=(CELL, -CELL)))
    assert moved[48:56, 8:16].min() == 255 and moved.astype(int).sum() == rgba.astype(int).sum()
    assert place(rgba, Thing("", mirror=True))[40:48, 104:112].min() == 255


def test_compose_blends_straight_alpha() -> None:
    rgba = np.array([[[200, 100, 0, 128]]], np.uint8)
    assert compose(rgba, (0, 0, 255)).tolist() == [[[100, 50, 127]]]


def test_unknown_colours_are_named() -> None:
    with pytest.raises(InvalidRequest, match="beige"):
        SceneRange(colours=("white", "beige"))
    assert Facts(("cat",), "flat", "white").relation == ""


def test_what_a_prompt_leaves_unsaid_is_how_things_are_drawn() -> None:
    drawn = [p for p in pictures() if p.key != "noto/1f001"]  # no bus
    unsaid = Scenes(drawn, EVERYDAY_SCENES, 0).unsaid()
    assert unsaid == Unsaid(("flat", "noto"), {"bus": ("noto",)}, "white")
    taxi = [*drawn, replace(drawn[0], key="flat/x", name="taxi")]
    assert Scenes(taxi, EVERYDAY_SCENES, 0).unsaid().unlearnt["cab"] == ("noto",), "an alias"
    assert not Scenes(drawn, replace(EVERYDAY_SCENES, white=0.0), 0).unsaid().background
