"""A shaped link: a TCP proxy between two real processes, with a rate, a delay, jitter and stalls. Knows
nothing of what the bytes mean.

Each direction is one line of its own. A message of S bytes that finds its line idle has arrived whole after
`delay + 8 S / rate`: the line takes `8 S / rate` to send it, then every byte travels `delay`. So `delay` is
ONE WAY and a round trip costs it twice. The paper's profiles are read that way because its figures count so:
its totals for one image (1,678 ms at 10 ms, 3,344 at 20, 8,174 at 50) are 163 to 168 delays each, whatever
the rate, and 256 tokens at a call rate of 30.4 % are 78 calls; with a message each way they cost 156 delays.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import selectors
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from shared.errors import CiarError, InvalidRequest
from training.data import keyed_generator

CHUNK = 16 * 1024  # bytes that travel as one: a chunk is delivered when its last byte is
IN_FLIGHT = 4096  # chunks between the two ends at most; a sender waits beyond that
AHEAD_S = 0.05  # how far ahead of its line a sender is read
CONNECT_S = 5.0  # the far side is given up after this
HOP_S = 0.0005  # what reading, waking up and writing add of themselves: taken off every wait
_NO_LINGER = struct.pack("ii", 1, 0)  # closing sends a reset
UP, DOWN = 0, 1
_JITTER, _STALL = 0, 1  # what a keyed draw is for


@dataclass(frozen=True)
class Profile:
    """What a link does to bytes, the same in both directions. Raises InvalidRequest for values out of range.

    rate_bps       bits a second
    delay_s        one way
    jitter_s       a burst comes up to this much earlier or later, uniformly, and never overtakes another
    stall_every_s  once in every such stretch, at a keyed place of it, nothing arrives for `stall_s`; 0: never
    """

    name: str
    rate_bps: float = math.inf
    delay_s: float = 0.0
    jitter_s: float = 0.0
    stall_every_s: float = 0.0
    stall_s: float = 0.0

    def __post_init__(self) -> None:
        _require(self.rate_bps > 0, f"a rate of {self.rate_bps} bit/s", "allowed: above 0")
        _require(0 <= self.delay_s < math.inf, f"a delay of {self.delay_s} s", "allowed: 0 and above")
        _require(
            0 <= self.jitter_s <= self.delay_s, f"a jitter of {self.jitter_s} s", "allowed: 0 to the delay"
        )
        stalls = 0 <= self.stall_s < self.stall_every_s or self.stall_s == self.stall_every_s == 0
        _require(stalls, f"stalls of {self.stall_s} s every {self.stall_every_s} s", "allowed: 0, or shorter")

    def message_s(self, size: int) -> float:
        """How long a message of `size` bytes takes over an idle line without jitter: the paper's formula."""
        return self.delay_s + 8 * size / self.rate_bps


def _require(holds: bool, what: str, allowed: str) -> None:
    if not holds:
        raise InvalidRequest(f"{what} cannot be", allowed)


LOOPBACK = Profile("loopback")
PROFILES = {
    profile.name: profile
    for profile in (
        Profile("5g", rate_bps=300e6, delay_s=0.010),
        Profile("4g", rate_bps=20e6, delay_s=0.050),
        Profile("wifi", rate_bps=100e6, delay_s=0.020),
        LOOPBACK,
    )
}
ROUND_TRIP_50_MS = Profile("50ms", rate_bps=100e6, delay_s=0.025)  # of no paper: what pipelining is held to


def profile_named(name: str) -> Profile:
    """A profile by name. Raises InvalidRequest naming those there are."""
    named = {**PROFILES, ROUND_TRIP_50_MS.name: ROUND_TRIP_50_MS}
    if name not in named:
        raise InvalidRequest(f"there is no link profile {name!r}", f"allowed: {', '.join(named)}")
    return named[name]


