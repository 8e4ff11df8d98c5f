"""A shaped link carries every byte, in order, no sooner than its formula says; ends and losses pass through.

Only lower bounds of time are asserted: a busy machine makes a link later, never earlier.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import math
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest

from evaluation.link_check import Timing, markdown, measure, sink
from evaluation.network import (
    CHUNK,
    DOWN,
    HOP_S,
    LOOPBACK,
    PROFILES,
    UP,
    Lane,
    Profile,
    ShapedLink,
    profile_named,
)
from shared.errors import CiarError, InvalidRequest

FAST = Profile("fast", rate_bps=80e6, delay_s=0.01)
ANSWER_S = 10.0


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that sends everything back, half-closes when told to, and remembers what it heard."""
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(CHUNK):
                heard.append(data)
                writer.write(data)
                await writer.drain()
            writer.write(b"bye")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heard
    finally:
        server.close()


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


@pytest.mark.parametrize("profile", [FAST, LOOPBACK, replace(FAST, jitter_s=0.005)])
async def test_bytes_arrive_intact_and_in_order(profile: Profile) -> None:
    sent = np.random.default_rng(0).bytes(300_000)
    async with echo() as (target, heard), ShapedLink(profile, target) as link:
        reader, writer = await connect(link.address)
        for first in range(0, len(sent), 70_000):  # pieces that fit no chunk
            writer.write(sent[first : first + 70_000])
        writer.write_eof()  # half-close: the answer still comes
        back = await asyncio.wait_for(reader.read(), ANSWER_S)
        assert b"".join(heard) == sent and back == sent + b"bye"
        writer.close()


async def test_connections_share_the_line_and_keep_apart() -> None:
    async with echo() as (target, _), ShapedLink(FAST, target) as link:
        ends = [await connect(link.address) for _ in range(3)]
        for number, (_, writer) in enumerate(ends):
            writer.write(bytes([number]) * 50_000)
            writer.write_eof()
        for number, (reader, writer) in enumerate(ends):
            assert await asyncio.wait_for(reader.read(), ANSWER_S) == bytes([number]) * 50_000 + b"bye"
            writer.close()


async def test_small_messages_are_not_collected() -> None:
    async with echo() as (target, _), ShapedLink(FAST, target) as link:
        reader, writer = await connect(link.address)
        for number in range(5):
            writer.write(bytes([number]))
            assert await asyncio.wait_for(reader.readexactly(1), ANSWER_S) == bytes([number])
        writer.close()


async def test_no_message_is_faster_than_its_link() -> None:
    """A round trip costs both ways; a slower profile costs more, a larger message too."""
    told = {}
    for profile, size in itertools.product((FAST, replace(FAST, delay_s=0.06, rate_bps=20e6)), (100, 60_000)):
        async with echo() as (target, _), ShapedLink(profile, target) as link:
            reader, writer = await connect(link.address)
            start_s = time.perf_counter()
            writer.write(bytes(size))
            await asyncio.wait_for(reader.readexactly(size), ANSWER_S)
            told[profile.delay_s, size] = time.perf_counter() - start_s
            assert told[profile.delay_s, size] >= profile.message_s(size) + profile.delay_s - 2 * HOP_S
            writer.close()
    assert told[0.06, 60_000] > 0.12 + 0.024 - 2 * HOP_S > 0.02 + 0.006


async def test_a_stall_stalls() -> None:
    """In a stretch of 1 s all but 50 ms is a stall, so no two echoes in a row come without one."""
    stalled = Profile("stalled", delay_s=0.001, stall_every_s=1.0, stall_s=0.95)
    async with echo() as (target, heard), ShapedLink(stalled, target) as link:
        reader, writer = await connect(link.address)
        start_s = time.perf_counter()
        for _ in range(3):
            writer.write(b"x")
            await asyncio.wait_for(reader.readexactly(1), ANSWER_S)
            await asyncio.sleep(0.06)  # longer than the gap between stalls
        assert time.perf_counter() - start_s > 0.9 and heard == [b"x"] * 3
        writer.close()


@pytest.mark.parametrize("how", ["reset", "refuse"])
async def test_a_lost_far_side_is_seen(how: str) -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    server = await asyncio.start_server(slam, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    if how == "refuse":
        server.close()
        await server.wait_closed()
    async with ShapedLink(FAST, target) as link:
        reader, writer = await connect(link.address)
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readexactly(1), ANSWER_S)
        writer.close()
    server.close()


async def test_a_killed_far_process_is_seen() -> None:
    code = (
        "import socket, time\n"
        "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "c, _ = s.accept(); c.sendall(c.recv(1)); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        async with ShapedLink(FAST, f"127.0.0.1:{port}") as link:
            reader, writer = await connect(link.address)
            writer.write(b"x")
            assert await asyncio.wait_for(reader.readexactly(1), ANSWER_S) == b"x"
            process.kill()
            assert await asyncio.wait_for(reader.read(), ANSWER_S) == b""  # the kernel closes what it held
            writer.close()


async def test_a_near_reset_reaches_the_far_side() -> None:
    seen = asyncio.get_running_loop().create_future()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(1):
                pass
            seen.set_result("end")
        except ConnectionResetError:
            seen.set_result("reset")
        writer.close()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with ShapedLink(FAST, target) as link:
        _, writer = await connect(link.address)
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()
        assert await asyncio.wait_for(seen, ANSWER_S) == "reset"
    server.close()


async def test_a_half_close_behind_an_unread_loss_is_a_loss() -> None:
    """While the line down is busy nobody reads it; the far side resets; then the half-close is ENOTCONN."""
    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(2_000_000))
        await asyncio.sleep(0.2)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with ShapedLink(Profile("slow", rate_bps=2e6, delay_s=0.01), target) as link:
        reader, writer = await connect(link.address)
        await asyncio.sleep(0.4)
        writer.write_eof()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readexactly(2_000_000), ANSWER_S)
        writer.close()
    gc.collect()  # a task that nobody asks for its exception says so when it goes
    assert not faults
    server.close()


