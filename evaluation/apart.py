"""A function in a process of its own, so that its memory can be told from its caller's. Linux only."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from shared.errors import CiarError

ResultT = TypeVar("ResultT")
_PATIENCE_S = 1800.0
_KIB = 1024


@dataclass(frozen=True)
class Memory:
    """What both processes of a table took when all was drawn, in MiB."""

    cloud_mib: float
    device_mib: float

    def line(self) -> str:
        """Below a table."""
        return f"\nMemory: cloud {self.cloud_mib:.0f} MiB, device {self.device_mib:.0f} MiB.\n"


def apart(act: Callable[..., ResultT], *given: object) -> tuple[ResultT, float]:
    """What the function returns, on one torch thread, and the memory in MiB that its process takes then.

    What goes in and out is pickled; tensors are better sent as arrays. Raises CiarError as the function does,
    and where the process is silent or ends early.
    """
    spawn = multiprocessing.get_context("spawn")
    line, far = spawn.Pipe()
    process = spawn.Process(target=_work, args=(far, act, given), daemon=True)
    process.start()
    far.close()
    try:
        if not line.poll(_PATIENCE_S):
            raise CiarError("the process is silent", f"it had {_PATIENCE_S:g} s")
        found, memory_mib = line.recv()
    except EOFError:
        raise CiarError("the process ended before its work did", "its words are above") from None
    finally:
        process.kill()
        process.join()
    if isinstance(found, CiarError):
        raise found
    return found, memory_mib


def resident_mib(process: int | str = "self") -> float:
    """VmRSS of a process."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    size = re.search(r"^VmRSS:\s*(\d+) kB", status, re.MULTILINE)
    return int(size[1]) / _KIB if size else 0.0


def _work(line: Connection, act: Callable[..., Any], given: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    try:
        found = act(*given)
    except CiarError as error:
        found = error
    line.send((found, resident_mib()))
