"""What engines have in common whose passes are each for one image. Synchronous; knows no queues."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

from cloud_server.answers import Answers
from cloud_server.checks import check_model
from shared.decoding.noise import check_seed
from shared.errors import Overloaded
from shared.messages import Draft, ModelInfo, Open, Usage, Verdict


class PassSession(ABC):
    """One image on the cloud's side: what was ordered, what it has cost, the last `remembered` verdicts."""

    def __init__(self, order: Open, remembered: int | None = None) -> None:
        self.name, self.order = secrets.token_hex(4), order
        self.forwards = self.rounds = self.judged = self.accepted = 0
        self.cloud_s = 0.0
        self.answers = Answers(remembered)

    @property
    @abstractmethod
    def progress(self) -> str:
        """How far it is, for the log."""

    @abstractmethod
    def check(self, draft: Draft) -> None:
        """Raise InvalidDraft unless the draft fits where the image stands."""

    def record(self, draft: Draft, verdict: Verdict) -> Verdict:
        """Count a judged round and remember its verdict."""
        self.rounds += 1
        self.judged += draft.drafted
        self.accepted += verdict.accepted
        return self.answers.keep(draft, verdict)

    def usage(self) -> Usage:
        """What it has cost so far (SPEC section 8)."""
        return Usage(self.forwards, self.rounds, self.judged, self.accepted, self.cloud_s)

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Counts the pass that it holds, and its seconds."""
        began = time.perf_counter()
        yield
        self.forwards += 1
        self.cloud_s += time.perf_counter() - began


SessionT = TypeVar("SessionT", bound=PassSession)


class PassEngine(ABC, Generic[SessionT]):
    """One model, up to `max_sessions` images at a time. Not thread-safe: exactly one thread may call it."""

    def __init__(self, max_sessions: int) -> None:
        self.max_sessions = max_sessions
        self._open: set[str] = set()

    @property
    @abstractmethod
    def info(self) -> ModelInfo:
        """The model as GetInfo reports it."""

    @torch.inference_mode()
    def open(self, order: Open) -> SessionT:
        """Begin an image; nothing is drawn yet. Raises ModelUnavailable, ModelMismatch, InvalidPrompt and
        InvalidRequest for what cannot be ordered, Overloaded when too many are open."""
        check_model(order, self.info)
        check_seed(order.seed)
        if len(self._open) >= self.max_sessions:
            why = f"all {self.max_sessions} sessions of this server are in use"
            raise Overloaded("the server has no free session", why, "try again shortly")
        session = self._begun(order)
        self._open.add(session.name)
        return session

    def close(self, session: SessionT) -> None:
        """Forget an image; closing twice changes nothing."""
        self._open.discard(session.name)

    @abstractmethod
    def _begun(self, order: Open) -> SessionT:
        """The image of an order for this model, as far as it is owned. Raises as `open` does."""
