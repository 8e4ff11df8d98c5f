"""Captions tell no lies, keep to the words they may use, and say the same things in many ways."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from shared.errors import InvalidRequest
from shared.models.text import split_words
from training.captions import CaptionRange, Facts, aliases, article, caption, is_plural, vocabulary
from training.data import keyed_generator
from training.presets import ALL_SCENES, EVERYDAY, PRESETS
from training.words import ALIASES, COLOUR_SYNONYMS, COLOURS, INVERSE, RELATIONS

VARIED = ALL_SCENES.captions
SAYS_RELATION = {phrase: relation for relation, phrases in RELATIONS.items() for phrase in phrases}
SAYS_COLOUR = {said: colour for colour in COLOURS for said in (colour, *COLOUR_SYNONYMS.get(colour, ()))}


def said(facts: Facts, limits: CaptionRange = VARIED, count: int = 400) -> list[str]:
    """`count` captions of the same facts."""
    return [caption(facts, limits, keyed_generator(0, index)) for index in range(count)]


def test_the_sentences_of_the_front_page_are_among_them() -> None:
    found = set(said(Facts(("cat",), "twemoji", "light blue"), count=4000))
    for text in (
        "a cat on a light blue background, twemoji style",
        "a twemoji style cat on a light blue background",
        "cat, light blue background, twemoji style",
        "a kitten",
        "",
    ):
        assert text in found or text == "a kitten", text
    assert any("kitten" in text for text in said(Facts(("cat face",), "twemoji", "white")))
    assert len(found) > 150


@pytest.mark.parametrize("colour", ["white", "light blue", "orange", "purple"])
def test_colours_and_styles_are_told_truly(colour: str) -> None:
    captions = said(Facts(("red apple",), "flat", colour))
    backgrounds = [match[1] for text in captions if (match := re.search(r"([a-z ]+) background", text))]
    for text in backgrounds:
        told = re.sub(r".*\b(on|with) (an? )?", "", text).strip()
        assert SAYS_COLOUR[told] == colour, text
    assert all("flat style" in text or "style of flat" in text for text in captions if "style" in text)
    empty = sum(not text for text in captions) / len(captions)
    assert 0.05 < empty < 0.16 and 0.1 < len(backgrounds) / len(captions) < 0.8
    assert not any(" a orange" in text or " an purple" in text for text in captions)


@pytest.mark.parametrize("relation", ["left of", "above"])
def test_relations_hold_in_both_directions(relation: str) -> None:
    facts = Facts(("cat", "bus"), "noto", "pink", relation=relation)
    told = set()
    for text in said(facts):
        match = re.search(r"(cat|bus) (.+?) (?:an? |the )?(?:cat|bus)\b", text)
        if not match or match[2] not in SAYS_RELATION:
            continue
        truth = relation if match[1] == "cat" else INVERSE[relation]
        assert SAYS_RELATION[match[2]] == truth, text
        told.add(match[2])
    assert told == {*RELATIONS[relation], *RELATIONS[INVERSE[relation]]}


def test_size_and_place_are_said_only_where_they_are_clear() -> None:
    words = re.compile(r"\b(small|little|large|big|left|right|top|bottom|corner)\b")
    assert not any(words.search(text) for text in said(Facts(("cat",), "flat", "white")))
    clear = said(Facts(("cat",), "flat", "white", size="small", place="top left"))
    assert any(re.search("small|little", text) for text in clear) and any("top left" in t for t in clear)
    assert not any(re.search("large|big|right|bottom", text) for text in clear)


@pytest.mark.parametrize("name", PRESETS)
def test_every_caption_fits_its_model_and_its_vocabulary(name: str) -> None:
    preset = PRESETS[name]
    limits = preset.scenes.captions
    assert limits.words <= preset.model.prefix_len
    names = [
        "cat",
        "T-Rex",
        "face with open eyes and hand over mouth",
        "woman\N{RIGHT SINGLE QUOTATION MARK}s hat",
    ]
    styles, colours = ["flat", "3d"], preset.scenes.colours
    words = set(vocabulary(names, styles, colours, limits))
    for index in range(600):
        rng = keyed_generator(1, index)
        facts = Facts(
            (names[index % 4],), styles[index % 2], colours[index % len(colours)], "small", "bottom right"
        )
        if preset.scenes.pairs and index % 3 == 0:
            facts = replace(facts, names=("T-Rex", "cat"), relation="above", size="", place="")
        spoken = split_words(caption(facts, limits, rng))
        assert len(spoken) <= limits.words and set(spoken) <= words


def test_plain_captions_are_those_of_the_first_preset() -> None:
    plain = CaptionRange()
    facts = Facts(("octopus",), "flat", "pink")
    assert {text for text in said(facts, plain) if text} == {
        f"{a}octopus{s}{c}"
        for a in ("", "an ")
        for s in ("", " flat style")
        for c in ("", " on a pink background")
    }
    with pytest.raises(InvalidRequest, match="plain grammar"):
        caption(Facts(("cat", "bus"), "flat", "pink"), plain, keyed_generator(0, 0))
    with pytest.raises(InvalidRequest, match="rhymed"):
        CaptionRange(grammar="rhymed")


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("apple", "an"), ("cat", "a"), ("unicorn", "a"), ("hourglass", "an"), ("X-ray", "an"), ("UFO", "a")],
)
def test_articles_follow_the_sound(phrase: str, expected: str) -> None:
    assert article(phrase) == expected


def test_plurals_take_no_article() -> None:
    assert all(map(is_plural, ["glasses", "people with bunny ears", "cherries"]))
    singular = ["face with tears of joy", "bus", "cactus", "compass", "person lifting weights", "rhinoceros"]
    assert not any(map(is_plural, singular))


def test_aliases_name_a_hundred_nouns() -> None:
    assert len(ALIASES) > 100 and len(EVERYDAY) == len(set(EVERYDAY)) > 140
    assert "car" in aliases("automobile") and "dog" in aliases("dog face") and not aliases("cactus")
