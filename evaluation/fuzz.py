"""Bad input against a real server, beside a device that draws: it lives, tells nothing, and nobody is harmed.

The one file of this room that names gRPC: bytes that are no frames cannot be sent through the device's link.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from device_client.link import CloudLink
from device_client.loop import Progress, Request, decode
from device_client.policy import Policy
from evaluation.hostile import Attack, Hostile
from shared.errors import CiarError
from shared.messages import ServerInfo
from shared.models.zoo import DevicePackage
from shared.wire import codec

GENERATE = "/ciar.v1.CiarService/Generate"
PATIENCE_S = 20.0  # for the answer to one attack
SOCKET_S = 0.05  # how long a bare connection is listened to
# What no text for others may hold: paths, tracebacks, names of types.
LEAK = re.compile(r"Traceback|\.py\b|/(?:home|work|usr|tmp|root|opt|etc)/|<class|0x[0-9a-f]{6,}|line \d+, in")
FAULTY = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS)


@dataclass
class Tally:
    """What became of the attacks of one kind. `leaks` and `faults` are texts, and should be none."""

    frames: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """A tally per kind, pictures drawn meanwhile, and how many of them came out other than alone."""

    tallies: dict[str, Tally]
    pictures: int
    spoilt: int
    free_places: int
    places: int

    @property
    def harmless(self) -> bool:
        """Whether nothing happened that must not."""
        bad = any(tally.leaks or tally.faults for tally in self.tallies.values())
        return not bad and not self.spoilt and self.free_places == self.places and self.pictures > 0


@dataclass(frozen=True)
class Plan:
    """How many frames on streams and bare connections, from which seed, how many at a time."""

    frames: int
    connections: int
    seed: int = 0
    at_once: int = 4


async def attack(
    target: str, package: DevicePackage, request: Request, policy: Policy, plan: Plan
) -> Outcome:
    """Attack the server at `target` while one device draws the same picture again and again."""
    async with CloudLink(target) as link:
        info = await link.info()
    alone = await _draw(target, package, request, policy)
    tallies: dict[str, Tally] = {}
    async with _drawing(target, package, request, policy) as pictures:
        hostile = Hostile(info, plan.seed)
        await _streams(target, hostile, plan, tallies)
        await _sockets(target, hostile, plan, tallies)
    spoilt = sum(picture.tokens != alone.tokens for picture in pictures)
    return Outcome(tallies, len(pictures), spoilt, await _free(target, hostile, info), info.max_sessions)


async def _streams(target: str, hostile: Hostile, plan: Plan, tallies: dict[str, Tally]) -> None:
    async with grpc.aio.insecure_channel(target) as channel:

        async def strike() -> None:
            made = hostile.attack()
            tally = tallies.setdefault(made.kind, Tally())
            tally.frames += len(made.frames)
            await _stream(channel, made, tally)

        while (done := sum(tally.frames for tally in tallies.values())) < plan.frames:
            # A few at a time, and a look at the clock of nobody: a frozen server ends this with its patience.
            batch = min(plan.at_once, plan.frames - done)
            await asyncio.gather(*(strike() for _ in range(batch)))


async def _stream(channel: grpc.aio.Channel, made: Attack, tally: Tally) -> None:
    call: Any = channel.stream_stream(GENERATE)(timeout=PATIENCE_S)
    try:
        with suppress(asyncio.InvalidStateError):  # over before all was said
            for frame in made.frames:
                await call.write(frame)
            await call.done_writing()
        last = b""
        while isinstance(answer := await call.read(), bytes):
            last = answer
        _note(tally, last)
    except grpc.aio.AioRpcError:
        code, text = await call.code(), str(await call.details())
        # What gRPC calls an error of its own core is our writing into a stream that the server had ended.
        if code in FAULTY and "Internal error from Core" not in text:
            tally.faults.append(f"{code.name}: {text}")
        tally.ends[f"status {code.name}"] += 1
        _listen(tally, text)


def _note(tally: Tally, last: bytes) -> None:
    """Count the end of a stream by its last frame."""
    if not last:
        tally.ends["nothing"] += 1
        return
    try:
        message = codec.read_response(last)
    except CiarError as error:
        tally.ends[type(error).__name__] += 1
        _listen(tally, str(error))
        if type(error) is CiarError:
            tally.faults.append(str(error))
        return
    tally.ends[type(message).__name__] += 1


def _listen(tally: Tally, text: str) -> None:
    if LEAK.search(text):
        tally.leaks.append(text[:200])


async def _sockets(target: str, hostile: Hostile, plan: Plan, tallies: dict[str, Tally]) -> None:
    host, _, port = target.rpartition(":")
    for _ in range(plan.connections):
        made = hostile.connection()
        tally = tallies.setdefault(made.kind, Tally())
        tally.frames += len(made.frames)
        reader, writer = await asyncio.open_connection(host, int(port))
        heard = b""
        with suppress(ConnectionError, TimeoutError):
            writer.write(b"".join(made.frames))
            await writer.drain()
            async with asyncio.timeout(SOCKET_S):
                heard = await reader.read(65536)
        tally.ends["answered" if heard else "ignored"] += 1
        _listen(tally, heard.decode("latin-1"))
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def _drawing(
    target: str, package: DevicePackage, request: Request, policy: Policy
) -> AsyncIterator[list[Progress]]:
    """One honest device, over and over, until the end; the last picture is waited for."""
    pictures: list[Progress] = []
    over = asyncio.Event()

    async def draw() -> None:
        while not over.is_set():
            pictures.append(await _draw(target, package, request, policy))

    task = asyncio.create_task(draw())
    try:
        yield pictures
    finally:
        over.set()
        await task


async def _draw(target: str, package: DevicePackage, request: Request, policy: Policy) -> Progress:
    async with CloudLink(target) as link:
        async for progress in decode(package, request, policy, link):
            last = progress
    return last


async def _free(target: str, hostile: Hostile, info: ServerInfo) -> int:
    """How many sessions can be open at a time now."""
    opened = 0
    async with AsyncExitStack() as stack:
        for _ in range(info.max_sessions):
            link = await stack.enter_async_context(CloudLink(target, retry_s=1.0, deadline_s=5.0))
            with suppress(CiarError):
                await link.open(hostile.order)
                opened += 1
    return opened


def table(outcome: Outcome) -> str:
    """A row per kind, and what all of it did to others."""
    lines = ["| attack | frames | ends | faults | leaks |", "| --- | --: | --- | --: | --: |"]
    for kind, tally in sorted(outcome.tallies.items()):
        ends = ", ".join(f"{name} {count}" for name, count in tally.ends.most_common())
        lines.append(f"| {kind} | {tally.frames} | {ends} | {len(tally.faults)} | {len(tally.leaks)} |")
    total = sum(tally.frames for tally in outcome.tallies.values())
    told = [text for tally in outcome.tallies.values() for text in (*tally.faults, *tally.leaks)]
    lines += ["", f"{total} frames and byte strings; {outcome.pictures} pictures drawn beside them, "]
    lines[-1] += f"{outcome.spoilt} of them changed; {outcome.free_places} of {outcome.places} places free"
    return "\n".join([*lines, *told[:10], ""])
