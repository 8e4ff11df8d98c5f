"""Who is let in: places, a queue in order of arrival, limits per caller, and devices that leave it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from cloud_server.admission import Admission, Doors
from cloud_server.engine import Engine
from cloud_server.server import CloudServer, Settings, running
from cloud_server.service import Patience
from cloud_server.session import Session
from shared.errors import InvalidDraft, InvalidPrompt, Overloaded, SessionLost
from shared.messages import Draft, Open
from shared.models.zoo import CloudModel
from tests.cloud_server.rig import RawDevice, dial, eventually, order, tokens


@asynccontextmanager
async def inside(admission: Admission, *callers: str) -> AsyncIterator[None]:
    """These callers have a place."""
    async with AsyncExitStack() as stack:
        for caller in callers:
            await stack.enter_async_context(admission.place(caller))
        yield


async def test_who_waits_is_served_in_order() -> None:
    admission, served = Admission(Doors(max_sessions=1, max_queue=8)), list[int]()

    async def image(number: int) -> None:
        async with admission.place(str(number)):
            served.append(number)
            await asyncio.sleep(0)

    async with inside(admission, "first"):
        waiting = [asyncio.create_task(image(number)) for number in range(8)]
        await asyncio.sleep(0)
        assert admission.queued == 8 and not served
        with pytest.raises(Overloaded, match=r"all 1 sessions.*8 wait for one"):
            await image(9)
        waiting[3].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert served == [0, 1, 2, 4, 5, 6, 7] and admission.queued == 0


async def test_nobody_waits_for_ever() -> None:
    admission = Admission(Doors(max_sessions=1, max_queue=1, queue_s=0.05))
    async with inside(admission, "a"):
        with pytest.raises(Overloaded, match=r"none became free within 0\.05 s"):
            async with admission.place("b"):
                pass
        assert admission.queued == 0
    async with admission.place("b"):
        pass


async def test_the_refused_are_told_when_their_turn_would_be() -> None:
    admission = Admission(Doors(max_sessions=2))
    async with inside(admission, "a", "b"):
        await asyncio.sleep(0.9)  # what an image takes here
    async with inside(admission, "a", "b"):
        with pytest.raises(Overloaded) as refused:
            await admission.place("c").__aenter__()
    assert 0.4 <= refused.value.retry_after_s <= 0.9


async def test_one_caller_has_so_many_places() -> None:
    admission = Admission(Doors(max_sessions=8, per_caller=2))
    async with inside(admission, "a", "a", "b"):
        with pytest.raises(Overloaded, match="allowed: 2 images of one caller"):
            await admission.place("a").__aenter__()
        async with admission.place("b"):
            pass
    async with inside(admission, "a", "a"):
        pass


async def test_one_caller_comes_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    admission = Admission(Doors(per_minute=3))
    for _ in range(3):
        async with admission.place("a"):
            pass
    with pytest.raises(Overloaded, match="allowed: 3 images a minute") as refused:
        await admission.place("a").__aenter__()
    assert refused.value.retry_after_s == pytest.approx(20)
    async with admission.place("b"):
        pass
    now_s += refused.value.retry_after_s
    async with admission.place("a"):
        pass
    with pytest.raises(Overloaded):
        await admission.place("a").__aenter__()


# ---- over the wire


async def test_an_order_waits_for_a_place_and_gets_it(cloud: CloudModel) -> None:
    async with running(cloud, Settings(max_sessions=1, max_queue=1)) as server, dial(server) as channel:
        first, second, third = (RawDevice(channel) for _ in range(3))
        await first.open(order(cloud))
        waiting = asyncio.create_task(second.open(order(cloud)))
        await eventually(lambda: server.telemetry.value("ciar_queue_orders") == 1)
        await third.send(order(cloud))
        with pytest.raises(Overloaded, match="1 wait for one"):
            await third.receive()
        await first.finish()
        assert len(await waiting) == 1


async def leaves(device: RawDevice, channel: grpc.aio.Channel, way: str) -> None:
    if way == "cancelled":
        device.call.cancel()
    else:
        await channel.close()


@pytest.mark.parametrize("way", ["cancelled", "cut"])
async def test_who_leaves_the_queue_is_not_waited_for(cloud: CloudModel, way: str) -> None:
    async with running(cloud, Settings(max_sessions=1, max_queue=4)) as server, dial(server) as channel:
        first, last = RawDevice(channel), RawDevice(channel)
        await first.open(order(cloud))
        async with dial(server) as other:
            gone = RawDevice(other)
            await gone.send(order(cloud))
            await eventually(lambda: server.telemetry.value("ciar_queue_orders") == 1)
            waiting = asyncio.create_task(last.open(order(cloud)))
            await eventually(lambda: server.telemetry.value("ciar_queue_orders") == 2)
            await leaves(gone, other, way)
            await eventually(lambda: server.telemetry.value("ciar_queue_orders") == 1, 1.0)
        await first.finish()
        assert len(await asyncio.wait_for(waiting, 1)) == 1


@pytest.mark.parametrize("way", ["cancelled", "cut"])
@pytest.mark.parametrize("others", [0, 1], ids=["while it is opened", "while it waits to be opened"])
async def test_who_leaves_while_the_prompt_is_read_takes_no_slot(
    cloud: CloudModel, monkeypatch: pytest.MonkeyPatch, way: str, others: int
) -> None:
    """A long prompt may take seconds to encode; nobody can stop that, but nothing comes behind it."""
    gate, begun, opening = threading.Event(), list[int](), Engine.open

    def slow(engine: Engine, wanted: Open) -> Session:
        begun.append(wanted.seed)
        if wanted.seed >= 100:
            gate.wait(10)
        return opening(engine, wanted)

    monkeypatch.setattr(Engine, "open", slow)
    async with running(cloud, Settings(max_sessions=2)) as server, dial(server) as channel:
        for seed in range(others):
            await RawDevice(channel).send(order(cloud, 100 + seed))
        async with dial(server) as other:
            gone = RawDevice(other)
            await gone.send(order(cloud, 100 + others))
            await eventually(lambda: len(server.service._running) == 1 + others)
            await eventually(lambda: 100 in begun)
            await leaves(gone, other, way)
            await eventually(lambda: len(server.service._running) == others, 1.0)
        gate.set()
        assert len(await asyncio.wait_for(RawDevice(channel).open(order(cloud)), 2)) == 1
        assert (100 + others in begun) == (others == 0)
        await eventually(lambda: server.telemetry.value("ciar_sessions_active") == 1 + others)


async def test_an_image_may_take_so_long(cloud: CloudModel) -> None:
    patience = Patience(image_s=0.3)
    async with running(cloud, Settings(patience=patience)) as server, dial(server) as channel:
        device = RawDevice(channel)
        await device.open(order(cloud))
        with pytest.raises(SessionLost, match=r"took longer than 0\.3 s.*resume"):
            await device.ask(Draft(0, 1, tokens(1)))
            await device.receive()
        await eventually(lambda: server.telemetry.value("ciar_sessions_active") == 0)


async def test_limits_of_an_operator(cloud: CloudModel) -> None:
    settings = Settings(max_prompt_chars=8, max_span=3, per_caller=1)
    async with running(cloud, settings) as server, dial(server) as channel:
        device = RawDevice(channel)
        await device.send(order(cloud, prompt="a red cat"))
        with pytest.raises(InvalidPrompt, match=r"9 characters.*up to 8"):
            await device.receive()
        device = RawDevice(channel)
        await device.open(order(cloud, prompt="cat"))
        late = RawDevice(channel)
        await late.send(order(cloud, prompt="cat"))
        with pytest.raises(Overloaded, match="of one caller"):
            await late.receive()
        await device.send(Draft(0, 1, tokens(1, 2, 3, 4)))
        with pytest.raises(InvalidDraft, match="1 to 3"):
            await device.receive()


async def test_void_drafts_are_not_taken_for_ever(server: CloudServer, cloud: CloudModel) -> None:
    """They cost nothing, and each is remembered."""
    async with dial(server) as channel:
        device = RawDevice(channel)
        await device.open(order(cloud))
        with pytest.raises(InvalidDraft, match=r"129 drafts .* void.*allowed: 128"):
            for number in range(1, 200):
                assert (await device.ask(Draft(number, 1, tokens(1), catch_up=tokens(1), behind=0))).stale


async def test_streams_that_never_open_are_bounded(cloud: CloudModel) -> None:
    async with running(cloud, Settings(max_sessions=1)) as server, dial(server) as channel:
        silent = [RawDevice(channel) for _ in range(68)]
        for device in silent:
            await device.call.wait_for_connection()
        await eventually(lambda: len(server.service._running) == 68)
        late = RawDevice(channel)
        with pytest.raises(Overloaded, match=r"too many open streams.*68"):
            await late.receive()
        for device in silent:
            device.call.cancel()
