"""The one thread in which the model runs: what it is given, in order, and how it is. Knows no models.

It can be asked at any time, from any thread, whether it is alive: a busy one is, one that was left by a
running act longer than a limit, or that ended, is not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

ResultT = TypeVar("ResultT")


class ModelThread:
    """`submit` acts, `stop` behind the last one. `limit_s` is how long one act may take."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._began_s: float | None = None
        # A daemon: one that hangs for ever does not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, act: Callable[[], ResultT]) -> Future[ResultT]:
        """Run it behind what is there; the future tells what came of it. A cancelled one is skipped."""
        future: Future[ResultT] = Future()
        self._queue.put(lambda: _settle(future, act))
        return future

    @property
    def busy_s(self) -> float:
        """Seconds spent on the act under way; 0 between two."""
        began_s = self._began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

    @property
    def problem(self) -> str | None:
        """Why nothing can be expected of it; None if all is well."""
        if not self._thread.is_alive():
            return "the model thread has ended"
        if self.busy_s > self._limit_s:
            return f"one forward takes longer than {self._limit_s:g} s"
        return None

    def stop(self) -> None:
        """Wait until everything given is done; not for one that hangs."""
        self._queue.put(None)
        while self._thread.is_alive() and self.problem is None:
            self._thread.join(0.05)

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            self._began_s = time.monotonic()
            entry()
            self._began_s = None


class OnModelThread:
    """Whoever gives its work to one model thread, as the server's health sees it."""

    _thread: ModelThread

    @property
    def busy_s(self) -> float:
        """Seconds spent on the work under way; 0 between two."""
        return self._thread.busy_s

    @property
    def stuck(self) -> str | None:
        """Why nobody who waits will hear of the engine again; None if that is not so."""
        return self._thread.problem



def _settle(future: Future[ResultT], act: Callable[[], ResultT]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = act()
    except Exception as error:  # noqa: BLE001 - belongs to whoever waits; the thread lives on
        future.set_exception(error)
    else:
        future.set_result(result)
