"""What the device owns of one image as far as the cloud has answered, and the rounds that have no answer yet.

From this a lost session is rebuilt. What the cloud says is checked here before it counts. Knows no network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from shared.continuous import Values
from shared.decoding.denoising import JUDGEMENT
from shared.decoding.scales import VERDICTS
from shared.decoding.tree import is_walk
from shared.errors import CiarError
from shared.messages import Draft, Features, Open, Opened, Output, Tokens, Verdict, no_tokens


class Owned:
    """One image of the link, begun by `order`.

    pending  rounds sent and not answered: a plain one, then those drawn behind it
    """

    def __init__(self, order: Open) -> None:
        self._order = order
        self._tokens = no_tokens()
        self._features: list[Features] = []  # index: places in `_tokens`
        self._image_tokens = 0
        self.pending: deque[Draft] = deque()
        self._add(order.resume, order.resume_features)

    def order(self) -> Open:
        """What begins a session that goes on from here."""
        return replace(self._order, resume=self._tokens, resume_features=self._all_features())

    def begin(self, opened: Opened) -> None:
        """A session is there. Raises CiarError for a prefix that cannot be."""
        self._check_ids(opened.prefix.tolist())
        if len(self._tokens) + len(opened.prefix) > opened.image_tokens:
            raise _nonsense(f"a prefix of {len(opened.prefix)} of {opened.image_tokens} tokens")
        self._image_tokens = opened.image_tokens
        self._add(opened.prefix)

    def settle(self, verdict: Verdict) -> None:
        """The answer to the oldest pending round; rounds that it makes void are forgotten.

        Raises CiarError for what cannot be an answer to it.
        """
        self._check(self.pending[0], verdict)
        draft = self.pending.popleft()
        self._add(draft.catch_up, draft.features)
        self._add(np.array([*draft.standing(verdict), *verdict.drawn], np.int32))
        if self.pending:
            following = self.pending[0]
            if verdict.accepted == len(draft.span) and verdict.token == following.catch_up[0]:
                self.pending[0] = following.settled()
            else:
                self.pending.clear()

    def _add(self, tokens: Tokens, features: Features | None = None) -> None:
        """Append tokens; the features' places count from the first of them."""
        if not len(tokens):
            return
        if features is not None:
            index = (features.index + np.uint16(len(self._tokens))).astype(np.uint16)
            self._features.append(replace(features, index=index))
        self._tokens = np.concatenate([self._tokens, tokens])

    def _all_features(self) -> Features | None:
        """One Features value for all tokens."""
        if not self._features:
            return None
        return Features(
            np.concatenate([part.index for part in self._features]),
            np.concatenate([part.codes for part in self._features]),
            np.concatenate([part.scale for part in self._features]),
        )

    def _check(self, draft: Draft, verdict: Verdict) -> None:
        end, whole = draft.base + len(draft.catch_up) + verdict.accepted, verdict.accepted == len(draft.span)
        if verdict.round != draft.round or verdict.accepted > len(draft.span):
            raise _nonsense(f"round {verdict.round} with {verdict.accepted} tokens accepted")
        if len(verdict.path) != (verdict.accepted if len(draft.parents) else 0):
            raise _nonsense(f"a path of {len(verdict.path)} with {verdict.accepted} tokens accepted")
        if not is_walk(verdict.path.tolist(), draft.parents):
            raise _nonsense(f"path {verdict.path.tolist()}, which is none of the tree sent")
        if (verdict.token is None) != (end == self._image_tokens):
            raise _nonsense(f"token {verdict.token} behind {end} of {self._image_tokens}")
        drawn = [*verdict.drawn, *verdict.guesses.tolist()]
        if end + len(drawn) > self._image_tokens or (whole and len(drawn) > 1):
            raise _nonsense(f"{len(drawn)} tokens behind {end} of {self._image_tokens}")
        self._check_ids(drawn)

    def _check_ids(self, tokens: Sequence[int]) -> None:
        if tokens and max(tokens) >= self._order.codebook_size:
            raise _nonsense(f"token {max(tokens)} of a codebook of {self._order.codebook_size}")


class OwnedScales(Owned):
    """One image of a model by scales: a scale that was judged stands whole, patched."""

    def _check(self, draft: Draft, verdict: Verdict) -> None:
        places = [] if verdict.patch is None else verdict.patch.places.tolist()
        tokens = [] if verdict.patch is None else verdict.patch.tokens.tolist()
        length = len(draft.span)
        if verdict.round != draft.round or verdict.accepted + len(places) != length:
            raise _nonsense(f"round {verdict.round} with {verdict.accepted} of {length} tokens accepted")
        if places and max(places) >= length:
            raise _nonsense(f"a patch at {max(places)} of {length} tokens")
        if verdict.drawn or len(verdict.path) or len(verdict.guesses):
            raise _nonsense("tokens behind a scale")
        self._check_ids(tokens)


