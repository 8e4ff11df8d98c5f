"""The fault table: what becomes of an image when something dies, freezes, is cut, delayed, doubled or full.

A row is a function of the scene and a stage. Knows no flags; puts no fault of its own into the programs.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from device_client.cloud import Request
from device_client.image import Image
from device_client.link import CloudLink
from device_client.loop import decode
from device_client.policy import Policy
from evaluation.chaos import Chaos
from evaluation.device_process import DeviceProcess, Task
from evaluation.mangled import Clipping, Doubling
from evaluation.network import Profile, ShapedLink
from evaluation.processes import ServerProcess
from evaluation.stages import STAGES, Fault, draw_staged
from shared.errors import CiarError, InvalidDraft
from shared.models.zoo import DevicePackage

HEADER = ("fault", "stage", "outcome", "recovery s", "identical", "slots leaked")
DELAY = Profile("200 ms", delay_s=0.2)
_PATIENCE_S = 120.0  # a server that was killed has to load its weights again
_KEEPALIVE_S = 60.0  # within this both sides notice that pings are not answered
_NO_ROOM = ("No space left on device", "File too large")


@dataclass(frozen=True)
class Outcome:
    """One row. `held`: what happened is what should; recovery from the fault to the next answer."""

    fault: str
    stage: str
    outcome: str
    recovery_s: float
    identical: bool
    leaked: int
    held: bool = True

    @property
    def good(self) -> bool:
        """Whether nothing was lost, leaked or silently wrong."""
        return self.held and self.identical and self.leaked == 0


@dataclass(frozen=True)
class Scene:
    """One server, one image and how long things freeze; `truth` is the image undisturbed.

    freeze_s    how long what is stopped stays stopped
    deadline_s  how long a device waits for an answer: less than that
    """

    model: str
    models: Path
    package: DevicePackage
    request: Request
    policy: Policy
    server: ServerProcess
    truth: tuple[int, ...]
    freeze_s: float
    deadline_s: float

    async def draw(self) -> tuple[int, ...]:
        """The tokens of the image, drawn by a new device."""
        return await image(self.package, self.request, self.policy, self.server.target)

    async def leaked(self, patience_s: float = 5.0) -> int:
        """Sessions that nobody has and the server still counts."""
        await self.server.ready()
        return (await self.server.emptied(patience_s))[0]


Row = Callable[[Scene, str], Awaitable[Outcome]]


async def image(package: DevicePackage, request: Request, policy: Policy, target: str) -> tuple[int, ...]:
    """The tokens of one image by a device that has all the time in the world."""
    async with CloudLink(target, deadline_s=_PATIENCE_S) as link:
        steps = [step async for step in decode(package, request, policy, link)]
    return steps[-1].tokens


async def server_killed(scene: Scene, stage: str) -> Outcome:
    """SIGKILL; a new process is started at once."""

    def act() -> None:
        scene.server.kill()
        scene.server.start()

    return await _through(scene, "server: kill -9, started again", stage, act)


async def server_frozen(scene: Scene, stage: str) -> Outcome:
    """SIGSTOP, and SIGCONT some seconds later."""

    def act() -> None:
        scene.server.freeze()
        asyncio.get_running_loop().call_later(scene.freeze_s, scene.server.thaw)

    return await _through(scene, f"server: SIGSTOP for {scene.freeze_s:g} s", stage, act)


async def device_killed(scene: Scene, stage: str) -> Outcome:
    """SIGKILL; recovery is until its place is free."""
    with DeviceProcess(_task(scene, stage)) as device:
        await device.at_stage()
        device.kill()
        left, freed_s = await scene.server.emptied()
    same = await scene.draw() == scene.truth
    return Outcome("device: kill -9", stage, "place free, drawn by another", freed_s, same, left)


async def device_frozen(scene: Scene, stage: str) -> Outcome:
    """SIGSTOP and, when another device has drawn the image, SIGCONT."""
    with DeviceProcess(_task(scene, stage)) as device:
        await device.at_stage()
        device.freeze()
        other, _ = await asyncio.gather(scene.draw(), asyncio.sleep(scene.freeze_s))
        device.thaw()
        device.go_on()
        drawn = await device.drawn()
    same = drawn.last.tokens == other == scene.truth
    told = f"finished, {drawn.last.counters.resumes} resumed; others went on"
    what = f"device: SIGSTOP for {scene.freeze_s:g} s"
    return Outcome(what, stage, told, drawn.recovery_s, same, await scene.leaked())


async def link_cut(scene: Scene, stage: str) -> Outcome:
    """Every connection is reset."""
    async with Chaos(scene.server.target) as proxy:
        return await _through(scene, "link: cut", stage, proxy.cut, proxy.address)


async def black_hole(scene: Scene, stage: str) -> Outcome:
    """Nothing moves, nobody is told."""
    async with Chaos(scene.server.target) as proxy:
        what, hole = f"link: black hole for {scene.freeze_s:g} s", lambda: proxy.stall(scene.freeze_s)
        return await _through(scene, what, stage, hole, proxy.address)


async def device_gone(scene: Scene, stage: str) -> Outcome:
    """SIGSTOP for good: its connection stays, and only unanswered pings tell. Recovery is until its place is
    free."""
    with DeviceProcess(_task(scene, stage)) as device:
        await device.at_stage()
        device.freeze()
        left, freed_s = await scene.server.emptied(_KEEPALIVE_S)
    same = await scene.draw() == scene.truth
    return Outcome("device: SIGSTOP for good", stage, "place free, drawn by another", freed_s, same, left)


async def link_dead(scene: Scene, stage: str) -> Outcome:
    """A connection that never moves again and never ends, as behind a router that forgot it."""
    async with Chaos(scene.server.target) as proxy:
        outcome = await _through(scene, "link: dead without a sign", stage, proxy.bury, proxy.address)
        return replace(outcome, leaked=await scene.leaked(_KEEPALIVE_S))


async def round_halved(scene: Scene, stage: str) -> Outcome:
    """Half of a draft arrives, then the connection is gone."""
    async with Chaos(scene.server.target) as proxy:
        return await _through(scene, "round: cut in the middle", stage, proxy.halve_next, proxy.address)


async def delayed(scene: Scene, stage: str) -> Outcome:
    """200 ms each way, from the first byte to the last."""
    async with ShapedLink(DELAY, scene.server.target) as link:
        return await _through(scene, "link: 200 ms each way", stage, lambda: None, link.address)


async def rounds_doubled(scene: Scene, stage: str) -> Outcome:
    """Every draft is sent twice, every verdict must come twice and be the same."""
    return await _through(scene, "rounds: all sent twice", stage, lambda: None, kind=Doubling)


async def round_truncated(scene: Scene, stage: str) -> Outcome:
    """A frame whose span lacks a byte is refused with a reason, and nothing else suffers."""
    async with Clipping(scene.server.target, deadline_s=_PATIENCE_S) as link:
        try:
            await draw_staged(scene.package, scene.request, scene.policy, link, Fault(stage, lambda: None))
            told, held = "taken for a whole one", False
        except InvalidDraft as error:
            told, held = f"refused: {error.what}", True
    leaked = await scene.leaked()
    same = await scene.draw() == scene.truth
    return Outcome("round: truncated tensor", stage, told, 0.0, same, leaked, held)


async def disk_full(scene: Scene, stage: str) -> Outcome:
    """No room for the picture: an error that says so, status 1, no half a file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "picture.png"
        ran = await asyncio.to_thread(subprocess.run, _draw_without_room(scene, out), capture_output=True)
        said = ran.stderr.decode()
        held = ran.returncode == 1 and not out.exists() and any(reason in said for reason in _NO_ROOM)
    leaked = await scene.leaked()
    same = await scene.draw() == scene.truth
    told = "exit 1, says why, leaves no file" if held else f"exit {ran.returncode}: {said[-200:]}"
    return Outcome("disk: full", stage, told, 0.0, same, leaked, held)


