"""The conversation over a real server: whole images, and whatever a hostile device may send."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import grpc
import numpy as np
import pytest

from cloud_server.engine import Answer, Engine
from cloud_server.server import CloudServer, Settings, running
from cloud_server.session import Job
from shared.errors import (
    CiarError,
    InvalidDraft,
    InvalidPrompt,
    InvalidRequest,
    ModelMismatch,
)
from shared.messages import Draft, Features, Finish, Usage, Verdict
from shared.models.zoo import CloudModel
from shared.wire import codec
from shared.wire.pb import ciar_pb2 as pb
from tests.cloud_server.rig import RawDevice, base_image, dial, draw_image, eventually, order, tokens

T, V = 16, 32
GENERATE = "/ciar.v1.CiarService/Generate"


# ---- whole images


@pytest.mark.parametrize("prefix", [0, 1, 5, T])
async def test_an_image(channel: grpc.aio.Channel, cloud: CloudModel, prefix: int) -> None:
    wanted = order(cloud, 7, prefix_tokens=prefix)
    truth = base_image(cloud, wanted)
    assert await draw_image(channel, wanted, truth) == truth.tolist()


async def test_the_counts_add_up(channel: grpc.aio.Channel, cloud: CloudModel) -> None:
    wanted = order(cloud, 7, prefix_tokens=4)
    device, truth = RawDevice(channel), base_image(cloud, wanted)
    await device.open(wanted)
    verdicts = [
        await device.ask(Draft(0, 4, truth[4:7])),
        await device.ask(Draft(5, 8, tokens((truth[8] + 1) % V, 0))),
        await device.ask(Draft(6, 9, truth[12:], catch_up=truth[9:12])),
    ]
    assert [(v.round, v.accepted, v.token) for v in verdicts] == [
        (0, 3, truth[7]),
        (5, 0, truth[8]),
        (6, 4, None),
    ]
    usage = await device.finish()
    assert replace(usage, cloud_s=0) == Usage(cloud_forwards=7, rounds=3, judged=9, accepted=7, cloud_s=0)
    assert usage.cloud_s > sum(verdict.cloud_s for verdict in verdicts) > 0


async def test_sessions_share_forwards(
    server: CloudServer, channel: grpc.aio.Channel, cloud: CloudModel
) -> None:
    """Eight images at once need far fewer forwards than eight alone, and come out the same."""
    orders = [order(cloud, seed, prefix_tokens=T) for seed in range(8)]
    devices = [RawDevice(channel) for _ in orders]
    images = await asyncio.gather(
        *(device.open(wanted) for device, wanted in zip(devices, orders, strict=True))
    )
    assert images == [base_image(cloud, wanted).tolist() for wanted in orders]
    assert server.telemetry.value("ciar_batch_jobs_sum") == 8 * T
    assert server.telemetry.value("ciar_batch_jobs_count") < 4 * T


async def test_a_resumed_image_is_the_same(channel: grpc.aio.Channel, cloud: CloudModel) -> None:
    wanted = order(cloud, 11, prefix_tokens=4)
    truth = base_image(cloud, wanted)
    for owned in (1, 3, 4, 10):
        assert await draw_image(channel, replace(wanted, resume=truth[:owned]), truth) == truth.tolist()


async def test_a_repeated_round_costs_nothing(channel: grpc.aio.Channel, cloud: CloudModel) -> None:
    wanted = order(cloud, 7)
    device, truth = RawDevice(channel), base_image(cloud, wanted)
    await device.open(wanted)
    draft = Draft(3, 1, truth[1:4])
    first = await device.ask(draft)
    second = await device.ask(Draft(4, 5, truth[5:6]))
    assert codec.encode_response(await device.ask(draft)) == codec.encode_response(first)
    assert second.accepted == 1
    usage = await device.finish()
    assert (usage.cloud_forwards, usage.rounds, usage.judged) == (3, 2, 4)


async def test_verdicts_come_in_the_order_of_drafts(channel: grpc.aio.Channel, cloud: CloudModel) -> None:
    wanted = order(cloud, 7, prefix_tokens=0)
    device, truth = RawDevice(channel), base_image(cloud, wanted)
    await device.open(wanted)
    for number in range(5):
        await device.send(Draft(number, 3 * number, truth[3 * number : 3 * number + 2]))
    verdicts = [await device.receive() for _ in range(5)]
    assert [verdict.round for verdict in verdicts if isinstance(verdict, Verdict)] == [*range(5)]
    await device.finish()


async def test_a_finished_image_has_freed_its_place(cloud: CloudModel) -> None:
    """Whoever has its Usage may open again at once, however few places there are."""
    async with running(cloud, Settings(max_sessions=1)) as server, dial(server) as channel:
        for _ in range(20):
            device = RawDevice(channel)
            await device.open(order(cloud, prefix_tokens=1))
            await device.finish()


# ---- what a hostile or broken device may send


async def _raw(device: RawDevice, frame: pb.GenerateRequest) -> None:
    await device.call.write(frame)


async def _after_open(device: RawDevice, cloud: CloudModel, draft: Draft) -> None:
    await device.open(order(cloud, prefix_tokens=3))
    await device.send(draft)


def _stretched(cloud: CloudModel) -> pb.GenerateRequest:
    frame = codec.encode_draft(Draft(0, 3, tokens(1)))
    frame.draft.span.shape[0] = 4_000_000_000
    return frame


async def _second_open(device: RawDevice, cloud: CloudModel) -> None:
    await device.open(order(cloud))
    await device.send(order(cloud))


async def _stretched_tensor(device: RawDevice, cloud: CloudModel) -> None:
    await device.open(order(cloud, prefix_tokens=3))
    await _raw(device, _stretched(cloud))


NARROW = Features(np.array([0], np.uint16), np.zeros((1, 7), np.int8), np.ones(1, np.float16))
Attack = Callable[[RawDevice, CloudModel], Awaitable[None]]
ATTACKS: dict[str, tuple[Attack, type[CiarError], str]] = {
    "token out of range": (lambda d, c: _after_open(d, c, Draft(0, 3, tokens(32))), InvalidDraft, "token 32"),
    "wrong base": (
        lambda d, c: _after_open(d, c, Draft(0, 9, tokens(1))),
        InvalidDraft,
        "base 9.*allowed: 3",
    ),
    "span too long": (
        lambda d, c: _after_open(d, c, Draft(0, 3, tokens(*[1] * 65))),
        InvalidDraft,
        "1 to 64",
    ),
    "beyond the image": (
        lambda d, c: _after_open(d, c, Draft(0, 3, tokens(*[1] * 14))),
        InvalidDraft,
        "ends at 17",
    ),
    "narrow feature": (
        lambda d, c: _after_open(d, c, Draft(0, 3, tokens(1), tokens(2), NARROW)),
        InvalidDraft,
        r"\(1, 7\)",
    ),
    "stretched tensor": (_stretched_tensor, InvalidDraft, "4000000000"),
    "second open": (_second_open, InvalidRequest, "second Open"),
    "draft first": (lambda d, c: d.send(Draft(0, 0, tokens(1))), InvalidRequest, "first frame is Draft"),
    "finish first": (lambda d, c: d.send(Finish()), InvalidRequest, "first frame is Finish"),
    "empty frame": (lambda d, c: _raw(d, pb.GenerateRequest()), InvalidRequest, "empty or unknown"),
    "empty open": (
        lambda d, c: _raw(d, pb.GenerateRequest(open=pb.Open())),
        InvalidRequest,
        "warp is missing",
    ),
    "empty prompt": (lambda d, c: d.send(order(c, prompt="")), InvalidPrompt, "empty"),
    "long prompt": (lambda d, c: d.send(order(c, prompt="cat " * 2500)), InvalidPrompt, "10000 characters"),
    "unknown words": (lambda d, c: d.send(order(c, prompt="zebra")), InvalidPrompt, "zebra"),
    "wrong digest": (lambda d, c: d.send(order(c, cloud_digest="feed")), ModelMismatch, "feed"),
    "wrong codebook": (lambda d, c: d.send(order(c, codebook_size=64)), ModelMismatch, "64 codes"),
    "unknown rule": (lambda d, c: d.send(order(c, acceptance="x")), InvalidRequest, "allowed: coupled"),
    "huge prefix": (lambda d, c: d.send(order(c, prefix_tokens=2**32 - 1)), InvalidRequest, "prefix_tokens"),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_bad_frame_ends_its_own_session_only(
    channel: grpc.aio.Channel, server: CloudServer, cloud: CloudModel, name: str
) -> None:
    attack, kind, says = ATTACKS[name]
    wanted = order(cloud, 21)
    truth = base_image(cloud, wanted)
    mate = asyncio.create_task(draw_image(channel, wanted, truth))
    device = RawDevice(channel)
    await attack(device, cloud)
    with pytest.raises(kind, match=says) as caught:
        await device.receive()
    assert type(caught.value) is kind
    assert await device.receive() is None
    assert await device.call.code() is grpc.StatusCode.OK
    assert await mate == truth.tolist()
    await eventually(lambda: server.telemetry.value("ciar_sessions_active") == 0)


@pytest.mark.parametrize("junk", [b"\xff\xff\xff", b"\x0a\x7f", b"GET / HTTP/1.1\r\n", b"\x0a\x03\x0a\x7fx"])
async def test_bytes_that_are_no_frame(channel: grpc.aio.Channel, junk: bytes) -> None:
    call = channel.stream_stream(GENERATE)()
    await call.write(junk)
    with pytest.raises(InvalidRequest, match="no frame"):
        codec.decode_response(pb.GenerateResponse.FromString(await call.read()))
    assert await call.code() is grpc.StatusCode.OK


async def test_a_cut_frame_in_the_middle_of_an_image(
    channel: grpc.aio.Channel, server: CloudServer, cloud: CloudModel
) -> None:
    call = channel.stream_stream(GENERATE)()
    await call.write(codec.encode_open(order(cloud)).SerializeToString())
    await call.read()
    await call.write(codec.encode_draft(Draft(0, 1, tokens(1, 2, 3))).SerializeToString()[:-3])
    with pytest.raises(InvalidRequest, match="no frame"):
        codec.decode_response(pb.GenerateResponse.FromString(await call.read()))
    await eventually(lambda: server.telemetry.value("ciar_sessions_active") == 0)


async def test_a_frame_beyond_the_limit_is_a_matter_of_transport(
    channel: grpc.aio.Channel, cloud: CloudModel
) -> None:
    device = RawDevice(channel)
    await device.send(order(cloud, prompt="x" * (1 << 20)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await device.receive()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_failure_of_ours_tells_no_internals(
    channel: grpc.aio.Channel,
    cloud: CloudModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Engine.run

    def failing(self: Engine, jobs: Sequence[Job]) -> list[Answer]:
        if any(job.session.order.seed == 666 for job in jobs):
            raise ValueError("secret /etc/path")
        return run(self, jobs)

    monkeypatch.setattr(Engine, "run", failing)
    device = RawDevice(channel)
    await device.send(order(cloud, 666))
    with pytest.raises(CiarError, match="the cloud failed") as caught:
        await device.receive()
    assert type(caught.value) is CiarError
    assert "secret" not in str(caught.value)
    assert "secret" in caplog.text
    truth = base_image(cloud, order(cloud, 7))
    assert await draw_image(channel, order(cloud, 7), truth) == truth.tolist()
