"""The desk of models whose passes follow one another, whoever asked first; one seat per image. Knows no wire.

Images in company are not computed together: to the last bit, what is drawn must not depend on who else draws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from cloud_server.desk import Seat
from cloud_server.model_thread import ModelThread, OnModelThread
from cloud_server.pass_engine import PassEngine, PassSession
from cloud_server.scheduler import in_turn
from cloud_server.telemetry import Telemetry
from shared import tracing
from shared.messages import Draft, Open, Opened, Usage, Verdict

ROWS = 2  # of a pass: guidance
ResultT = TypeVar("ResultT")
EngineT = TypeVar("EngineT", bound=PassEngine[Any])
SessionT = TypeVar("SessionT", bound=PassSession)


class PassDesk(OnModelThread):
    """Images of one engine, in its thread."""

    def __init__(
        self, engine: PassEngine[Any], seat: type[PassSeat[Any, Any]], telemetry: Telemetry, limit_s: float
    ) -> None:
        self.engine: Any = engine  # the seats of a desk know which
        self._seat, self._telemetry = seat, telemetry
        self._thread = ModelThread(limit_s)
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Passes that wait or are under way."""
        return self._waiting

    @property
    def problem(self) -> str | None:
        """The same as `stuck`: a pass that fails ends its own image alone."""
        return self.stuck

    async def open(self, order: Open) -> Seat:
        """A session of the engine; a caller that is cancelled meanwhile leaves nothing open."""
        engine = self.engine
        return self._seat(self, await in_turn(self._thread, lambda: engine.open(order), engine.close))

    def close(self, session: PassSession) -> None:
        """Forget a session behind whatever runs now."""
        self._thread.submit(lambda: self.engine.close(session))

    def stop(self) -> None:
        """End the thread behind what it was given."""
        self._thread.stop()

    async def run(self, act: Callable[[], ResultT], session: PassSession) -> ResultT:
        """One pass of the model."""
        self._waiting += 1
        before_s = session.cloud_s
        try:
            with tracing.span("forward") as span:
                result = await in_turn(self._thread, act, lambda _: None)
                span.note(model_s=session.cloud_s - before_s)
        finally:
            self._waiting -= 1
        self._telemetry.forward(1, ROWS, session.cloud_s - before_s)
        return result


class PassSeat(ABC, Generic[EngineT, SessionT]):
    """One session of an engine."""

    def __init__(self, desk: PassDesk, session: SessionT) -> None:
        self._desk, self._session = desk, session
        self._engine: EngineT = desk.engine

    @property
    def rates(self) -> tuple[float, float] | None:
        """None: a pass is no token here."""
        return None

    @property
    def story(self) -> str:
        """Name, progress and costs."""
        session = self._session
        cost = f"{session.forwards} passes, {session.cloud_s:.2f} s of model time"
        return f"{session.name}: {session.progress}, {cost}"

    @abstractmethod
    async def begin(self) -> Opened:
        """Draw what is missing of the prefix."""

    async def judge(self, draft: Draft) -> tuple[Verdict, bool]:
        """Judge a draft once; a repeated round gets its verdict again."""
        if (known := self._session.answers.given(draft)) is not None:
            return known, False
        self._session.check(draft)
        return await self._verdict(draft), True

    def usage(self) -> Usage:
        """As the session counts."""
        return self._session.usage()

    def leave(self) -> None:
        """Forget the session."""
        self._desk.close(self._session)

    async def _pass(self, act: Callable[[], ResultT]) -> ResultT:
        return await self._desk.run(act, self._session)

    @abstractmethod
    async def _verdict(self, draft: Draft) -> Verdict:
        """On a checked draft."""
