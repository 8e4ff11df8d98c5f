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

from cloud_server.checks import Limits, check_features, check_ids, check_proposal
from cloud_server.layout import Layout
from shared.decoding.acceptance import Judged, Judgement, Rule
from shared.decoding.tree import check_parents
from shared.errors import InvalidDraft
from shared.messages import Draft, Features, Open, Proposal, Tokens, Usage, Verdict, no_tokens

NEEDS_PROPOSAL = frozenset({"rejection"})
JUDGES_TREES = frozenset({"coupled", "greedy", "relaxed"})
# Void drafts per token of the image: each round may have a few behind it, and every round brings a token.
_MOST_VOIDS = 8


@dataclass(eq=False)
class Session:
    """One image. Only what a job commits changes `tokens` and `fed`, only the engine the costs of forwards.

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
    kept: int = 0  # tokens of catch-ups: the device kept them unjudged
    _voids: int = 0
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
        self._check_tree(draft)

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
            path=np.array(first.path, dtype=np.int32),
            cloud_forwards=len(judgements),
        )
        self._whole = draft.round if first.accepted == len(draft.span) and drawn else None
        self.rounds += 1
        self.kept += len(draft.catch_up) - (draft.behind is not None)
        self.judged += len(draft.span)
        self.accepted += first.accepted
        return self._remember(draft, verdict)

    def void(self, draft: Draft) -> Verdict:
        """The answer to a draft whose assumption failed: it costs nothing and is not counted.

        Raises InvalidDraft beyond any number that pipelining can bring about.
        """
        self._voids += 1
        most = _MOST_VOIDS * self.limits.image_tokens
        if self._voids > most:
            raise InvalidDraft(f"{self._voids} drafts of this image were void", f"allowed: {most}")
        verdict = Verdict(draft.round, 0, None, 0.0, cloud_forwards=0, stale=True)
        return self._remember(draft, verdict)

    @property
    def rates(self) -> tuple[float, float] | None:
        """Call rate and local rate of an image of which nothing was owned before; else None."""
        whole = self.limits.image_tokens
        if len(self.order.resume):
            return None
        return self.forwards / whole, (self.kept + whole - len(self.tokens)) / whole

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

    def _check_tree(self, draft: Draft) -> None:
        if len(draft.parents):
            check_parents(draft.parents, len(draft.span))
            if self.order.acceptance not in JUDGES_TREES:
                what = f"{self.order.acceptance!r} acceptance judges no trees"
                raise InvalidDraft(what, f"allowed: {', '.join(sorted(JUDGES_TREES))}")


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

    @property
    def rows(self) -> int:
        """How many of the last positions fed are judged."""
        return len(self.span) + (not self.ends_image)

    def layout(self) -> Layout:
        """The image tokens that the cache lacks, up to the last position that is judged."""
        first = max(self.session.fed - self.session.prefix_rows, 0)
        ids = [*self.session.tokens, *self.catch_up.tolist(), *self.span.tolist()]
        fed = ids[first : len(ids) - self.ends_image]
        places = range(first, first + len(fed))
        return Layout(fed, places, places)

    def judge(self, rule: Rule, judged: Judged) -> Judgement:
        """What stands of the span, by the rule of the order."""
        return rule(judged)

    def commit(self, judgement: Judgement) -> None:
        """Keep what stands; the cache is valid up to the last accepted token that was fed."""
        session, base = self.session, self.base
        standing = [*self.catch_up.tolist(), *self.span[: judgement.accepted].tolist()]
        session.fed = min(session.fed + self.inputs, session.prefix_rows + base + judgement.accepted)
        session.tokens += standing if judgement.token is None else [*standing, judgement.token]