class OwnedSteps(Owned):
    """One image of a model by steps: its latent is with every round that waits for an answer, so a session is
    rebuilt by sending that one again, whole."""

    _begun = False

    def order(self) -> Open:
        """What begins a session that goes on from here: without a prefix, once there was one."""
        return replace(self._order, prefix_tokens=0) if self._begun else self._order

    def begin(self, opened: Opened) -> None:
        """A session is there. Raises CiarError for a prefix that cannot be."""
        prefix = 0 if self._begun else self._order.prefix_tokens
        self._check_output(opened.output, prefix)
        self._begun = True
        if self.pending and (steps := self.pending[0].steps) is not None:
            self.pending[0] = replace(self.pending[0], steps=replace(steps, known=False))

    def settle(self, verdict: Verdict) -> None:
        """The answer to the pending round. Raises CiarError for what cannot be one."""
        draft, steps = self.pending[0], self.pending[0].steps
        if verdict.round != draft.round or verdict.accepted or verdict.drawn or steps is None:
            raise _nonsense(f"round {verdict.round} with {verdict.accepted} tokens accepted")
        self._check_output(verdict.output, steps.count)
        self.pending.popleft()

    def _check_output(self, output: Output | None, count: int) -> None:
        if (output is None) != (count == 0):
            raise _nonsense(f"{'no' if output is None else 'an'} output to {count} steps")
        if output is not None and (output.state is None) != (count == 1):
            raise _nonsense(f"{'no' if output.state is None else 'a'} latent to {count} steps")


class OwnedValues(Owned):
    """One image of a model of continuous tokens."""

    def __init__(self, order: Open) -> None:
        super().__init__(order)
        self._values: list[Values] = [] if order.resume_values is None else [order.resume_values]

    def order(self) -> Open:
        """What begins a session that goes on from here."""
        return replace(self._order, resume_values=np.concatenate(self._values) if self._values else None)

    def begin(self, opened: Opened) -> None:
        """A session is there. Raises CiarError for a prefix that cannot be."""
        self._image_tokens = opened.image_tokens
        if opened.values is not None:
            self._keep(opened.values)

    def settle(self, verdict: Verdict) -> None:
        """The answer to the pending round. Raises CiarError for what cannot be one."""
        self._check(self.pending[0], verdict)
        draft = self.pending.popleft()
        self._keep(draft.values(verdict))

    def _keep(self, values: Values) -> None:
        known = sum(map(len, self._values)) + len(values)
        if known > self._image_tokens or (self._values and values.shape[1] != self._values[0].shape[1]):
            raise _nonsense(f"values of shape {values.shape} up to {known} of {self._image_tokens} tokens")
        self._values.append(values)

    def _check(self, draft: Draft, verdict: Verdict) -> None:
        kept, length = verdict.kept, draft.drafted
        if verdict.round != draft.round or kept is None or len(kept.stands) != length:
            raise _nonsense(f"round {verdict.round} with other than {length} tokens judged")
        if int(kept.stands.sum()) != verdict.accepted or verdict.drawn or len(verdict.guesses):
            raise _nonsense(f"{verdict.accepted} tokens accepted where others stand")
        span = draft.continuous
        assert span is not None, "what is sent has one"
        whole = span.conditions is not None
        expected = length - verdict.accepted
        if whole:
            expected = min(verdict.accepted + 1, self._image_tokens - draft.base)
        if len(kept.values) != expected or (whole and not kept.stands[: verdict.accepted].all()):
            raise _nonsense(f"{len(kept.values)} tokens where {expected} are due")
        if span.values is not None and expected and kept.values.shape[1] != span.values.shape[1]:
            raise _nonsense(f"tokens of {kept.values.shape[1]} numbers")


_OWNED: Mapping[str, type[Owned]] = {**dict.fromkeys(VERDICTS, OwnedScales), JUDGEMENT: OwnedSteps}


def owned(order: Open) -> Owned:
    """Nothing but what the order resumes."""
    if order.masking is not None:
        return OwnedValues(order)
    return _OWNED.get(order.acceptance, Owned)(order)


def _nonsense(what: str) -> CiarError:
    return CiarError(f"the cloud answered {what}", "that is not in the protocol")
