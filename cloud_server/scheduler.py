"""Awaiting jobs become batches: one model thread, and whatever waits when it is free forms the next batch.

The only file in which asyncio and the model thread meet. Opening and closing take the same thread, so that a
cache slot never changes hands under a running forward. Knows nothing of the wire.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from cloud_server.engine import Answer, Engine, batches
from cloud_server.model_thread import ModelThread, OnModelThread
from cloud_server.session import Job, Session
from cloud_server.telemetry import Telemetry
from shared import tracing
from shared.messages import Open

ResultT = TypeVar("ResultT")
FAILURES = 5  # forwards that fail one after another before the engine counts as dead
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How long a batch waits for company at most, and how long one forward may take."""

    max_wait_s: float = 0.0
    limit_s: float = 60.0


@dataclass(frozen=True, eq=False)
class _Waiter:
    job: Job
    answer: asyncio.Future[Answer]


class Scheduler(OnModelThread):
    """Owns the engine's thread. Every method but `stop` is called on the event loop."""

    def __init__(self, engine: Engine, telemetry: Telemetry, pace: Pace = Pace()) -> None:
        self._engine, self._telemetry, self._pace = engine, telemetry, pace
        self._thread = ModelThread(pace.limit_s)
        self._waiting: list[_Waiter] = []
        self._arrived = threading.Condition()  # guards _waiting, which the loop fills and the thread empties
        self._sessions = self._failures = 0

    async def open(self, order: Open) -> Session:
        """`Engine.open`, off the loop. A caller that is cancelled meanwhile leaves no slot taken."""
        session = await in_turn(self._thread, lambda: self._engine.open(order), self._engine.close)
        self._sessions += 1
        return session

    def close(self, session: Session) -> None:
        """Free the session's slot behind whatever runs now; returns at once."""
        self._sessions -= 1
        self._thread.submit(lambda: self._engine.close(session))

    async def submit(self, job: Job) -> Answer:
        """The judgement of a job and the model seconds it took. Raises what the engine raised on it.

        The job of a cancelled caller is dropped if it still waits.
        """
        waiter = _Waiter(job, asyncio.get_running_loop().create_future())
        with self._arrived:
            self._waiting.append(waiter)
            self._arrived.notify()
        # One act per job: it runs all that waits by then, so that those of batched jobs find nothing to do.
        self._thread.submit(self._run_waiting)
        with tracing.span("forward") as span:
            answer = await waiter.answer
            span.note(model_s=answer.cloud_s)
        return answer

    @property
    def waiting(self) -> int:
        """Jobs that wait for a forward."""
        return len(self._waiting)

    @property
    def problem(self) -> str | None:
        """Why nothing can be expected of the engine; None if it is well, however busy."""
        if self._failures >= FAILURES:
            return f"the last {self._failures} forwards failed"
        return self.stuck

    def stop(self) -> None:
        """Wait for the model thread to finish what it was given, then end it."""
        self._thread.stop()

    def _run_waiting(self) -> None:
        """In the model thread: run all that waits, at most one job per session."""
        taken = self._take()
        if len(taken) == 1:  # one alone has no order to be put in
            self._run_batch(taken)
            return
        waiter_of = {waiter.job: waiter for waiter in taken}
        for jobs in batches(waiter_of):
            self._run_batch([waiter_of[job] for job in jobs])

    def _take(self) -> list[_Waiter]:
        with self._arrived:
            if self._waiting and self._pace.max_wait_s:
                self._await_company()
            alive = [waiter for waiter in self._waiting if not waiter.answer.cancelled()]
            first_of = {id(waiter.job.session): waiter for waiter in reversed(alive)}
            taken = list(first_of.values())
            self._waiting = [waiter for waiter in alive if waiter not in taken]
        return taken

    def _await_company(self) -> None:
        """Until all sessions have a job here, `max_wait_s` at most."""
        until_s = time.monotonic() + self._pace.max_wait_s
        while len(self._waiting) < self._sessions and (left_s := until_s - time.monotonic()) > 0:
            self._arrived.wait(left_s)

    def _run_batch(self, waiters: Sequence[_Waiter]) -> None:
        """One forward. Where it fails each job is tried alone: a bad one never spoils its batch-mates."""
        try:
            answers = self._engine.run([waiter.job for waiter in waiters])
        except Exception as error:
            if len(waiters) > 1:
                log.exception("a batch of %d failed; its jobs are tried alone", len(waiters))
                for waiter in waiters:
                    self._run_batch([waiter])
                return
            self._failures += 1
            _tell(waiters[0].answer, error)
            return
        self._failures = 0
        self._telemetry.forward(
            len(waiters), sum(len(waiter.job.session.slots) for waiter in waiters), answers[0].cloud_s
        )
        for waiter, answer in zip(waiters, answers, strict=True):
            _tell(waiter.answer, answer)


async def in_turn(
    thread: ModelThread, act: Callable[[], ResultT], undo: Callable[[ResultT], None]
) -> ResultT:
    """Await an act of the model thread. One whose caller is cancelled is skipped, or undone if it had begun,
    in that thread as well."""

    def unclaimed(done: Future[ResultT]) -> None:
        if done.exception() is None:
            undo(done.result())

    future = thread.submit(act)
    try:
        return await asyncio.shield(asyncio.wrap_future(future))
    except asyncio.CancelledError:
        if not future.cancel():  # it has begun
            future.add_done_callback(unclaimed)
        raise


def _tell(future: asyncio.Future[Answer], what: Answer | Exception) -> None:
    """Settle a future of the event loop from another thread. A loop that is closed has nobody waiting."""
    loop = future.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(_settle, future, what)


def _settle(future: asyncio.Future[Answer], what: Answer | Exception) -> None:
    if future.done():
        return
    if isinstance(what, Exception):
        future.set_exception(what)
    else:
        future.set_result(what)
