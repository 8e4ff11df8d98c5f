"""Devices that vanish, servers that are full or stop, and what a server tells about itself."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.request import urlopen

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cloud_server.engine import Engine
from cloud_server.server import SERVICE, CloudServer, Settings, running
from cloud_server.service import Patience
from shared.errors import (
    CiarError,
    InvalidPrompt,
    Overloaded,
    SessionLost,
)
from shared.messages import Draft
from shared.models.zoo import CloudModel
from shared.wire import codec
from shared.wire.info import decode_info
from shared.wire.pb import ciar_pb2 as pb
from shared.wire.pb import ciar_pb2_grpc as rpc
from tests.cloud_server.rig import RawDevice, base_image, dial, draw_image, eventually, order, tokens

T, V = 16, 32

# ---- devices that vanish, servers that are full or stop

LEAVE: dict[str, Callable[[RawDevice, grpc.aio.Channel], Awaitable[object]]] = {
    "cancel": lambda device, channel: asyncio.sleep(0, device.call.cancel()),
    "half-close": lambda device, channel: device.call.done_writing(),
    "connection cut": lambda device, channel: channel.close(),
}


@pytest.mark.parametrize("way", LEAVE)
@pytest.mark.parametrize("working", [False, True], ids=["between rounds", "while the cloud works"])
async def test_a_device_that_leaves_frees_its_place(
    cloud: CloudModel, monkeypatch: pytest.MonkeyPatch, way: str, working: bool
) -> None:
    run = Engine.run
    monkeypatch.setattr(Engine, "run", lambda self, jobs: (time.sleep(0.02), run(self, jobs))[1])
    async with running(cloud, Settings(max_sessions=1)) as server, dial(server) as channel:
        device, frames = RawDevice(channel), server.telemetry
        await device.send(order(cloud, prefix_tokens=T if working else 1))
        await eventually(lambda: frames.value("ciar_batch_jobs_count") > 0)
        if not working:
            await device.receive()
        await LEAVE[way](device, channel)
        # A half-close is seen when the next frame is due; a departure at once, whatever is being worked on.
        await eventually(lambda: frames.value("ciar_sessions_active") == 0, 1.0)
        assert way == "half-close" or frames.value("ciar_batch_jobs_count") < T
        async with dial(server) as other:
            await draw_image(other, order(cloud, 7), base_image(cloud, order(cloud, 7)))


KILLED = """
import asyncio, sys, grpc
async def main():
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        call = channel.stream_stream("/ciar.v1.CiarService/Generate")()
        await call.write(bytes.fromhex(sys.argv[2]))
        await call.read()
        print("open", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_killed_device_frees_its_place(server: CloudServer, cloud: CloudModel) -> None:
    frame = codec.encode_open(order(cloud)).SerializeToString().hex()
    address = f"127.0.0.1:{server.port}"
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, address, frame, stdout=pipe)
    assert child.stdout is not None
    assert await child.stdout.readline() == b"open\n"
    assert server.telemetry.value("ciar_sessions_active") == 1
    child.kill()
    await child.wait()
    await eventually(lambda: server.telemetry.value("ciar_sessions_active") == 0, 1.0)


async def test_a_full_server_says_when_to_come_again(cloud: CloudModel) -> None:
    async with running(cloud, Settings(max_sessions=2)) as server, dial(server) as channel:
        held = [RawDevice(channel) for _ in range(2)]
        for device in held:
            await device.open(order(cloud))
        late = RawDevice(channel)
        await late.send(order(cloud))
        with pytest.raises(Overloaded, match="all 2 sessions") as caught:
            await late.receive()
        assert caught.value.retry_after_s == 1.0
        await held[0].finish()
        await RawDevice(channel).open(order(cloud))