async def _through(  # noqa: PLR0913 - a fault has this many sides
    scene: Scene,
    what: str,
    stage: str,
    act: Callable[[], None],
    target: str | None = None,
    kind: type[CloudLink] = CloudLink,
) -> Outcome:
    """The image, drawn in this process by way of `target`, with `act` at `stage`."""
    target = target or scene.server.target
    link = kind(target, connect_s=_PATIENCE_S, deadline_s=scene.deadline_s, retry_s=_PATIENCE_S)
    async with link:
        drawn = await draw_staged(scene.package, scene.request, scene.policy, link, Fault(stage, act))
    same = drawn.last.tokens == scene.truth
    told = f"finished, {drawn.last.counters.resumes} resumed"
    return Outcome(what, stage, told, drawn.recovery_s, same, await scene.leaked())


def _task(scene: Scene, stage: str) -> Task:
    return Task(scene.model, scene.models, scene.server.target, scene.request, scene.policy, stage)


def _draw_without_room(scene: Scene, out: Path) -> list[str]:
    """A device-client whose output folder is a full file system; where none may be mounted, whose files may
    have no byte."""
    flags = ["--model", scene.model, "--models", str(scene.models), "--server", scene.server.target]
    asked = ["--prompt", scene.request.prompt, "--out", str(out), "--quiet"]
    command = [sys.executable, "-m", "device_client.cli", *flags, *asked]
    namespace = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        return ["prlimit", "--fsize=0", *command]
    fill = 'mount -t tmpfs -o size=4k none "$0" && head -c 4096 /dev/zero >"$0/full" && exec "$@"'
    return [*namespace, "sh", "-c", fill, str(out.parent), *command]


EVERYWHERE: tuple[Row, ...] = (
    server_killed, server_frozen, device_killed, device_frozen, link_cut, black_hole
)  # fmt: skip
ONCE: tuple[tuple[Row, str], ...] = (
    (round_halved, "drafting"),
    (round_truncated, "drafting"),
    (rounds_doubled, "drafting"),
    (delayed, "opening"),
    (disk_full, "finishing"),
)
SLOW: tuple[tuple[Row, str], ...] = ((device_gone, "between rounds"), (link_dead, "awaiting"))
FULL = (*((row, stage) for row in EVERYWHERE for stage in STAGES), *ONCE, *SLOW)
SHORT = (*zip(EVERYWHERE, STAGES[3:] + STAGES[:3], strict=True), *ONCE)


async def outcomes(scene: Scene, rows: tuple[tuple[Row, str], ...]) -> AsyncIterator[Outcome]:
    """Row after row; the scene's server is whole again before each."""
    for row, stage in rows:
        await scene.server.ready()
        yield await row(scene, stage)


async def places_free(scene: Scene, places: int) -> bool:
    """Whether the server takes as many images at a time as it promises: no slot is lost without a trace."""
    async with AsyncExitStack() as links:
        for _ in range(places):
            link = await links.enter_async_context(CloudLink(scene.server.target, retry_s=0.0))
            policy = replace(scene.policy, prefix_rate=0.0)
            try:
                await link.open(Image(scene.package, scene.request, policy, link).order())
            except CiarError:
                return False
    return True


def line(outcome: Outcome) -> list[str]:
    """The cells under HEADER."""
    same = "yes" if outcome.identical else "NO"
    recovery = f"{outcome.recovery_s:.2f}"
    return [outcome.fault, outcome.stage, outcome.outcome, recovery, same, str(outcome.leaked)]
