"""What a prompt leaves unsaid: the style, by the seed, of those a thing was learnt in; the background."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shared.models.checkpoint import load_model, save_model
from shared.models.families.emoji import EmojiModel
from shared.models.unsaid import Unsaid
from training.presets import preset

STYLES = ("flat", "noto", "twemoji")
UNSAID = Unsaid(STYLES, {"red apple": ("flat",), "cab": STYLES}, "white")
WORDS = sorted(["a", "cat", "red", "apple", "cab", "style", "on", "pink", "white", "background", *STYLES])


def styles_of(prompt: str) -> set[str]:
    additions = [UNSAID.additions(prompt, seed)[0] for seed in range(9)]
    return {text.removeprefix(", ").removesuffix(" style") for text in additions}


def test_seeds_in_a_row_go_through_all_styles() -> None:
    drawn = [UNSAID.additions("a cat", seed)[0] for seed in range(6)]
    assert drawn[:3] == drawn[3:] and {*drawn} == {f", {style} style" for style in STYLES}
    firsts = {UNSAID.additions(f"a cat {number}", 0)[0] for number in range(20)}
    assert len(firsts) == 3, "one seed draws prompts in different styles"


@pytest.mark.parametrize("prompt", ["a noto style cat on pink", "Flat cat, red background", "white flat cat"])
def test_what_is_said_stays(prompt: str) -> None:
    assert UNSAID.additions(prompt, 5) == []


def test_each_part_is_added_where_it_is_missing() -> None:
    assert UNSAID.additions("a flat cat", 3) == [" on a white background"]
    [style] = UNSAID.additions("a cat on pink", 3)
    assert style.endswith(" style")
    assert Unsaid(STYLES).additions("a cat", 0)[1:] == [] == Unsaid().additions("a cat", 0)


def test_a_style_in_which_a_thing_was_never_drawn_is_not_chosen() -> None:
    assert styles_of("a red apple") == {"noto", "twemoji"}
    assert styles_of("an apple, red") == styles_of("a cat") == {*STYLES}
    assert styles_of("a cab") == {*STYLES}, "drawn in none: any will do"


def test_a_model_completes_what_it_has_room_for_and_keeps_it(tmp_path: Path) -> None:
    shape = replace(preset("tiny").model, prefix_len=8)
    model = EmojiModel(shape, WORDS, UNSAID)
    whole = "a cat" + "".join(UNSAID.additions("a cat", 0))
    assert model.complete("a cat.", 0) == model.complete(whole, 1) == whole
    assert model.complete("a dog", 0) == "a dog", "nothing it knows is named"
    assert model.complete("a red cat pink", 0) == "a red cat pink" + UNSAID.additions("a red cat pink", 0)[0]
    full = "a cat a cat a cat red"
    assert model.complete(full, 0) == full, "no room for two words more"
    save_model(tmp_path / "cloud", model)
    again = load_model(tmp_path / "cloud")
    assert again.complete("a red apple", 4) == model.complete("a red apple", 4) != "a red apple"
    assert model.with_layers(1).complete("a cat", 2) == model.complete("a cat", 2)
    assert EmojiModel(shape, WORDS).complete("a cat", 0) == "a cat"
