"""What desks have in common whose passes follow one another, whoever asked first. Knows no wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from cloud_server.model_thread import ModelThread, OnModelThread
from cloud_server.scheduler import in_turn
from cloud_server.telemetry import Telemetry
from shared import tracing

ResultT = TypeVar("ResultT")


class Costing(Protocol):
    """A session that counts what it costs."""

    cloud_s: float


class PassDesk(OnModelThread):
    """One model thread; every pass is for one image, in `rows` rows."""

    def __init__(self, telemetry: Telemetry, limit_s: float, rows: int) -> None:
        self._telemetry, self._rows = telemetry, rows
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

    def stop(self) -> None:
        """End the thread behind what it was given."""
        self._thread.stop()

    async def run(self, act: Callable[[], ResultT], session: Costing) -> ResultT:
        """One pass of the model."""
        self._waiting += 1
        before_s = session.cloud_s
        try:
            with tracing.span("forward") as span:
                result = await in_turn(self._thread, act, lambda _: None)
                span.note(model_s=session.cloud_s - before_s)
        finally:
            self._waiting -= 1
        self._telemetry.forward(1, self._rows, session.cloud_s - before_s)
        return result
