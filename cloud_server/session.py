"""One image on the cloud's side: what was ordered, what is committed, what the cache holds. Pure state.

Knows nothing of forwards, threads or the wire. Sequence positions count the P prefix rows first: image token
i is at position P + i, a prompt of n words at P - n .. P - 1. The cache may lag behind: what it lacks is part
of the next forward's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from shared.decoding.acceptance import Judgement
from shared.errors import InvalidDraft, InvalidRequest
from shared.messages import Draft, Features, Open, Proposal, Tokens, Usage, Verdict, no_tokens

NEEDS_PROPOSAL = frozenset({"rejection"})
# A row of fp16 probabilities sums to one within rounding, whatever its length.
_MASS_TOLERANCE = 0.01


@dataclass(frozen=True)
class Limits:
    """What a draft is measured against; the same for all sessions of an engine."""

    codebook_size: int  # V
    image_tokens: int  # T
    feature_width: int  # d_f
    max_span: int  # largest K


@dataclass(eq=False)
class Session:
    """One image. Only the engine changes `tokens`, `fed` and the costs of forwards.

    slots       cache rows: the prompt's, and the unguided one unless guidance is 1
    starts      first valid position per cache row; a shorter prefix begins later
    prompt_GND  prefix rows, one stack per cache row
    tokens      committed image tokens, from place 0
    fed         next sequence position the cache lacks, P - n .. P + len(tokens)
    folded      n once the cache holds the prefix as one entry at P - 1, else 1
    """

    name: str
    order: Open
    slots: tuple[int, ...]
    prompt_GND: Tensor
    limits: Limits
    starts: tuple[int, ...]
    tokens: list[int]
    fed: int
    folded: int = 1
    forwards: int = 0
    cloud_s: float = 0.0
    rounds: int = 0
    judged: int = 0
    accepted: int = 0
    _verdicts: dict[int, tuple[int, Verdict]] = field(default_factory=dict)
    _whole: int | None = None  # the last round judged, if all of it was accepted and a bonus drawn

    @property
    def start(self) -> int:
        """P - n: the position of the first prefix row."""
        return self.starts[0]

    @property
    def prefix_rows(self) -> int:
        """P."""
        return self.start + self.prompt_GND.shape[1]

    @property
    def visible(self) -> tuple[int, ...]:
        """First position a new token looks at, per cache row."""
        return self.starts if self.folded == 1 else (self.prefix_rows - 1,) * len(self.starts)

    @property
    def missing_prefix(self) -> int:
        """Tokens the cloud still has to draw before the first draft; those of `resume` count as drawn."""
        return max(self.order.prefix_tokens - len(self.tokens), 0)

    def check(self, draft: Draft) -> None:
        """Raise InvalidDraft unless the draft fits, naming the offending value and the allowed ones."""
        self._check_place(draft)
        check_ids(draft.span, self.limits, "the span", InvalidDraft)
        check_ids(draft.catch_up, self.limits, "the catch-up", InvalidDraft)
        check_features(draft.features, len(draft.catch_up), self.limits, InvalidDraft)
        self._check_proposal(draft)

    def answered(self, draft: Draft) -> Verdict | None:
        """The verdict already given to this round, or None. Raises InvalidDraft if its base was another."""
        if draft.round not in self._verdicts:
            return None
        base, verdict = self._verdicts[draft.round]
        if base != draft.base:
            why = f"its base was {base}; one number never names two drafts"
            raise InvalidDraft(f"round {draft.round} came again with base {draft.base}", why)
        return verdict

    def settled(self, draft: Draft) -> Draft | None:
        """What is to be judged of a draft once its assumption is checked; None where that failed: it is void.

        Raises InvalidDraft where it cannot assume what it says.
        """
        if draft.behind is None:
            return draft
        if not len(draft.catch_up) or draft.behind >= draft.round:
            what = f"round {draft.round} with {len(draft.catch_up)} catch-up tokens is behind {draft.behind}"
            raise InvalidDraft(what, "a pipelined draft names an earlier round and begins with its bonus")
        if draft.features is not None and 0 in draft.features.index:
            raise InvalidDraft("the assumed bonus carries a feature", "only kept tokens have features")
        stands = draft.behind == self._whole and draft.catch_up[0] == self.tokens[-1]
        return draft.settled() if stands else None

    def record(self, draft: Draft, judgements: Sequence[Judgement], cloud_s: float) -> Verdict:
        """Count a judged round and remember its verdict: of the draft first, then of the cloud's own guesses.

        `draft` is as it came, with what it assumed; `cloud_s` is seconds of model time.
        """
        first, last = judgements[0], judgements[-1]
        drawn = self.tokens[draft.base + len(draft.catch_up) + first.accepted :]
        verdict = Verdict(
            draft.round,
            first.accepted,
            first.token,
            cloud_s,
            more=np.array(drawn[1:], dtype=np.int32),
            guesses=np.array(last.guesses if self.order.guesses else (), dtype=np.int32),
            cloud_forwards=len(judgements),
        )
        self._whole = draft.round if first.accepted == len(draft.span) and drawn else None
        self.rounds += 1
        self.judged += len(draft.span)
        self.accepted += first.accepted
        return self._remember(draft, verdict)

    def void(self, draft: Draft) -> Verdict:
        """The answer to a draft whose assumption failed: it costs nothing and is not counted."""
        verdict = Verdict(draft.round, 0, None, 0.0, cloud_forwards=0, stale=True)
        return self._remember(draft, verdict)

    def usage(self) -> Usage:
        """What the session has cost so far (SPEC section 8)."""
        return Usage(self.forwards, self.rounds, self.judged, self.accepted, self.cloud_s)

    def _remember(self, draft: Draft, verdict: Verdict) -> Verdict:
        self._verdicts[draft.round] = (draft.base, verdict)
        return verdict

    def _check_place(self, draft: Draft) -> None:
        committed, length = len(self.tokens), len(draft.span)
        if self._verdicts and draft.round < (last := next(reversed(self._verdicts))):
            raise InvalidDraft(
                f"round {draft.round} is out of order", f"allowed: above {last}, the last one judged"
            )
        if draft.base != committed:
            why = f"allowed: {committed}, the tokens committed so far, corrections and bonuses included"
            raise InvalidDraft(f"base {draft.base} does not fit", why, "open again and resume")
        if not 1 <= length <= self.limits.max_span:
            raise InvalidDraft(f"the span has {length} tokens", f"allowed: 1 to {self.limits.max_span}")
        end = draft.base + len(draft.catch_up) + length
        if end > self.limits.image_tokens:
            raise InvalidDraft(f"the span ends at {end}", f"allowed: up to T = {self.limits.image_tokens}")

    def _check_proposal(self, draft: Draft) -> None:
        needed = self.order.acceptance in NEEDS_PROPOSAL
        if needed != (draft.proposal is not None):
            found = "no proposal" if needed else "a proposal"
            rule = f"{self.order.acceptance!r} acceptance {'needs one' if needed else 'takes none'}"
            raise InvalidDraft(f"the draft carries {found}", rule)
        if draft.proposal is not None:
            check_proposal(draft.proposal, draft.span, self.limits)


@dataclass(frozen=True, eq=False)
class Job:
    """One judgement that a session asks of the model; with an empty span, one plain draw.

    Everything the cache lacks is fed first: prompt rows, committed tokens, `catch_up` with its features.
    """

    session: Session
    span: Tokens = field(default_factory=no_tokens)
    catch_up: Tokens = field(default_factory=no_tokens)
    features: Features | None = None
    proposal: Proposal | None = None

    @classmethod
    def judging(cls, session: Session, draft: Draft) -> Job:
        """The job of a checked draft."""
        return cls(session, draft.span, draft.catch_up, draft.features, draft.proposal)

    @classmethod
    def iterating(cls, session: Session, judgements: Sequence[Judgement]) -> Job | None:
        """The cloud's own next job on a draft: to judge what it guessed behind its correction (Jacobi).

        None where the order allows no more forwards, nothing was guessed, or the last guesses bought nothing:
        an iteration that accepts none of them draws one token, which any forward would have done.
        """
        *iterated, last = judgements
        idle = bool(iterated) and last.accepted == 0
        if len(judgements) >= session.order.max_forwards or not last.guesses or idle:
            return None
        return cls(session, np.array(last.guesses, dtype=np.int32))

    @property
    def base(self) -> int:
        """Image place of the first span token."""
        return len(self.session.tokens) + len(self.catch_up)

    @property
    def ends_image(self) -> bool:
        """Whether nothing follows the span: then its last token need not be fed and there is no bonus."""
        return self.base + len(self.span) == self.session.limits.image_tokens

    @property
    def inputs(self) -> int:
        """New positions of the forward."""
        end = self.session.prefix_rows + self.base + len(self.span) - self.ends_image
        return end - self.session.fed


def check_ids(ids: Tokens, limits: Limits, name: str, refuse: type[InvalidRequest]) -> None:
    """Raise `refuse` unless every id is in 0 .. V - 1."""
    wrong = (ids < 0) | (ids >= limits.codebook_size)
    if wrong.any():
        place = int(wrong.argmax())
        why = f"allowed: 0 to {limits.codebook_size - 1}"
        raise refuse(f"{name} holds token {int(ids.flat[place])} at {place}", why)


def check_features(sent: Features | None, tokens: int, limits: Limits, refuse: type[InvalidRequest]) -> None:
    """Raise `refuse` unless the features have width d_f and name ascending places below `tokens`."""
    if sent is None:
        return
    if sent.codes.shape != (len(sent.index), limits.feature_width) or sent.scale.shape != sent.index.shape:
        shapes = f"index {sent.index.shape}, codes {sent.codes.shape} and scale {sent.scale.shape}"
        raise refuse(f"the features have {shapes}", f"allowed: [n], [n, {limits.feature_width}] and [n]")
    places = sent.index.astype(np.int64)
    if len(places) and (places[-1] >= tokens or (np.diff(places) <= 0).any()):
        raise refuse(f"the features have places {places[:8].tolist()}", f"allowed: ascending, below {tokens}")


def check_proposal(proposal: Proposal, span: Tokens, limits: Limits) -> None:
    """Raise InvalidDraft unless every row is a distribution over distinct ids that holds its span token."""
    ids, probabilities = proposal.ids, proposal.probabilities.astype(np.float32)
    if ids.ndim != 2 or ids.shape != probabilities.shape or len(ids) != len(span):
        shapes = f"{ids.shape} and {probabilities.shape}"
        raise InvalidDraft(f"the proposal has shapes {shapes}", f"allowed: two of ({len(span)}, k)")
    check_ids(ids, limits, "the proposal", InvalidDraft)
    if (np.diff(np.sort(ids, axis=1), axis=1) == 0).any():
        raise InvalidDraft("a proposal row names one id twice", "allowed: distinct ids")
    mass = probabilities.sum(axis=1)
    if not ((probabilities >= 0).all() and (abs(mass - 1) <= _MASS_TOLERANCE).all()):
        raise InvalidDraft(
            f"proposal rows sum to {mass.min():g} .. {mass.max():g}", "allowed: 1 within rounding"
        )
    drawn = (probabilities * (ids == span[:, None])).sum(axis=1)
    if not (drawn > 0).all():
        place = int((drawn <= 0).argmax())
        raise InvalidDraft(
            f"span token {int(span[place])} has probability 0 in its proposal", "it was drawn from it"
        )
