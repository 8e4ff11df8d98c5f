"""A device in a process of its own that stops at one stage of its image and waits there to be disturbed.

Knows nothing of which disturbance comes.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

from device_client.cloud import Request
from device_client.link import CloudLink
from device_client.policy import Policy
from evaluation.stages import Drawn, Fault, draw_staged
from shared.errors import CiarError
from shared.models.zoo import load_device_package
from shared.threads import use_threads

_START_S = 120.0  # to its stage, imports and weights included
_FINISH_S = 120.0


@dataclass(frozen=True)
class Task:
    """What a device shall draw, of whom, and at which stage it waits."""

    model: str
    models: Path
    target: str
    request: Request
    policy: Policy
    stage: str


class DeviceProcess:
    """One device, one image; a context manager that leaves no process behind."""

    def __init__(self, task: Task) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._line, self._far = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(task, self._far), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._far.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._line.close()

    async def at_stage(self) -> None:
        """Wait until it stands there. Raises CiarError if it does not come."""
        await self._hear(_START_S)

    def go_on(self) -> None:
        """Let it go on."""
        self._line.send(True)

    async def drawn(self) -> Drawn:
        """Its finished image, the recovery counted from `go_on`. Raises CiarError if there is none."""
        result = await self._hear(_FINISH_S)
        assert isinstance(result, Drawn)
        return result

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.join()

    def freeze(self) -> None:
        """SIGSTOP."""
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self._pid, signal.SIGCONT)

    @property
    def _pid(self) -> int:
        assert self._process.pid is not None, "it was started"
        return self._process.pid

    async def _hear(self, patience_s: float) -> object:
        try:
            if not await asyncio.to_thread(self._line.poll, patience_s):
                raise CiarError("a device process is silent", f"it had {patience_s:g} s")
            return self._line.recv()
        except EOFError:
            raise CiarError("a device process ended before its image did", "its words are above") from None


def _work(task: Task, line: Connection) -> None:
    """The process."""
    use_threads(1)
    package = load_device_package(task.model, task.models)

    def wait() -> None:
        line.send(task.stage)
        line.recv()

    async def draw() -> Drawn:
        async with CloudLink(task.target) as link:
            return await draw_staged(package, task.request, task.policy, link, Fault(task.stage, wait))

    line.send(asyncio.run(draw()))