async def test_a_device_that_does_not_read_is_given_up(cloud: CloudModel) -> None:
    """Its place is freed when the transport's buffers are full of verdicts that nobody takes."""
    small_window = [("grpc.http2.bdp_probe", 0)]
    async with (
        running(cloud, Settings(patience=Patience(5, 0.2))) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=small_window) as channel,
    ):
        device = RawDevice(channel)
        await device.open(order(cloud))
        frame = codec.encode_draft(Draft(0, 1, tokens(1)))
        with suppress(grpc.aio.AioRpcError, TimeoutError):
            while server.telemetry.value("ciar_sessions_active") > 0:
                await asyncio.wait_for(device.call.write(frame), 2)
        await eventually(lambda: server.telemetry.value("ciar_sessions_active") == 0)


@pytest.mark.parametrize("opened", [False, True])
async def test_a_silent_device_is_given_up(cloud: CloudModel, opened: bool) -> None:
    async with running(cloud, Settings(patience=Patience(0.1, 0.1))) as server, dial(server) as channel:
        device = RawDevice(channel)
        if opened:
            await device.open(order(cloud))
        else:
            await device.call.wait_for_connection()
        with pytest.raises(SessionLost, match=r"no frame came for 0\.1 s"):
            await device.receive()
        assert await device.receive() is None


async def test_a_stopping_server_lets_images_finish(cloud: CloudModel) -> None:
    server = CloudServer(cloud, Settings())
    await server.start()
    wanted = order(cloud, 7, prefix_tokens=4)
    truth = base_image(cloud, wanted)
    async with dial(server) as channel, dial(server) as other:
        watch = health_pb2_grpc.HealthStub(other).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        serving = health_pb2.HealthCheckResponse
        assert (await watch.read()).status == serving.SERVING
        device = RawDevice(channel)
        owned = await device.open(wanted)
        stopping = asyncio.create_task(server.stop(20))
        assert (await watch.read()).status == serving.NOT_SERVING
        await asyncio.sleep(0.2)  # health says so first, then the port closes
        async with dial(server) as fresh:
            late = RawDevice(fresh)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await late.call.read()
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        verdict = await device.ask(Draft(0, len(owned), truth[4:]))
        assert verdict.accepted == T - 4
        assert not stopping.done()
        await device.finish()
        await asyncio.wait_for(stopping, 3)


async def test_a_stopping_server_tells_those_it_cannot_wait_for(cloud: CloudModel) -> None:
    server = CloudServer(cloud, Settings())
    await server.start()
    async with dial(server) as channel:
        device = RawDevice(channel)
        await device.open(order(cloud))
        stopping = asyncio.create_task(server.stop(0.1))
        with pytest.raises(SessionLost, match=r"stopping.*resume on another server"):
            await device.receive()
        await asyncio.wait_for(stopping, 3)


# ---- everything around it


async def test_what_the_server_says_about_itself(channel: grpc.aio.Channel, cloud: CloudModel) -> None:
    info = decode_info(await rpc.CiarServiceStub(channel).GetInfo(pb.GetInfoRequest()))
    assert (info.protocol_version, info.max_sessions, info.max_span_tokens) == (1, 8, 64)
    (model,) = info.models
    assert (model.name, model.digest) == (cloud.name, cloud.digest)
    assert (model.codebook_size, model.image_tokens, model.feature_width) == (V, T, 32)
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", SERVICE):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
    await reflect.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = (await reflect.read()).list_services_response.service
    assert SERVICE in [service.name for service in listed]
    reflect.cancel()


async def test_metrics(cloud: CloudModel, unused_tcp_port: int) -> None:
    async with running(cloud, Settings(metrics_port=unused_tcp_port)) as server, dial(server) as channel:
        truth = base_image(cloud, order(cloud, 7))
        await draw_image(channel, order(cloud, 7), truth)
        device = RawDevice(channel)
        await device.send(order(cloud, prompt=""))
        with pytest.raises(InvalidPrompt):
            await device.receive()
        url = f"http://127.0.0.1:{unused_tcp_port}/metrics"
        page = (await asyncio.to_thread(lambda: urlopen(url).read())).decode()
        assert "ciar_sessions_active 0.0" in page
        assert 'ciar_errors_total{error="InvalidPrompt"} 1.0' in page
        assert server.telemetry.value("ciar_span_tokens_judged_total") > 0
        with pytest.raises(CiarError, match=f"metrics port {unused_tcp_port}"):
            await CloudServer(cloud, server.settings).start()
