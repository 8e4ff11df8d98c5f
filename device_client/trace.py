"""The spans of one image on the device: `image`, in it `open` per stream and `round` per draft. No wire here.

Rounds overlap, and the streams of an image follow each other; so every span is held by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from shared import tracing
from shared.messages import Draft, Verdict


class ImageTrace:
    """One trace per image. All of it does nothing where tracing is off."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._image = tracing.OFF
        self._rounds: dict[int, tracing.Span] = {}  # by number: those under way

    def begin(self) -> None:
        """An image begins; one before it is over."""
        self.end()
        self._image = tracing.root("image")
        self._image.note(request_id=self._request_id)

    @contextmanager
    def opening(self) -> Iterator[list[tuple[str, str]]]:
        """Around the beginning of a stream; yields the metadata that the cloud's spans are attached by."""
        span = self._image.child("open")
        try:
            yield self._image.headers
        except BaseException as error:
            span.fail(error)
            raise
        span.end()

    def sent(self, draft: Draft) -> None:
        """A round is under way."""
        span = self._rounds[draft.round] = self._image.child("round")
        span.note(round=draft.round, tokens=draft.drafted)

    def settled(self, verdict: Verdict, pending: Iterable[Draft]) -> None:
        """A round is over, and so are those it made void: all that are no longer `pending`."""
        under_way = {draft.round for draft in pending}
        for number in [number for number in self._rounds if number not in under_way]:
            span = self._rounds.pop(number)
            span.note(**{"accepted": verdict.accepted} if number == verdict.round else {"void": 1})
            span.end()

    def end(self) -> None:
        """The image is over, and whatever is under way."""
        for span in (*self._rounds.values(), self._image):
            span.end()
        self._rounds.clear()
        self._image = tracing.OFF
