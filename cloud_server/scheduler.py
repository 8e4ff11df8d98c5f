"""Awaiting jobs become batches: one model thread, and whatever waits when it is free forms the next batch.

The only file in which asyncio and the model thread meet. Opening and closing take the same thread, so that a
cache slot never changes hands under a running forward. Knows nothing of the wire.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cloud_server.engine import Answer, Engine, batches
from cloud_server.session import Job, Session
from cloud_server.telemetry import Telemetry
from shared.messages import Open


@dataclass(frozen=True, eq=False)
class _Waiter:
    job: Job
    answer: asyncio.Future[Answer]


class Scheduler:
    """Owns the engine's thread. Every method but `stop` is called on the event loop."""

    def __init__(self, engine: Engine, telemetry: Telemetry) -> None:
        self._engine, self._telemetry = engine, telemetry
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._waiting: list[_Waiter] = []
        self._lock = threading.Lock()  # guards _waiting, which the loop fills and the model thread empties

    async def open(self, order: Open) -> Session:
        """`Engine.open`, off the loop. A caller that is cancelled meanwhile leaves no slot taken."""
        opening = asyncio.get_running_loop().run_in_executor(self._thread, self._engine.open, order)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._close_unclaimed)
            raise

    def close(self, session: Session) -> None:
        """Free the session's slot behind whatever runs now; returns at once."""
        self._thread.submit(self._engine.close, session)

    async def submit(self, job: Job) -> Answer:
        """The judgement of a job and the model seconds it took. Raises what the engine raised on its batch.

        The job of a cancelled caller is dropped if it still waits.
        """
        waiter = _Waiter(job, asyncio.get_running_loop().create_future())
        with self._lock:
            self._waiting.append(waiter)
        # One task per job: it runs all that waits by then, so that those of batched jobs find nothing to do.
        self._thread.submit(self._run_waiting)
        return await waiter.answer

    def stop(self) -> None:
        """Wait for the model thread to finish what it was given, then end it."""
        self._thread.shutdown(wait=True)

    def _close_unclaimed(self, opening: asyncio.Future[Session]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self.close(opening.result())

    def _run_waiting(self) -> None:
        """In the model thread: run all that waits, at most one job per session."""
        taken = self._take()
        waiter_of = {waiter.job: waiter for waiter in taken}
        for jobs in batches(waiter_of):
            self._run_batch(jobs, [waiter_of[job].answer for job in jobs])

    def _take(self) -> list[_Waiter]:
        with self._lock:
            alive = [waiter for waiter in self._waiting if not waiter.answer.cancelled()]
            first_of = {id(waiter.job.session): waiter for waiter in reversed(alive)}
            taken = list(first_of.values())
            self._waiting = [waiter for waiter in alive if waiter not in taken]
        return taken

    def _run_batch(self, jobs: Sequence[Job], futures: Sequence[asyncio.Future[Answer]]) -> None:
        try:
            answers = self._engine.run(jobs)
        except Exception as error:  # noqa: BLE001 - belongs to whoever waits; the thread lives on
            for future in futures:
                future.get_loop().call_soon_threadsafe(_fail, future, error)
            return
        self._telemetry.forward(len(jobs), answers[0].cloud_s)
        for future, answer in zip(futures, answers, strict=True):
            future.get_loop().call_soon_threadsafe(_resolve, future, answer)


def _resolve(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


def _fail(future: asyncio.Future[Answer], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
