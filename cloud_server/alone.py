"""What the cloud draws by itself, and in how few forwards: one token each, by Jacobi iteration, or in rows.

The prefix of an image is drawn this way, and with it a whole image where the device only listens. An artist
gives job after job; every forward is a job like any other. Knows no tensors' devices, threads or wire.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cloud_server.rows import RowArtist
from cloud_server.session import Job, Session
from shared.decoding.acceptance import Judged, Judgement, Rule
from shared.decoding.jacobi import Iterated, speculative_jacobi
from shared.errors import InvalidRequest
from shared.messages import ALONE, Open

MAX_WINDOW = 64
_WINDOWS = MappingProxyType(
    {"": (0, 0), "jacobi": (2, MAX_WINDOW), "sjd": (2, MAX_WINDOW), "rows": (1, MAX_WINDOW)}
)


class Artist(Protocol):
    """Draws what is missing of the prefix, and nothing behind it."""

    def job(self) -> Job:
        """The next forward."""

    def take(self, judgement: Judgement) -> None:
        """What came of it; the job itself has committed it."""


def artist(session: Session) -> Artist:
    """The one that was ordered."""
    return _ARTISTS[session.order.alone](session)


def check(order: Open) -> None:
    """Raise InvalidRequest for a way of drawing, or a window of it, that does not exist."""
    if order.alone not in ALONE:
        raise InvalidRequest(f"alone is {order.alone!r}", f"allowed: {', '.join(map(repr, ALONE))}")
    first, last = _WINDOWS[order.alone]
    if not first <= order.window <= last:
        raise InvalidRequest(f"window {order.window} of {order.alone!r}", f"allowed: {first} to {last}")
    if order.alone in ("jacobi", "rows") and order.acceptance == "rejection":
        why = "it draws with the shared noise alone"
        raise InvalidRequest(f"{order.alone!r} does not go with 'rejection'", why)


class OneByOne:
    """One token per forward: the base."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def job(self) -> Job:
        """A plain draw."""
        return Job(self._session)

    def take(self, judgement: Judgement) -> None:
        """Nothing to remember."""


class Jacobi:
    """`window` tokens per forward, each drawn behind the draws of the forward before (Song et al. 2021, SJD).

    A token is final once all before it are and it was drawn again; with the rules that draw by the shared
    noise that is what the base draws there, in as many forwards as it takes draws to settle.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._columns = math.isqrt(session.limits.image_tokens)
        self._guesses: list[int] = []

    @property
    def _length(self) -> int:
        """Tokens to judge."""
        return min(self._session.order.window, self._session.missing_prefix) - 1

    def job(self) -> Job:
        """Judge the last draws, and first guesses behind them."""
        session, length = self._session, self._length
        known = [*session.tokens, *self._guesses[:length]]
        while len(known) < len(session.tokens) + length:
            known.append(first_guess(known, self._columns))
        return Job(session, np.array(known[len(session.tokens) :], dtype=np.int32))

    def take(self, judgement: Judgement) -> None:
        """Remember the draws behind the first that changed."""
        self._guesses = list(judgement.guesses)


class Onward(Jacobi):
    """What follows a draft that the cloud corrected: it goes on behind its correction, as it would alone.

    For as many forwards as are ordered, the draft's own among them. With the window of "jacobi" until the
    image ends; without one it judges what it guessed, for as long as that bought more than the one token
    which any forward draws.
    """

    def __init__(self, session: Session, first: Judgement) -> None:
        super().__init__(session)
        self._window = session.order.window if session.order.alone == "jacobi" else 0
        super().take(first)
        self._left = session.order.max_forwards - 1
        self._gains = bool(self._guesses)  # nothing was guessed where all of the draft was accepted

    @property
    def worthwhile(self) -> bool:
        """Whether another forward may be run, and would bring something."""
        return self._left > 0 and self._gains

    @property
    def _length(self) -> int:
        missing = self._session.limits.image_tokens - len(self._session.tokens)
        return min(self._window, missing) - 1 if self._window else len(self._guesses)

    def take(self, judgement: Judgement) -> None:
        """Remember the draws, and whether another forward would bring something."""
        super().take(judgement)
        self._left -= 1
        if self._window:
            self._gains = len(self._session.tokens) < self._session.limits.image_tokens
        else:
            self._gains = judgement.accepted > 0 and bool(self._guesses)


def first_guess(known: list[int], columns: int) -> int:
    """For a place never drawn: the token above it, in the first row the one to its left, 0 for the first."""
    if len(known) >= columns:
        return known[-columns]
    return known[-1] if known else 0


@dataclass(frozen=True, eq=False)
class IterationJob(Job):
    """A job of published speculative Jacobi decoding; `q_KV` is what each span token was drawn from."""

    q_KV: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def judge(self, rule: Rule, judged: Judged) -> Judgement:
        """By its own rule, whatever rule judges drafts."""
        tokens, order = (judged.log_p_TV, judged.span_K), self.session.order
        iteration, q_KV = self.session.forwards, self.q_KV.to(judged.log_p_TV.device)
        return speculative_jacobi(
            Iterated(*tokens, order.seed, judged.position, q_KV=q_KV, iteration=iteration)
        )


class SpeculativeJacobi(Jacobi):
    """The same with the published, probabilistic acceptance: the base's law, another image."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._q_NV = torch.zeros(0, session.limits.codebook_size)

    def job(self) -> Job:
        """A first guess was not drawn: all mass is on it."""
        plain = super().job()
        drawn = min(len(self._q_NV), len(plain.span))
        ids_N = torch.from_numpy(plain.span[drawn:].astype(np.int64))
        certain_NV = torch.nn.functional.one_hot(ids_N, self._session.limits.codebook_size).float()
        return IterationJob(self._session, plain.span, q_KV=torch.cat([self._q_NV[:drawn].cpu(), certain_NV]))

    def take(self, judgement: Judgement) -> None:
        """Remember what the draws were drawn from, too."""
        super().take(judgement)
        drawn_from = judgement.drawn_from
        self._q_NV = self._q_NV[:0] if drawn_from is None else drawn_from


_ARTISTS: Mapping[str, Callable[[Session], Artist]] = MappingProxyType(
    dict(zip(ALONE, (OneByOne, Jacobi, SpeculativeJacobi, RowArtist), strict=True))
)