class Lane:
    """One direction of a link, shared by its connections: when what arrives now comes out. Pure arithmetic
    over the times it is told, in seconds of one clock that reads `start_s` when the link begins.

    Jitter and stalls are keyed by (seed, direction, count): the n-th burst of a line, the n-th stretch.
    """

    def __init__(self, profile: Profile, seed: int, direction: int, start_s: float) -> None:
        self.profile, self._seed, self._direction, self._start_s = profile, seed, direction, start_s
        self.free_s = start_s  # when the line has sent all it was given
        self._last_s = start_s  # when the last of it comes out
        self._bursts, self._late_s = 0, 0.0

    def schedule(self, now_s: float, size: int) -> float:
        """When the last of `size` bytes given now comes out; never before what was given earlier."""
        if now_s >= self.free_s:  # the line was idle: a new burst
            self._late_s = self._jitter()
        self.free_s = max(self.free_s, now_s) + 8 * size / self.profile.rate_bps
        due_s = self._behind_stall(self.free_s + self.profile.delay_s + self._late_s)
        self._last_s = max(self._last_s, due_s)
        return self._last_s

    def _jitter(self) -> float:
        self._bursts += 1
        if not self.profile.jitter_s:
            return 0.0
        return self.profile.jitter_s * (2 * self._uniform(_JITTER, self._bursts) - 1)

    def _behind_stall(self, due_s: float) -> float:
        every_s, stall_s = self.profile.stall_every_s, self.profile.stall_s
        if not every_s:
            return due_s
        stretch = math.floor((due_s - self._start_s) / every_s)
        begin_s = stretch * every_s + self._uniform(_STALL, stretch) * (every_s - stall_s) + self._start_s
        return begin_s + stall_s if begin_s <= due_s < begin_s + stall_s else due_s

    def _uniform(self, purpose: int, count: int) -> float:
        return float(keyed_generator(self._seed, 4 * count + 2 * self._direction + purpose).random())


class ShapedLink:
    """A proxy in front of `host:port`; an async context manager on `address` while it is open.

    Bytes arrive intact and in order. A half-close and a reset pass through behind what was sent before them;
    a far side that refuses is a reset at once. Idle connections stay as long as their ends hold them.
    """

    def __init__(self, profile: Profile, target: str, *, listen: int = 0, seed: int = 0) -> None:
        self._host, self._port = _host_and_port(target)
        self._listen, self._profile, self._seed = listen, profile, seed
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""

    async def __aenter__(self) -> Self:
        now_s = time.perf_counter()
        self._lanes = [Lane(self._profile, self._seed, direction, now_s) for direction in (UP, DOWN)]
        try:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._listen)
        except OSError as error:
            what = f"cannot listen on port {self._listen}"
            raise CiarError(what, str(error), "0 takes any free one") from error
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._connection(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        except (OSError, TimeoutError):
            _reset(writer)
            return
        try:
            await self._carry_both((reader, writer), (far_reader, far_writer))
        except* OSError:
            _reset(writer)
            _reset(far_writer)
        finally:
            writer.close()
            far_writer.close()

    async def _carry_both(self, near: _End, far: _End) -> None:
        up, down = self._lanes
        for _, writer in (near, far):
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.TaskGroup() as group:
            for source, target, lane in ((near[0], far[1], up), (far[0], near[1], down)):
                flight: _Flight = asyncio.Queue(IN_FLIGHT)
                group.create_task(_take(source, lane, flight))
                group.create_task(_give(flight, target))


_End = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_Flight = asyncio.Queue[tuple[float, bytes | None]]  # when it is due; no bytes: the end; None: a reset


async def _take(reader: asyncio.StreamReader, lane: Lane, flight: _Flight) -> None:
    """Read one direction until it ends and say when each chunk is due."""
    chunk: bytes | None = b"something"
    while chunk:
        try:
            chunk = await reader.read(CHUNK)
        except OSError:
            chunk = None
        now_s = time.perf_counter()
        await flight.put((lane.schedule(now_s, len(chunk or b"")), chunk))
        if lane.free_s - now_s > AHEAD_S:
            await asyncio.sleep(lane.free_s - now_s - AHEAD_S / 2)


async def _give(flight: _Flight, writer: asyncio.StreamWriter) -> None:
    """Write each chunk when it is due. Raises OSError for a loss on either side.

    Mostly that is a ConnectionError; a half-close of a connection whose loss nobody has read yet is ENOTCONN,
    which is none.
    """
    while True:
        due_s, chunk = await flight.get()
        while (wait_s := due_s - HOP_S - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        if chunk is None:
            raise ConnectionResetError
        if not chunk:
            writer.write_eof()
            return
        writer.write(chunk)
        await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that its other side sees a reset."""
    with contextlib.suppress(OSError):  # it may be gone already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()


def _host_and_port(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidRequest(f"{target!r} is not host:port", "a port is 1 to 65535")
    return host.strip("[]"), int(port)


@contextlib.contextmanager
def precise_runner() -> Iterator[asyncio.Runner]:
    """A runner whose event loop sleeps to the microsecond; the usual one rounds waits up to a millisecond."""

    def loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    with asyncio.Runner(loop_factory=loop) as runner:
        yield runner
