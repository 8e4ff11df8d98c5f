"""A replica as Ray would run it: frames from an iterator in, frames from a generator out. Without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from cloud_server.cluster import cli
from cloud_server.cluster.replica import Replica
from cloud_server.server import Settings
from shared.errors import CiarError, InvalidRequest
from shared.messages import Draft, Finish, Open, Opened, Usage, Verdict
from shared.models.zoo import CloudModel
from shared.wire import codec
from shared.wire.info import decode_info
from shared.wire.pb import ciar_pb2 as pb
from tests.cloud_server.rig import base_image, eventually, order

HEADERS = SimpleNamespace(invocation_metadata=lambda: [("request_id", "1")], peer=lambda: "ipv4:127.0.0.1:1")
T = 16
TOKEN, OTHER = "correct-horse-battery-staple", "wrong-horse-battery-staple"


@pytest.fixture
def replica(folder: Path) -> Replica:
    return Replica(str(folder), str(folder), 1, Settings(max_sessions=1))


async def frames(queue: asyncio.Queue[Open | Draft | Finish | None]) -> AsyncIterator[pb.GenerateRequest]:
    """What a device sends; None ends the stream."""
    while (message := await queue.get()) is not None:
        match message:
            case Open():
                yield codec.encode_open(message)
            case Draft():
                yield codec.encode_draft(message)
            case Finish():
                yield codec.encode_finish(message)


def active(replica: Replica) -> float:
    """Images it is drawing."""
    return replica.server.telemetry.value("ciar_sessions_active")


async def test_one_image_through_a_replica(replica: Replica, cloud: CloudModel) -> None:
    wanted, said = order(cloud, 7), asyncio.Queue()
    truth = base_image(cloud, wanted)
    said.put_nowait(wanted)
    heard = []
    async for frame in replica.Generate(frames(said), HEADERS):
        heard.append(codec.decode_response(frame))
        match heard[-1]:
            case Opened():
                said.put_nowait(Draft(0, 1, truth[1:]))
            case Verdict():
                said.put_nowait(Finish())
    opened, verdict, usage = heard
    assert isinstance(opened, Opened) and isinstance(verdict, Verdict) and isinstance(usage, Usage)
    assert (opened.prefix.tolist(), verdict.accepted) == (truth[:1].tolist(), T - 1)
    assert usage.judged == T - 1
    info = decode_info(await replica.GetInfo(pb.GetInfoRequest(), HEADERS))
    assert (info.max_sessions, info.models[0].digest) == (1, cloud.digest)


@pytest.mark.parametrize("way", ["the stream ends", "the generator is closed", "the task is cancelled"])
async def test_a_device_that_leaves_frees_its_place(replica: Replica, cloud: CloudModel, way: str) -> None:
    for _ in range(3):  # there is one place
        said: asyncio.Queue[Open | Draft | Finish | None] = asyncio.Queue()
        said.put_nowait(order(cloud, 7))
        async with aclosing(replica.Generate(frames(said), HEADERS)) as answers:
            opened = codec.decode_response(await anext(answers))
            assert isinstance(opened, Opened)
            if way == "the stream ends":
                said.put_nowait(None)
                assert await anext(answers, None) is None
            elif way == "the task is cancelled":
                waiting = asyncio.create_task(anext(answers))
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait([waiting])
        await eventually(lambda: active(replica) == 0, 1.0)


async def test_errors_are_said_in_the_stream(replica: Replica) -> None:
    said: asyncio.Queue[Open | Draft | Finish | None] = asyncio.Queue()
    said.put_nowait(Finish())
    (frame,) = [frame async for frame in replica.Generate(frames(said), HEADERS)]
    with pytest.raises(InvalidRequest, match="begins with Open"):
        codec.decode_response(frame)


class Context:
    """Ray's copy of a context: what came with the call, and the status it shall end with."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.metadata, self.code, self.details = metadata, None, ""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self.metadata

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


@pytest.mark.parametrize("token", [None, OTHER, TOKEN])
async def test_a_replica_knows_its_tokens(folder: Path, cloud: CloudModel, token: str | None) -> None:
    guarded = Replica(str(folder), str(folder), 1, Settings(tokens=(TOKEN,)))
    context = Context(*([("authorization", f"Bearer {token}")] if token else []))
    info = await guarded.GetInfo(pb.GetInfoRequest(), context)
    said: asyncio.Queue[Open | Draft | Finish | None] = asyncio.Queue()
    for message in (order(cloud, 7), Finish()):
        said.put_nowait(message)
    heard = [frame async for frame in guarded.Generate(frames(said), context)]
    if token == TOKEN:
        assert (context.code, len(info.models), len(heard)) == (None, 1, 2)
        return
    assert (context.code, info) == (grpc.StatusCode.UNAUTHENTICATED, pb.GetInfoResponse())
    assert TOKEN not in context.details and said.qsize() == 2  # nothing of it was read
    with pytest.raises(InvalidRequest, match="a known token is needed"):
        codec.decode_response(*heard)


async def test_a_dead_engine_is_a_sick_replica(replica: Replica) -> None:
    replica.check_health()
    replica.server._desk.stop()
    with pytest.raises(CiarError, match="the engine is dead"):
        replica.check_health()


@pytest.mark.parametrize(
    ("flags", "status", "says"),
    [
        (["--model", "dalle"], 1, "unknown model 'dalle'"),
        (["--min-replicas", "5", "--max-replicas", "2"], 1, "--min-replicas 5 is above --max-replicas 2"),
        (["--port", "0"], 2, "port"),
        (["--token-file", "/nowhere"], 1, "--token-file /nowhere cannot be read"),
    ],
)
def test_wrong_flags(flags: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(flags) == status
    assert says in capsys.readouterr().err


def test_how_ray_scales() -> None:
    flags = cli.Flags(_cli_parse_args=["--min-replicas", "2", "--max-replicas", "8", "--images", "3"])
    plan = cli.deployment(flags)
    scaling = plan["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (2, 8, 3)
    # The replica refuses before Ray would let a stream wait without a word.
    assert plan["max_ongoing_requests"] > flags.max_sessions
