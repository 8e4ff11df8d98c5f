"""`ciar-ray` in a process of its own, and its replicas, which are processes of Ray's. Linux only."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from evaluation.processes import HOST, free_port
from shared.errors import CiarError

_READY_S = 180.0
_STOP_S = 120.0
_REPLICA = "ray::ServeReplica:ciar"


@dataclass(frozen=True)
class RayFront:
    """A running `ciar-ray`."""

    target: str
    pid: int

    def replicas(self) -> list[int]:
        """Process ids of its replicas."""
        return [pid for pid in _descendants(self.pid) if _command(pid).startswith(_REPLICA)]

    async def kill_one(self) -> None:
        """SIGKILL one replica. Raises CiarError where there is none."""
        pids = self.replicas()
        if not pids:
            raise CiarError("Ray runs no replica")
        os.kill(pids[0], signal.SIGKILL)


@contextmanager
def ray_front(model: str, models: Path, replicas: int) -> Iterator[RayFront]:
    """Ray Serve on this machine with so many replicas. Raises CiarError if it does not start."""
    port, count = free_port(), str(replicas)
    flags = ["--model", model, "--models", str(models), "--port", str(port), "--http-port", str(free_port())]
    scale = ["--min-replicas", count, "--max-replicas", count, "--shutdown-timeout", "5"]
    command = [sys.executable, "-m", "cloud_server.cluster.cli", *flags, *scale]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            _wait(process)
            yield RayFront(f"{HOST}:{port}", process.pid)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_STOP_S)
            process.kill()


def _wait(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    heard, deadline_s = [], time.monotonic() + _READY_S
    while time.monotonic() < deadline_s and (line := process.stdout.readline()):
        heard.append(line)
        if line.startswith("ciar-ray: serving"):
            return
    raise CiarError("ciar-ray did not get ready", "".join(heard)[-2000:])


def _descendants(pid: int) -> list[int]:
    """Process ids of all children and theirs."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            found = re.search(r"^PPid:\s*(\d+)", status.read_text(encoding="utf-8"), re.MULTILINE)
            parents.setdefault(int(found[1]) if found else 0, []).append(int(status.parent.name))
    below, at = [], [pid]
    while at:
        children = parents.get(at.pop(), [])
        below += children
        at += children
    return below


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""
