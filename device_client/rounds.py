"""One round, from the first token drawn for it to its verdict. Knows no cloud and not the image before it.

Rounds form a chain: a pipelined round is drawn behind another that is still under way, and begins with a
token that stands for that one's bonus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from device_client.drafter import Drafter, Step
from device_client.progress import Trip
from device_client.shape import Tree
from device_client.tree import grow
from shared.messages import Draft, Features, Proposal, Tokens, Verdict, no_tokens

# What a guess of the cloud's says about the device's own draft, at the first place behind a correction, at
# the second, and further on. The odds that the draft is right are multiplied by SAME or by OTHER; where it is
# wrong and the guess is another token, the guess is right that often. Counted on the bundled pair (LOG).
SAME = (6.8, 14.0, 22.0)
OTHER = (0.32, 0.09, 0.04)
GUESS_RIGHT = (0.41, 0.74, 0.81)


@dataclass(eq=False)
class Round:
    """What one draft is made of, in the order of the image.

    assumed   stands for the bonus of the round before; None where that round is settled
    kept      behind it: nobody is asked about these
    span      behind those: what the cloud shall judge
    chance    estimated probability that all of `span` is accepted
    number    of the draft, once it is sent
    sent_s    seconds since the image began
    device_s  seconds spent drawing it
    parents   of the span's tokens, where it is a tree
    """

    assumed: Step | None = None
    kept: list[Step] = field(default_factory=list)
    span: list[Step] = field(default_factory=list)
    chance: float = 1.0
    number: int = 0
    sent_s: float = 0.0
    device_s: float = 0.0
    parents: Tokens = field(default_factory=no_tokens)

    @property
    def untouched(self) -> bool:
        """Whether nothing was drawn for it yet."""
        return self.assumed is None and not self.kept and not self.span

    def grow(self, drafter: Drafter, step: Step, place: int, end: int, shape: Tree) -> None:
        """Make the span a tree, from a step at its first place."""
        self.span, self.parents = grow(drafter, step, place, end, shape)

    def draft(self, number: int, end: int, behind: int | None, drafter: Drafter | None) -> Draft:
        """The message: `end` is the place behind the span; without a drafter, features stay at home."""
        assumed = [] if self.assumed is None else [self.assumed]
        caught_up = [*assumed, *self.kept]
        return Draft(
            round=number,
            base=end - len(caught_up) - len(self.span),
            span=_ids(self.span),
            catch_up=_ids(caught_up),
            features=None if drafter is None else _features(drafter, self.kept, len(assumed)),
            proposal=_proposal(self.span),
            behind=behind if assumed else None,
            parents=self.parents,
        )

    def standing(self, verdict: Verdict) -> list[Step]:
        """What the cloud accepted."""
        if len(self.parents):
            return [self.span[node] for node in verdict.path.tolist()]
        return self.span[: verdict.accepted]

    def refused(self, verdict: Verdict) -> list[Step]:
        """The draft that the cloud corrected; nothing where all was accepted, of a tree up to a leaf."""
        if not len(self.parents):
            return self.span[verdict.accepted : verdict.accepted + 1]
        last = verdict.path[-1] + 1 if verdict.accepted else 0
        return [self.span[node] for node in np.flatnonzero(self.parents == last)[:1]]

    def trip(self, arrived_s: float | None, verdict: Verdict | None) -> Trip:
        """Its line of the waterfall; without a verdict it became void under way."""
        trip = Trip(self.number, len(self.span), self.device_s, self.sent_s, arrived_s)
        if verdict is None:
            return trip
        return replace(
            trip,
            accepted=verdict.accepted,
            drawn=len(verdict.drawn),
            cloud_forwards=verdict.cloud_forwards,
            cloud_s=verdict.cloud_s,
        )


def weigh(draft: int, chance: float, guess: int | None, behind: int) -> tuple[int, float]:
    """The better one of the device's draft, right with `chance`, and the cloud's guess; how likely it is.

    `behind` counts places from the first one behind the correction. Without a guess there is only the draft.
    """
    if guess is None:
        return draft, chance
    place = min(behind, len(SAME) - 1)
    if guess == draft:
        return draft, _at_odds(chance, SAME[place])
    own = _at_odds(chance, OTHER[place])
    guessed = (1.0 - own) * GUESS_RIGHT[place]
    return (guess, guessed) if guessed > own else (draft, own)


def _at_odds(chance: float, factor: float) -> float:
    """The probability whose odds are `factor` times those of `chance`."""
    return chance / (chance + (1.0 - chance) / factor)


def _ids(steps: Sequence[Step]) -> Tokens:
    return np.array([step.token for step in steps], dtype=np.int32)


def _features(drafter: Drafter, kept: Sequence[Step], offset: int) -> Features | None:
    """The features of all kept tokens, `offset` places into the catch-up."""
    if not kept:
        return None
    codes, scale = drafter.features(kept)
    return Features(np.arange(offset, offset + len(kept), dtype=np.uint16), codes, scale)


def _proposal(span: Sequence[Step]) -> Proposal | None:
    """The sparse q of every span token, where the acceptance rule needs it."""
    drawn_from = [step.proposal for step in span if step.proposal is not None]
    if not drawn_from:
        return None
    ids, probabilities = zip(*drawn_from, strict=True)
    return Proposal(np.stack(ids), np.stack(probabilities))
