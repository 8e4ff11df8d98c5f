"""What the other side of a stream said last does not travel back: tokens left out of frames, and put back.

The proto specifies it under "Echoes". Works on frames, so that nobody else has to know. Nothing received is
believed: marks that fit no frame are refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shared.errors import CiarError, InvalidDraft
from shared.messages import Draft, Open, Tokens, Verdict
from shared.wire import tensors
from shared.wire.pb import ciar_pb2 as pb

TOKEN_BYTES = 2  # what a token left out saves


class Echoes:
    """What both ends of one stream know of each other's tokens; each end has its own, and they agree.

    granted  whether anything may be left out; the cloud's Opened says so where the device asked for it
    """

    def __init__(self) -> None:
        self.granted = False
        self._guessed: Mapping[int, int] = {}  # place -> what the last guesses named there
        self._read_by: dict[int, Mapping[int, int]] = {}  # round -> that, when its draft came first

    def ask(self, opening: pb.Open, order: Open) -> None:
        """Device: say that echoes are understood, where there will be any."""
        opening.echoes = order.guesses

    def cut_draft(self, frame: pb.Draft, draft: Draft) -> None:
        """Device: leave out what the cloud guessed."""
        if self.granted and _plain(draft) and len(draft.span):
            marks, rest = _cut(draft.span, _places(draft), self._guessed)
            if marks:
                frame.echoes = marks
                _put(frame, "span", rest)

    def mend_draft(self, frame: pb.Draft) -> None:
        """Cloud: put back what was guessed; a repeated draft is read as it was the first time.

        Raises InvalidDraft for echoes of nothing.
        """
        if not frame.echoes:
            return
        if not self.granted or frame.HasField("behind") or frame.HasField("parents"):
            raise InvalidDraft("the draft has echoes", "they are granted by Opened, for plain drafts alone")
        rest = tensors.decode_tokens(frame, "span", InvalidDraft)
        kept = tensors.decode_tokens(frame, "catch_up", InvalidDraft)
        known = self._read_by.setdefault(frame.round, self._guessed)
        _put(frame, "span", _mend(rest, frame.echoes, frame.base + len(kept), known, InvalidDraft))

    def cut_verdict(self, frame: pb.Verdict, verdict: Verdict, draft: Draft) -> None:
        """Cloud: leave out what the draft had itself, and remember the guesses."""
        if not self.granted or not len(verdict.guesses):
            return
        first = _behind(draft, verdict)
        if _plain(draft):
            places = range(first, first + len(verdict.guesses))
            marks, rest = _cut(verdict.guesses, places, _drafted(draft))
            if marks:
                frame.echoes = marks
                _put(frame, "guesses", rest)
        self._guessed = dict(enumerate(verdict.guesses.tolist(), first))

    def mend_verdict(self, frame: pb.Verdict, draft: Draft) -> None:
        """Device: put back what the draft had, and remember the guesses. Raises CiarError for echoes of
        nothing."""
        if not self.granted or not (frame.echoes or frame.HasField("guesses")):
            return
        committed = frame.accepted + frame.HasField("token")
        more = tensors.decode_tokens(frame, "more", CiarError)
        first = draft.base + len(draft.catch_up) + committed + len(more)
        guesses = tensors.decode_tokens(frame, "guesses", CiarError)
        if frame.echoes:
            guesses = _mend(guesses, frame.echoes, first, _drafted(draft) if _plain(draft) else {}, CiarError)
            _put(frame, "guesses", guesses)
        self._guessed = dict(enumerate(guesses.tolist(), first))


def _plain(draft: Draft) -> bool:
    return draft.behind is None and not len(draft.parents)


def _places(draft: Draft) -> range:
    first = draft.base + len(draft.catch_up)
    return range(first, first + len(draft.span))


def _drafted(draft: Draft) -> Mapping[int, int]:
    return dict(zip(_places(draft), draft.span.tolist(), strict=True))


def _behind(draft: Draft, verdict: Verdict) -> int:
    return draft.base + len(draft.catch_up) + verdict.accepted + len(verdict.drawn)


def _cut(tokens: Tokens, places: range, known: Mapping[int, int]) -> tuple[bytes, Tokens]:
    """Marks of the tokens that are known, and the others; no marks where they would cost what they save."""
    echoed = np.array(
        [known.get(place) == token for place, token in zip(places, tokens.tolist(), strict=True)]
    )
    marks = np.packbits(echoed).tobytes()
    if TOKEN_BYTES * echoed.sum() <= TOKEN_BYTES + len(marks):  # a field has a tag and a length
        return b"", tokens
    return marks, tokens[~echoed]


def _mend(
    rest: Tokens, marks: bytes, first: int, known: Mapping[int, int], refuse: type[CiarError]
) -> Tokens:
    """All tokens from place `first` on, of which the marked ones are known."""
    echoed = np.unpackbits(np.frombuffer(marks, dtype=np.uint8)).astype(np.bool_)
    length = len(rest) + int(echoed.sum())
    if len(marks) != -(-length // 8) or echoed[length:].any():
        raise refuse(f"{len(marks)} bytes of echoes for {length} tokens", "a bit each, filled up with zeros")
    if length > len(rest) + len(known):
        raise refuse(f"{length - len(rest)} echoes", f"allowed: {len(known)}, what the other side said")
    tokens = np.empty(length, dtype=np.int32)
    tokens[~echoed[:length]] = rest
    for place in np.flatnonzero(echoed).tolist():
        if first + place not in known:
            raise refuse(f"an echo at place {first + place}", "nothing was said there")
        tokens[place] = known[first + place]
    return tokens


def _put(frame: pb.Draft | pb.Verdict, field: str, tokens: Tokens) -> None:
    """Set a vector of tokens, or leave it out where there are none."""
    frame.ClearField(field)
    if (tensor := tensors.encode_tokens(tokens)) is not None:
        getattr(frame, field).CopyFrom(tensor)
