"""What a server tells those who run it: a heartbeat that busy engines keep and dead ones lose; metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Sequence
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud_server.engine import Answer, Engine
from cloud_server.scheduler import FAILURES, Pace
from cloud_server.server import SERVICE, CloudServer, Settings, running
from cloud_server.session import Job
from cloud_server.telemetry import Alarm, Telemetry
from shared.errors import CiarError, SessionLost
from shared.logs import JsonLines, Lines, about, known_request_id
from shared.messages import Draft
from shared.models.zoo import CloudModel
from tests.cloud_server.rig import RawDevice, base_image, dial, draw_image, eventually, order, spoil

T = 16
STATUS = health_pb2.HealthCheckResponse


async def page(server: CloudServer, path: str) -> tuple[int, str]:
    """Status and text of a page."""

    def fetch() -> tuple[int, str]:
        try:
            with urlopen(f"http://127.0.0.1:{server.metrics_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as refused:
            return refused.code, refused.read().decode()

    return await asyncio.to_thread(fetch)


@pytest.fixture
def settings(unused_tcp_port: int) -> Settings:
    """A server with an operations page that calls a forward dead after 0.3 s."""
    return Settings(metrics_port=unused_tcp_port, pace=Pace(limit_s=0.3))


async def test_the_pages_of_a_well_server(cloud: CloudModel, settings: Settings) -> None:
    async with running(cloud, settings) as server:
        assert await page(server, "/livez") == (200, '{"status": "alive"}')
        assert await page(server, "/readyz") == (200, '{"status": "ready"}')
        status, text = await page(server, "/version")
        assert (status, json.loads(text)["digest"], json.loads(text)["protocol"]) == (200, cloud.digest, 1)
        status, text = await page(server, "/metrics")
        assert status == 200 and "ciar_engine_alive 1.0" in text
        assert (await page(server, "/nothing"))[0] == 404
        assert "/livez /readyz /metrics /version" in (await page(server, "/nothing"))[1]


class Hanging:
    """Engine.run that waits while `shut`, fails while `broken`, and ends its thread when `fatal`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.broken, self.fatal = threading.Event(), False, False
        self.open.set()
        run = Engine.run

        def hang(engine: Engine, jobs: Sequence[Job]) -> list[Answer]:
            self.open.wait(20)
            if self.fatal:
                raise SystemExit
            if self.broken:
                raise RuntimeError("device-side assert in /opt/secret")
            return run(engine, jobs)

        monkeypatch.setattr(Engine, "run", hang)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Hanging:
    return Hanging(monkeypatch)


async def test_a_hung_engine_is_not_ready_and_tells_its_sessions(
    cloud: CloudModel, settings: Settings, hanging: Hanging
) -> None:
    """And is ready again once the forward comes back after all."""
    async with running(cloud, settings) as server, dial(server) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == STATUS.SERVING
        device = RawDevice(channel)
        await device.open(order(cloud))
        hanging.open.clear()
        await device.send(Draft(0, 1, base_image(cloud, order(cloud))[1:4]))
        assert (await asyncio.wait_for(watch.read(), 3)).status == STATUS.NOT_SERVING
        with pytest.raises(SessionLost, match=r"engine is dead.*longer than 0.3 s.*another server"):
            await asyncio.wait_for(device.receive(), 1)
        late = RawDevice(channel)
        await late.send(order(cloud))
        with pytest.raises(SessionLost, match="engine is dead"):
            await asyncio.wait_for(late.receive(), 1)
        for path in ("/livez", "/readyz"):
            status, text = await page(server, path)
            assert status == 503 and "longer than 0.3 s" in text
        assert server.telemetry.value("ciar_engine_alive") == 0
        assert server.telemetry.value("ciar_engine_busy_seconds") > 0.3
        hanging.open.set()
        assert (await asyncio.wait_for(watch.read(), 3)).status == STATUS.SERVING
        assert (await page(server, "/readyz"))[0] == 200
        truth = base_image(cloud, order(cloud, 7))
        assert await draw_image(channel, order(cloud, 7), truth) == truth.tolist()
        watch.cancel()


async def test_a_busy_engine_is_ready(cloud: CloudModel, settings: Settings, hanging: Hanging) -> None:
    """One forward after another, each below the limit, all of them together far above it."""
    async with running(cloud, settings) as server, dial(server) as channel:
        images = [
            asyncio.create_task(RawDevice(channel).open(order(cloud, seed, prefix_tokens=T)))
            for seed in range(6)
        ]
        while not all(image.done() for image in images):
            assert (await page(server, "/readyz"))[0] == 200
        await asyncio.gather(*images)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_engine_whose_thread_ended_is_dead(
    cloud: CloudModel, settings: Settings, hanging: Hanging
) -> None:
    async with running(cloud, settings) as server, dial(server) as channel:
        device = RawDevice(channel)
        hanging.fatal = True
        await device.send(order(cloud))
        with pytest.raises(SessionLost, match=r"engine is dead.*thread has ended"):
            await asyncio.wait_for(device.receive(), 3)
        assert (await page(server, "/livez"))[0] == 503


