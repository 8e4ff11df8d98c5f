"""Scenes that training never shows, beside the same pictures as it shows them. Knows no models."""

from __future__ import annotations

from training.data import Picture
from training.scenes import Scene, Scenes, is_held_back, keyed_order


def held_back_combinations(scenes: Scenes, count: int) -> list[Scene]:
    """Canonical scenes of (concept, colour) pairs that `scenes` never shows, at most `count`, of pictures in
    a keyed order; empty where nothing is held back."""
    return [scenes.canonical(*pair) for pair in _held_back_pairs(scenes)[:count]]


def seen_beside(scenes: Scenes, count: int) -> list[Scene]:
    """The pictures of `held_back_combinations`, one by one, on a keyed colour that they are trained on: what
    one gains on these and not on those is learnt by heart."""
    limits, found = scenes.limits, []
    for place_in_order, (picture, _) in enumerate(_held_back_pairs(scenes)[:count]):
        shown = [
            colour
            for colour in limits.colours
            if colour != "white" and not is_held_back(picture.concept, colour, limits.held_colours)
        ] or ["white"]
        found.append(scenes.canonical(picture, shown[place_in_order % len(shown)]))
    return found


def _held_back_pairs(scenes: Scenes) -> list[tuple[Picture, str]]:
    limits, order = scenes.limits, keyed_order(scenes.seed, 0, len(scenes.pictures))
    return [
        (picture, colour)
        for picture in (scenes.pictures[place_in_order] for place_in_order in order)
        for colour in limits.colours
        if is_held_back(picture.concept, colour, limits.held_colours)
    ]
