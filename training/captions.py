"""Captions: some of what is true of a scene, said in one of many ways. Knows nothing of pixels.

A caption never says what is not so, and never more words than the model has prefix rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from shared.errors import InvalidRequest
from shared.models.text import split_words
from training.words import (
    ALIASES,
    BACKGROUNDS,
    COLOUR_SYNONYMS,
    INVERSE,
    PLACES,
    RELATIONS,
    SIZES,
    STYLES_AFTER,
    STYLES_BEFORE,
    UNRELATED,
)

# Written with a vowel but spoken with a consonant, and the other way round.
SPOKEN_CONSONANT = re.compile(r"^(unicorn|uniform|ufo|euro|one|u-)")
SPOKEN_VOWEL = re.compile(r"^(hourglass|x-ray|suv)")
HEAD_ENDS = re.compile(r" (\w+ing|with|without|in|on|of|over|and)\b.*")
PLURAL = re.compile(r"(?<![suio])s$|^(people|men|women)$")


@dataclass(frozen=True)
class CaptionRange:
    """How much captions say, as shares of captions, and how many ways they have of saying it; the defaults
    are the plain captions of the preset `first`."""

    grammar: str = "plain"  # plain | varied
    words: int = 16  # words at most; the prefix rows of the model
    empty: float = 0.1
    article: float = 0.6
    style: float = 0.6
    colour: float = 0.7  # of backgrounds that are not white
    white: float = 0.3
    alias: float = 0.0  # of names that have aliases
    size: float = 0.0  # where a thing is clearly small or large
    place: float = 0.0  # where a thing is clearly off the centre
    relation: float = 0.0  # of two things; the rest are joined by "and"

    def __post_init__(self) -> None:
        if self.grammar not in GRAMMARS:
            raise InvalidRequest(f"unknown grammar {self.grammar!r}", f"allowed: {', '.join(GRAMMARS)}")


@dataclass(frozen=True)
class Facts:
    """What is true of a scene: the CLDR names of one or two things, and words of the tables ("" = nothing to
    say). `relation` is what the first thing is to the second."""

    names: tuple[str, ...]
    style: str
    colour: str
    size: str = ""
    place: str = ""
    relation: str = ""


def plain(facts: Facts, limits: CaptionRange, rng: np.random.Generator) -> str:
    """Say the name always, the style and the background sometimes, in this order; some captions say nothing.

    Raises InvalidRequest on two things, which this grammar has no words for.
    """
    if len(facts.names) != 1:
        raise InvalidRequest("the plain grammar names one thing", f"these are {facts.names}")
    if rng.random() < limits.empty:
        return ""
    words = [facts.names[0].lower()]
    if rng.random() < limits.article:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    if rng.random() < limits.style:
        words.append(f"{facts.style} style")
    if facts.colour and rng.random() < (limits.white if facts.colour == "white" else limits.colour):
        words.append(f"on a {facts.colour} background")
    return " ".join(words)


def varied(facts: Facts, limits: CaptionRange, rng: np.random.Generator) -> str:
    """Say the names always; style, background, size, place and relation sometimes, in any order.

    "a twemoji style cat on a light blue background", "cat, light blue background, flat style".
    """
    if rng.random() < limits.empty:
        return ""
    style = facts.style if rng.random() < limits.style else ""
    before = bool(style) and rng.random() < 0.4
    size = facts.size if facts.size and rng.random() < limits.size else ""
    subject = _subject(facts, limits, (style if before else "", size), rng)
    rest = [_pick(STYLES_AFTER, rng).format(style)] if style and not before else []
    if facts.colour and rng.random() < (limits.white if facts.colour == "white" else limits.colour):
        rest.append(_background(facts.colour, rng))
    if facts.place and rng.random() < limits.place:
        rest.append(_pick(PLACES[facts.place], rng))
    rest = [rest[index] for index in rng.permutation(len(rest))]
    while rest and len(split_words(" ".join([subject, *rest]))) > limits.words:
        rest.pop()
    return _joined(subject, rest, rng)


Grammar = Callable[[Facts, CaptionRange, np.random.Generator], str]
GRAMMARS: Mapping[str, Grammar] = MappingProxyType({"plain": plain, "varied": varied})


def caption(facts: Facts, limits: CaptionRange, rng: np.random.Generator) -> str:
    """One caption by the grammar of `limits`; "" says nothing."""
    return GRAMMARS[limits.grammar](facts, limits, rng)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _subject(
    facts: Facts, limits: CaptionRange, adjectives: tuple[str, str], rng: np.random.Generator
) -> str:
    style, size = adjectives
    things = [_thing(name, limits, ("", ""), rng) for name in facts.names[1:]]
    things.insert(0, _thing(facts.names[0], limits, (style, size), rng))
    if len(things) == 1:
        return things[0]
    relation, told = facts.relation, rng.random() < limits.relation
    if rng.random() < 0.5:
        things, relation = things[::-1], INVERSE[relation]
    return f" {_pick(RELATIONS[relation] if told else UNRELATED, rng)} ".join(things)


def _thing(name: str, limits: CaptionRange, adjectives: tuple[str, str], rng: np.random.Generator) -> str:
    style, size = adjectives
    noun = name.lower()
    if (others := aliases(name)) and rng.random() < limits.alias:
        noun = _pick(others, rng)
    words = [_pick(STYLES_BEFORE, rng).format(style)] if style else []
    if size:
        words.insert(int(rng.integers(len(words) + 1)), _pick(SIZES[size], rng))
    phrase = " ".join([*words, noun])
    draw = rng.random()
    if draw < limits.article and not is_plural(noun):
        return f"{article(phrase)} {phrase}"
    return f"the {phrase}" if draw > 0.95 else phrase


def _background(colour: str, rng: np.random.Generator) -> str:
    said = _pick((colour, colour, *COLOUR_SYNONYMS.get(colour, ())), rng)
    phrase = _pick(BACKGROUNDS, rng).format(said)
    return phrase.replace(" a ", f" {article(said)} ")


def _joined(subject: str, rest: Sequence[str], rng: np.random.Generator) -> str:
    comma = rng.random() < 0.3
    text = subject
    for part in rest:
        bare = part.split()[0] not in ("on", "in", "at", "with")
        text += f", {part}" if comma or bare else f" {part}"
    return text


def article(phrase: str) -> str:
    """The indefinite article of a phrase: "a" or "an"."""
    first = phrase.lower()
    vowel = first[0] in "aeiou" and not SPOKEN_CONSONANT.match(first)
    return "an" if vowel or SPOKEN_VOWEL.match(first) else "a"


def is_plural(noun: str) -> bool:
    """Whether a noun takes no "a": its head, the part before "with", "in" and the like, is a plural."""
    return bool(PLURAL.search(HEAD_ENDS.sub("", noun).split()[-1]))


def aliases(name: str) -> tuple[str, ...]:
    """What else a thing of this CLDR name is called."""
    return _BY_NAME.get(name, ())


def _by_name() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for alias, names in ALIASES.items():
        for name in names:
            found[name] = (*found.get(name, ()), alias)
    return found


_BY_NAME = _by_name()


def vocabulary(
    names: Iterable[str], styles: Iterable[str], colours: Iterable[str], limits: CaptionRange
) -> list[str]:
    """Every word that a caption over these names, styles and colours can contain, sorted."""
    names, colours = list(names), list(colours)
    texts = [*names, *styles, *colours, "white", "a an on style background"]
    if limits.grammar == "varied":
        texts += [alias for name in names for alias in aliases(name)]
        texts += [said for colour in colours for said in COLOUR_SYNONYMS.get(colour, ())]
        tables = (SIZES, PLACES, RELATIONS)
        texts += [phrase for table in tables for phrases in table.values() for phrase in phrases]
        texts += [*STYLES_BEFORE, *STYLES_AFTER, *BACKGROUNDS, *UNRELATED, "the"]
    return sorted({word for text in texts for word in split_words(text)})
