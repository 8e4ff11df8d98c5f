"""A cloud server in a process of its own that can be killed, frozen, started again and looked at. Linux only.

Knows nothing of images.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen

from device_client.link import CloudLink
from evaluation.apart import resident_mib
from shared.errors import CiarError

READY_S = 120.0
HOST = "127.0.0.1"
_PAGE_S = 10.0  # a metrics page that takes longer is none
_LOOK_S = 0.02  # between two looks at something awaited
_USER_TICKS = 11  # utime, counted from behind the name in /proc/PID/stat; stime follows


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        return int(taken.getsockname()[1])


class ServerProcess:
    """`cloud-server --model MODEL FLAGS` on a port that outlives its processes; a context manager.

    What it says goes to a file, not to a pipe: nobody reads along, and a full pipe would stop it.
    """

    def __init__(self, model: str, *flags: str) -> None:
        self.port, self._metrics_port = free_port(), free_port()
        ports = ("--port", str(self.port), "--metrics-port", str(self._metrics_port))
        self._command = [sys.executable, "-m", "cloud_server.cli", "--model", model, *ports, *flags]
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - lives as long as this

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._said.close()

    @property
    def target(self) -> str:
        """host:port."""
        return f"{HOST}:{self.port}"

    def start(self) -> None:
        """Start it and return at once; `ready` waits."""
        said = {"stdout": self._said, "stderr": subprocess.STDOUT}
        self._process = subprocess.Popen(self._command, **said)  # type: ignore[call-overload]

    def kill(self) -> None:
        """SIGKILL; frozen processes die as well."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    async def ready(self) -> None:
        """Wait until it answers. Raises CiarError with its own words if it ends before."""
        if not await answers(self.target, READY_S, lambda: self._process.poll() is None):
            self._said.seek(0)
            raise CiarError("cloud-server did not get ready", self._said.read()[-2000:])

    async def sample(self, name: str) -> float:
        """The sum of a metric over its labels; 0 where it has none yet. Raises CiarError for no answer."""
        url = f"http://{HOST}:{self._metrics_port}/metrics"
        try:
            page = await asyncio.to_thread(_page, url)
        except (URLError, OSError) as error:
            raise CiarError(f"no metrics at {url}", str(error)) from error
        found = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE)
        return sum(map(float, found))

    async def sessions(self) -> int:
        """Images it is drawing now, by its own count."""
        return int(await self.sample("ciar_sessions_active"))

    async def emptied(self, patience_s: float = 5.0) -> tuple[int, float]:
        """Sessions left once none is or patience ends, and the seconds that took."""
        began_s = time.monotonic()
        while (left := await self.sessions()) and time.monotonic() - began_s < patience_s:
            await asyncio.sleep(_LOOK_S)
        return left, time.monotonic() - began_s

    def resident_mib(self) -> float:
        """VmRSS."""
        return resident_mib(self._process.pid)

    def worked_s(self) -> float:
        """Processor seconds it has taken so far, on all cores."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(stat[_USER_TICKS]) + int(stat[_USER_TICKS + 1])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """Open file descriptors."""
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))


async def answers(target: str, patience_s: float, hopeful: Callable[[], bool] = lambda: True) -> bool:
    """Whether a server comes to answer at `target` within `patience_s`, while there is hope."""
    deadline_s = time.monotonic() + patience_s
    while hopeful() and time.monotonic() < deadline_s:
        with contextlib.suppress(CiarError):
            async with CloudLink(target, connect_s=2.0) as link:
                await link.info()
                return True
        await asyncio.sleep(_LOOK_S)
    return False


def _page(url: str) -> str:
    with urlopen(url, timeout=_PAGE_S) as page:
        text: bytes = page.read()
    return text.decode()
