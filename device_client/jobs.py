"""What is being drawn for whom: a job lives while somebody waits for it, and can be asked for by its id.

Ids cannot be guessed, so who knows one owns it. A job begins when the first watcher comes, and is cancelled
when the last one goes. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Literal

from device_client.draw import Upstream, finish, steps
from device_client.loop import Progress
from device_client.timeline import Round, Timeline
from device_client.wish import Plan
from shared.errors import CiarError, InvalidRequest, Overloaded
from shared.models.zoo import DevicePackage

State = Literal["waiting", "running", "done", "failed", "cancelled"]
MAX_RUNNING = 16  # jobs at a time: they share one processor
KEPT = 64  # jobs remembered: finished ones answer a repeated request
MAX_KEY = 255  # characters of an idempotency key


class JobCancelled(CiarError):
    """The job was cancelled while its picture was waited for."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A finished picture: what was asked, what came of it, the file."""

    plan: Plan
    progress: Progress
    rounds: tuple[Round, ...]
    png: bytes


class Job:
    """Pictures drawn one after another. Watch it with `watching`, wait for news with `news`.

    pictures  the finished ones
    latest    the one in work; None before its first token
    rounds    of the one in work
    """

    def __init__(self, package: DevicePackage, upstream: Upstream, plans: Sequence[Plan]) -> None:
        self.id = secrets.token_hex(16)
        self.plans = tuple(plans)
        self.pictures: list[Picture] = []
        self.latest: Progress | None = None
        self.error: BaseException | None = None
        self.state: State = "waiting"
        self.version = 0  # counts changes
        self._package, self._upstream = package, upstream
        self._timeline = Timeline()
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def rounds(self) -> Sequence[Round]:
        """Of the picture in work."""
        return self._timeline.rounds

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Be one of those the job is done for; the first one starts it."""
        self._watchers += 1
        if self.state == "waiting":
            self.state = "running"
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._end)
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers:
                self.cancel()

    def cancel(self) -> None:
        """Stop it; what is finished stays as it is."""
        if self._task is None:
            self.state = "cancelled"
        else:
            self._task.cancel()

    async def news(self, seen: int) -> None:
        """Return once `version` is another than the one seen: a token came, a picture, the end."""
        while self.version == seen and not self.over:
            await self._news.wait()

    async def result(self) -> list[Picture]:
        """All pictures. Raises what the drawing raised, and JobCancelled."""
        with self.watching():
            while not self.over:
                await self.news(self.version)
        if self.problem is not None:
            raise self.problem
        return self.pictures

    @property
    def problem(self) -> BaseException | None:
        """What the drawing raised, or JobCancelled; None while all is well."""
        if self.error is None and self.state == "cancelled":
            return JobCancelled(f"job {self.id} was cancelled", "", "ask again for the picture")
        return self.error

    async def _run(self) -> None:
        for plan in self.plans:
            picture = await self._draw(plan)
            self.pictures.append(picture)
            self.latest, self._timeline = None, Timeline()
            self._tell()

    async def _draw(self, plan: Plan) -> Picture:
        last = None
        async with aclosing(steps(self._package, plan, self._upstream)) as progress:
            async for last in progress:
                self.latest = last
                self._timeline.add(last.counters)
                self._tell()
        assert last is not None and last.done, "the loop ends with a finished picture"
        png = await asyncio.to_thread(finish, self._package, plan, last)
        return Picture(plan, last, tuple(self.rounds), png)

    def _end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self.state = "cancelled"
        else:
            self.error = task.exception()
            self.state = "failed" if self.error else "done"
        self._tell()

    def _tell(self) -> None:
        self.version += 1
        news, self._news = self._news, asyncio.Event()
        news.set()


class Jobs:
    """The jobs of one gateway, the newest `KEPT` of them."""

    def __init__(self, package: DevicePackage, upstream: Upstream) -> None:
        self._package, self._upstream = package, upstream
        self._jobs: dict[str, Job] = {}
        self._keys: dict[str, tuple[str, Job]] = {}  # idempotency key -> the request it came with, its job

    def begin(self, plans: Callable[[], Sequence[Plan]], request: str, key: str | None) -> Job:
        """A job for these plans, or the one that `key` began, unless that has failed or was cancelled.

        `request` says what was asked, as text. Raises InvalidRequest where the key came with another request,
        Overloaded where too much is being drawn, and whatever `plans` raises.
        """
        known = None if key is None else self._known(key, request)
        if known is not None:
            return known
        job = Job(self._package, self._upstream, plans())
        if sum(other.state == "running" for other in self._jobs.values()) >= MAX_RUNNING:
            raise Overloaded(
                f"{MAX_RUNNING} requests are being drawn already", "this device draws no more at a time"
            )
        self._remember(job)
        if key is not None:
            self._keys[key] = (request, job)
        return job

    def find(self, job_id: str) -> Job | None:
        """The job of that id, if it is still remembered."""
        return self._jobs.get(job_id)

    def _known(self, key: str, request: str) -> Job | None:
        if not 0 < len(key) <= MAX_KEY:
            raise InvalidRequest(
                f"an idempotency key of {len(key)} characters", f"allowed: 1 to {MAX_KEY} characters"
            )
        asked, job = self._keys.get(key, (request, None))
        if asked != request:
            raise InvalidRequest(
                f"the idempotency key {key[:40]!r} came with another request before", "", "take a new key"
            )
        return None if job is None or job.state in ("failed", "cancelled") else job

    def _remember(self, job: Job) -> None:
        self._jobs[job.id] = job
        idle = [other for other in self._jobs.values() if other.state != "running"]
        for old in idle[: max(0, len(self._jobs) - KEPT)]:
            del self._jobs[old.id]
        self._keys = {key: asked for key, asked in self._keys.items() if asked[1].id in self._jobs}