async def test_an_engine_that_only_fails_is_not_ready_until_it_works(
    cloud: CloudModel, settings: Settings, hanging: Hanging
) -> None:
    async with running(cloud, settings) as server, dial(server) as channel:
        hanging.broken = True
        for _ in range(FAILURES):
            device = RawDevice(channel)
            await device.send(order(cloud))
            with pytest.raises(CiarError, match="the cloud failed") as failed:
                await device.receive()
            assert "secret" not in str(failed.value)
        await eventually(lambda: server.telemetry.value("ciar_engine_alive") == 0)
        assert f"the last {FAILURES} forwards failed" in (await page(server, "/readyz"))[1]
        hanging.broken = False
        await RawDevice(channel).open(order(cloud))
        await eventually(lambda: server.telemetry.value("ciar_engine_alive") == 1)


async def test_a_stopping_server_is_alive_and_not_ready(cloud: CloudModel, settings: Settings) -> None:
    server = CloudServer(cloud, settings)
    await server.start()
    async with dial(server) as channel:
        device = RawDevice(channel)
        await device.open(order(cloud))
        stopping = asyncio.create_task(server.stop(5))
        await asyncio.sleep(0.05)
        assert (await page(server, "/livez"))[0] == 200
        assert await page(server, "/readyz") == (503, '{"status": "not ready", "why": "it is stopping"}')
        await device.finish()
        await stopping


# ---- metrics


async def test_what_one_image_leaves_in_the_metrics(cloud: CloudModel, server: CloudServer) -> None:
    wanted = order(cloud, 7, prefix_tokens=4)
    truth = base_image(cloud, wanted)
    async with dial(server) as channel:
        device = RawDevice(channel)
        await device.open(wanted)
        await device.ask(Draft(0, 4, spoil(truth[4:8], 2, wanted.codebook_size)))
        await device.ask(Draft(1, 7, truth[10:12], catch_up=truth[7:10]))
        await device.finish()
        again = RawDevice(channel)
        await again.open(order(cloud, 7, resume=truth[:9]))
        await again.finish()
    value = server.telemetry.value
    assert (value("ciar_sessions_opened_total"), value("ciar_sessions_resumed_total")) == (2, 1)
    # Of the first span two stood, and the third was corrected; what was behind it says nothing.
    judged = [value("ciar_span_position_judged_total", position=place) for place in "012"]
    accepted = [value("ciar_span_position_accepted_total", position=place) for place in "012"]
    assert (judged, accepted) == ([2, 2, 1], [2, 2, 0])
    assert value("ciar_image_call_rate_count") == value("ciar_image_local_rate_count") == 1
    assert value("ciar_image_call_rate_sum") == 6 / T
    assert value("ciar_image_local_rate_sum") == (3 + 3) / T  # caught up, and never sent
    assert value("ciar_bytes_total", direction="up") > 100
    assert value("ciar_bytes_total", direction="down") > 50
    assert value("ciar_round_seconds_count") == 2 and value("ciar_turn_seconds_count") == 2
    assert value("ciar_batch_rows_sum") == 2 * value("ciar_batch_jobs_sum")
    assert value("ciar_queue_jobs") == value("ciar_queue_orders") == 0


def test_acceptance_that_collapses_raises_an_alarm_once(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry(Alarm(floor=0.2, window=10))
    with caplog.at_level(logging.INFO):
        for _ in range(9):
            telemetry.draft(5, 0, 0.0)
        assert telemetry.value("ciar_acceptance_collapsed") == 0 and not caplog.records
        for _ in range(5):
            telemetry.draft(5, 0, 0.0)
        assert telemetry.value("ciar_acceptance_collapsed") == 1
        for _ in range(20):
            telemetry.draft(5, 3, 0.0)
        assert telemetry.value("ciar_acceptance_collapsed") == 0
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in said] == ["ERROR", "INFO"]
    assert said[0][1] == "acceptance has collapsed: 0.0% of the last 10 drafts, floor 20.0%"


# ---- logs


def line(formatter: logging.Formatter, message: str, **fields: object) -> str:
    plain = {"msg": message, "levelname": "INFO", "name": "x"}
    return formatter.format(logging.makeLogRecord({**plain, **fields}))


def test_a_line_for_a_program_is_one_object() -> None:
    with about("abc"):
        made = json.loads(line(JsonLines("cloud-server"), "a\nb"))
    assert made.pop("time").endswith("+00:00")
    wanted = {"level": "info", "program": "cloud-server", "logger": "x", "message": "a\nb"}
    assert made == {**wanted, "request_id": "abc"}
    assert "request_id" not in json.loads(line(JsonLines("p"), "c"))


def test_a_line_for_a_person_ends_with_the_image_it_is_about() -> None:
    assert line(Lines("p"), "hello") == "p: hello"
    with about("abc"):
        assert line(Lines("p"), "hello") == "p: hello [abc]"
    assert line(Lines("p"), "hello", request_id="own") == "p: hello [own]"


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129, "a\nb", b"abc", "ü"])
def test_a_name_that_is_fit_for_no_log_is_replaced(given: object) -> None:
    assert known_request_id(given) != given
    assert known_request_id("req_A-1.b:c") == "req_A-1.b:c"