@pytest.mark.parametrize("name", ["5g", "4g", "wifi"])
@pytest.mark.parametrize("size", [100, 10_000, 5_000_000])
def test_a_lane_is_the_formula(name: str, size: int) -> None:
    """Whatever the pieces a message comes in, its last byte is out after delay + size / rate."""
    profile = PROFILES[name]
    lane = Lane(profile, 0, UP, 100.0)
    for first in range(0, size, CHUNK):
        due_s = lane.schedule(100.0, min(CHUNK, size - first))
    assert due_s - 100.0 == pytest.approx(profile.delay_s + size * 8 / profile.rate_bps, rel=1e-9)
    assert profile.message_s(size) == pytest.approx(due_s - 100.0)
    assert lane.schedule(100.0, 1) > due_s  # it queues behind


def test_profiles_are_those_of_the_paper() -> None:
    told = {name: (p.rate_bps / 1e6, 1e3 * p.delay_s) for name, p in PROFILES.items()}
    assert told == {"5g": (300, 10), "4g": (20, 50), "wifi": (100, 20), "loopback": (math.inf, 0)}


def test_jitter_and_stalls_are_keyed_and_keep_order() -> None:
    shaky = Profile("shaky", 20e6, 0.05, jitter_s=0.05, stall_every_s=1.0, stall_s=0.2)

    def due(seed: int, direction: int = UP) -> list[float]:
        lane = Lane(shaky, seed, direction, 0.0)
        return [lane.schedule(0.02 * number, 100) for number in range(200)]

    assert due(1) == due(1) and due(1) != due(2) and due(1) != due(1, DOWN)
    assert all(a <= b for a, b in itertools.pairwise(due(1)))
    took = np.array([at - 0.02 * number for number, at in enumerate(due(1))])
    assert took.min() >= 0 and took.max() > 0.1  # a stall is longer than any jitter
    quiet = Lane(replace(shaky, stall_every_s=0, stall_s=0), 1, UP, 0.0)
    alone = np.array([quiet.schedule(float(number), 100) - number for number in range(400)])
    assert alone.min() >= 0 and alone.max() <= 0.1 + 1e-4 and 0.04 < alone.mean() < 0.06


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rate_bps": 0.0}, "rate of 0"),
        ({"delay_s": -1.0}, "delay of -1"),
        ({"delay_s": math.nan}, "delay of nan"),
        ({"jitter_s": 0.1}, "jitter of 0.1"),
        ({"stall_s": 0.1}, "stalls of 0.1"),
    ],
)
def test_impossible_links_are_refused(change: dict[str, float], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        replace(FAST, **change)


def test_unknown_names_and_targets_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"'3g'.*5g, 4g, wifi, loopback"):
        profile_named("3g")
    for target in ("nowhere", "host:0", "host:http", ":80"):
        with pytest.raises(InvalidRequest, match="host:port"):
            ShapedLink(FAST, target)


async def test_a_taken_port_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CiarError, match=str(port)):
            async with ShapedLink(FAST, "127.0.0.1:1", listen=port):
                pass


def test_the_check_orders_links_and_sizes() -> None:
    """The benchmark's own parts over real links: never below the formula, and in its order."""
    sizes, found = (100, 50_000), {}
    slow = replace(FAST, name="slow", delay_s=0.05, rate_bps=10e6)
    for profile in (FAST, slow):
        with sink() as place:

            async def carry(profile: Profile = profile, target: str = place.address) -> list[Timing]:
                async with ShapedLink(profile, target) as link:
                    return await asyncio.to_thread(measure, profile, link.address, place, 2, sizes)

            for timing in asyncio.run(carry()):
                found[profile.name, timing.size] = timing
                assert timing.measured_s > timing.formula_s - 2 * HOP_S
    assert found["slow", 50_000].measured_s > 0.09 - 2 * HOP_S
    assert found["slow", 100].formula_s == pytest.approx(0.05008)
    told = markdown([Timing("4g", 100, 0.11, 0.1)]).splitlines()[2]
    assert told == "| 4g | 100 | 100.000 | 110.000 | +10.0 |"


def test_the_link_is_a_program_that_ends_on_request() -> None:
    command = [sys.executable, "-m", "evaluation.cli", "link", "--profile", "4g", "--to", "127.0.0.1:1"]
    with subprocess.Popen([*command, "--delay-ms", "1"], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        line = program.stdout.readline()
        assert re.fullmatch(r"link 4g to 127\.0\.0\.1:1 on 127\.0\.0\.1:\d+\n", line)
        here = ("127.0.0.1", int(line.rpartition(":")[2]))
        try:
            # Nobody is at the far end, which may be known before the near end is connected.
            with pytest.raises(ConnectionResetError), socket.create_connection(here, ANSWER_S) as connection:
                connection.settimeout(ANSWER_S)
                connection.recv(1)
        finally:
            program.send_signal(signal.SIGTERM)
        assert program.wait(ANSWER_S) == 0
