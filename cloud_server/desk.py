"""Where a stream's image is drawn and judged: one desk per server, one seat per image. Knows no wire.

The seam between the conversation and the models. `Desk` and `Seat` are what a service asks of any family;
`TokenDesk` is the one for models that draw token after token.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from cloud_server.alone import Onward, artist
from cloud_server.scheduler import Scheduler
from cloud_server.session import Session
from cloud_server.tree import job_of
from shared.decoding.acceptance import Judgement
from shared.messages import Draft, Open, Opened, Usage, Verdict


class Seat(Protocol):
    """One image."""

    @property
    def rates(self) -> tuple[float, float] | None:
        """Call rate and local rate of an image of which nothing was owned before; else None."""

    @property
    def story(self) -> str:
        """What it was and cost, for the log."""

    async def begin(self) -> Opened:
        """Draw what is missing of the prefix as was ordered."""

    async def judge(self, draft: Draft) -> tuple[Verdict, bool]:
        """The verdict on a draft, and whether it was judged now: not if void or repeated. Raises
        InvalidDraft."""

    def usage(self) -> Usage:
        """What it has cost so far."""

    def leave(self) -> None:
        """Free what it holds; returns at once."""


class Desk(Protocol):
    """All images of one model."""

    @property
    def waiting(self) -> int:
        """Jobs that wait for a forward."""

    @property
    def busy_s(self) -> float:
        """Seconds spent on the forward under way; 0 between two."""

    @property
    def stuck(self) -> str | None:
        """Why nobody who waits will hear of the engine again; None if that is not so."""

    @property
    def problem(self) -> str | None:
        """Why nothing can be expected of the engine; None if it is well, however busy."""

    async def open(self, order: Open) -> Seat:
        """A seat for an image. Raises ModelUnavailable, ModelMismatch, InvalidRequest, Overloaded."""

    def stop(self) -> None:
        """Wait for what was given to the model, then end its thread."""


class TokenDesk:
    """Sessions of an engine, batched by its scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    @property
    def waiting(self) -> int:
        """Jobs that wait for a forward."""
        return self._scheduler.waiting

    @property
    def busy_s(self) -> float:
        """Seconds spent on the forward under way; 0 between two."""
        return self._scheduler.busy_s

    @property
    def stuck(self) -> str | None:
        """As the scheduler says."""
        return self._scheduler.stuck

    @property
    def problem(self) -> str | None:
        """As the scheduler says."""
        return self._scheduler.problem

    async def open(self, order: Open) -> Seat:
        """A session of the engine."""
        return TokenSeat(self._scheduler, await self._scheduler.open(order))

    def stop(self) -> None:
        """Stop the scheduler."""
        self._scheduler.stop()


class TokenSeat:
    """One session."""

    def __init__(self, scheduler: Scheduler, session: Session) -> None:
        self._scheduler, self._session = scheduler, session

    @property
    def rates(self) -> tuple[float, float] | None:
        """As the session counts."""
        return self._session.rates

    @property
    def story(self) -> str:
        """Name, tokens and costs."""
        session = self._session
        cost = f"{session.forwards} forwards, {session.cloud_s:.2f} s of model time"
        return f"{session.name}: {len(session.tokens)} tokens, {cost}"

    async def begin(self) -> Opened:
        """Draw what is missing of the prefix, in batches with other sessions."""
        session = self._session
        owned, drawing = len(session.tokens), artist(session)
        while session.missing_prefix:
            answer = await self._scheduler.submit(drawing.job())
            drawing.take(answer.judgement)
        prefix = np.array(session.tokens[owned:], dtype=np.int32)
        tokens = session.limits.image_tokens
        return Opened(session.name, tokens, prefix, session.forwards, session.cloud_s)

    async def judge(self, draft: Draft) -> tuple[Verdict, bool]:
        """Judge a draft once; a repeated round gets its verdict again."""
        session = self._session
        known = session.answered(draft)
        if known is not None:
            return known, False
        settled = session.settled(draft)
        if settled is None:
            return session.void(draft), False
        session.check(settled)
        judgements, cloud_s = await self._forwards(settled)
        return session.record(draft, judgements, cloud_s), True

    def usage(self) -> Usage:
        """As the session counts."""
        return self._session.usage()

    def leave(self) -> None:
        """Free the session's slot behind whatever runs now."""
        self._scheduler.close(self._session)

    async def _forwards(self, draft: Draft) -> tuple[list[Judgement], float]:
        """Judge a draft, then go on behind the correction, as often as the order allows.

        Every forward is a job like any other: between two of them the other sessions have their turn.
        """
        answers = [await self._scheduler.submit(job_of(self._session, draft))]
        onward = Onward(self._session, answers[0].judgement)
        while onward.worthwhile:
            answers.append(await self._scheduler.submit(onward.job()))
            onward.take(answers[-1].judgement)
        return [answer.judgement for answer in answers], sum(answer.cloud_s for answer in answers)
