"""What a prompt leaves open: the style, by the seed, among those that a thing was learnt in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shared.models.checkpoint import load_model, save_model
from shared.models.families.emoji import EmojiModel
from shared.models.styles import OpenStyles
from training.presets import preset

STYLES = OpenStyles(("flat", "noto", "twemoji"), {"red apple": ("flat",), "cab": ("flat", "noto", "twemoji")})
WORDS = sorted(["a", "cat", "red", "apple", "cab", "style", "on", "pink", "background", *STYLES.known])


def styles_of(prompt: str) -> set[str]:
    whole = [STYLES.complete(prompt, seed) for seed in range(9)]
    return {text.removeprefix(f"{prompt}, ").removesuffix(" style") for text in whole}


def test_seeds_in_a_row_go_through_all_styles() -> None:
    drawn = [STYLES.complete("a cat", seed) for seed in range(6)]
    assert drawn[:3] == drawn[3:] and {*drawn} == {f"a cat, {style} style" for style in STYLES.known}
    firsts = {STYLES.complete(f"a cat {number}", 0).split(", ")[1] for number in range(20)}
    assert len(firsts) == 3, "one seed draws prompts in different styles"


@pytest.mark.parametrize("prompt", ["a noto style cat", "a cat, Twemoji style", "flat cat"])
def test_a_style_that_is_named_stays(prompt: str) -> None:
    assert STYLES.complete(prompt, 5) == prompt
    again = STYLES.complete("a cat", 5)
    assert STYLES.complete(again, 6) == again


def test_a_style_in_which_a_thing_was_never_drawn_is_not_chosen() -> None:
    assert styles_of("a red apple") == {"noto", "twemoji"}
    assert styles_of("an apple, red") == styles_of("a cat") == {*STYLES.known}
    assert styles_of("a cab") == {*STYLES.known}, "drawn in none: any will do"
    assert OpenStyles().complete("a cat", 1) == "a cat"


def test_a_model_completes_what_it_has_room_for_and_keeps_its_styles(tmp_path: Path) -> None:
    shape = replace(preset("tiny").model, prefix_len=5)
    model = EmojiModel(shape, WORDS, STYLES)
    assert model.complete("a cat", 0) == STYLES.complete("a cat", 0)
    assert model.complete("a dog", 0) == "a dog", "nothing it knows is named"
    assert model.complete("a red cat pink", 0) == "a red cat pink", "no room for two words more"
    save_model(tmp_path / "cloud", model)
    again = load_model(tmp_path / "cloud")
    assert again.complete("a red apple", 4) == STYLES.complete("a red apple", 4)
    assert model.with_layers(1).complete("a cat", 2) == STYLES.complete("a cat", 2)
    assert EmojiModel(shape, WORDS).complete("a cat", 0) == "a cat"
