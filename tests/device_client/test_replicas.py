"""Several servers, none of them, and the image that is drawn all the same."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from cloud_server.server import CloudServer, Settings, running
from device_client.link import CloudLink
from device_client.loop import Progress, Request, Source, decode
from device_client.policy import Policy, policy_for
from device_client.replicas import FIRST_PAUSE_S, LONGEST_PAUSE_S
from shared.errors import CloudUnreachable, InvalidRequest, Overloaded, Refused, SessionLost
from shared.logs import JsonLines
from shared.messages import Open
from shared.models.zoo import CloudModel, DevicePackage
from tests.tiny import WARP

GRID = 6

T = 36
REQUEST = Request("a red cat", 7, WARP)
NOWHERE = "127.0.0.1:1"


@asynccontextmanager
async def pair(
    cloud_model: CloudModel, **settings: object
) -> AsyncIterator[tuple[CloudServer, CloudServer, str]]:
    """Two servers, and both of them as one target."""
    made = Settings(**settings)  # type: ignore[arg-type]
    async with running(cloud_model, made) as one, running(cloud_model, made) as other:
        yield one, other, f"127.0.0.1:{one.port}, 127.0.0.1:{other.port}"


def order_for(cloud_model: CloudModel) -> Open:
    return Open(cloud_model.name, cloud_model.digest, 32, "a red cat", 7, WARP, 3, "coupled")


async def draw(
    package: DevicePackage, policy: Policy, target: str, *, retry_s: float = 5.0, stop: object = None
) -> Progress:
    """A whole image; `stop` is called once ten tokens are decided."""
    async with (
        CloudLink(target, connect_s=1.0, retry_s=retry_s) as link,
        aclosing(decode(package, REQUEST, policy, link)) as steps,
    ):
        async for last in steps:
            if callable(stop) and len(last.tokens) >= 10:
                await stop()
                stop = None
    return last


def opened(server: CloudServer) -> float:
    return server.telemetry.value("ciar_sessions_opened_total")


# ---- any of several servers


@pytest.mark.parametrize("target", [f"{NOWHERE},here", f"{NOWHERE},", ",", "a:1;b:2"])
def test_every_target_is_host_and_port(target: str) -> None:
    with pytest.raises(InvalidRequest, match=r"host:port.*separated by commas"):
        CloudLink(target)


async def test_the_first_that_answers_is_taken(cloud_model: CloudModel) -> None:
    async with running(cloud_model, Settings()) as server:
        began = time.monotonic()
        async with CloudLink(f"{NOWHERE},127.0.0.1:{server.port}", connect_s=5.0) as link:
            assert (await link.info()).max_sessions == 8
            await link.open(order_for(cloud_model))
        assert time.monotonic() - began < 3 and opened(server) == 1


async def test_where_nobody_answers_all_are_named() -> None:
    async with CloudLink(f"{NOWHERE},127.0.0.1:2", connect_s=0.3) as link:
        with pytest.raises(CloudUnreachable, match=r"127.0.0.1:1 or 127.0.0.1:2"):
            await link.info()


async def test_a_full_server_is_left_for_another_at_once(cloud_model: CloudModel) -> None:
    async with (
        pair(cloud_model, max_sessions=1) as (one, other, target),
        CloudLink(target) as first,
        CloudLink(target) as second,
        CloudLink(target, retry_s=0.3) as third,
    ):
        await first.open(order_for(cloud_model))
        began = time.monotonic()
        await second.open(order_for(cloud_model))
        assert time.monotonic() - began < 0.9  # it was told to come again in one second
        assert (opened(one), opened(other)) == (1, 1)
        with pytest.raises(Overloaded):
            await third.open(order_for(cloud_model))


@pytest.mark.parametrize("flight", [1, 3])
async def test_an_image_outlives_its_server(
    package: DevicePackage, cloud_model: CloudModel, flight: int
) -> None:
    """Begun on one, ended on the other, and the one that neither would have interrupted."""
    policy = policy_for("exact", package.calibration, in_flight=flight, span=3)
    async with pair(cloud_model) as (one, other, target):
        whole = await draw(package, policy, f"127.0.0.1:{other.port}")
        image = await draw(package, policy, target, stop=one.stop)
        assert image.tokens == whole.tokens
        assert image.counters.resumes == 1 and image.counters.offline == 0
        assert opened(one) == 1 and other.telemetry.value("ciar_sessions_resumed_total") == 1


async def test_pauses_grow_up_to_a_bound_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices that lost the same server do not come back together."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def lost() -> None:
        raise SessionLost("gone")

    monkeypatch.setattr("device_client.link.asyncio.sleep", sleep)
    monkeypatch.setattr("device_client.link.time.monotonic", lambda: sum(slept))
    runs = []
    for _ in range(2):
        slept.clear()
        with pytest.raises(CloudUnreachable, match="gone"):
            await CloudLink(NOWHERE, retry_s=30.0)._persist(lost)
        runs.append(list(slept))
        assert 25 < sum(slept) <= 30
        bounds = [min(FIRST_PAUSE_S * 2**number, LONGEST_PAUSE_S) for number in range(len(slept))]
        assert all(0.5 * most <= pause <= most for pause, most in zip(slept, bounds, strict=True))
    assert runs[0][:5] != runs[1][:5]


async def test_it_comes_again_no_sooner_than_told(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def full() -> None:
        raise Overloaded("full", retry_after_s=3.0)

    monkeypatch.setattr("device_client.link.asyncio.sleep", sleep)
    monkeypatch.setattr("device_client.link.time.monotonic", lambda: sum(slept))
    with pytest.raises(Overloaded):
        await CloudLink(NOWHERE, retry_s=30.0)._persist(full)
    assert all(3.0 <= pause <= 3.75 for pause in slept) and len(set(slept)) == len(slept) >= 7


# ---- no server at all


async def test_a_picture_is_finished_alone_where_that_was_asked(
    package: DevicePackage, cloud_model: CloudModel, caplog: pytest.LogCaptureFixture
) -> None:
    """What was decided with the cloud stands; the device draws the rest, and every token says so."""
    policy = policy_for("exact", package.calibration, offline="finish", span=3)
    server = CloudServer(cloud_model, Settings())
    await server.start()
    target = f"127.0.0.1:{server.port}"
    whole = await draw(package, policy, target)
    with caplog.at_level(logging.WARNING):
        image = await draw(package, policy, target, retry_s=0.2, stop=server.stop)
    alone = image.sources.index(Source.OFFLINE)
    assert image.done and alone >= 10
    assert image.tokens[:alone] == whole.tokens[:alone]
    assert set(image.sources[alone:]) == {Source.OFFLINE} and image.counters.offline == T - alone
    assert image.counters.kept == 0 and image.counters.bytes_up > 0
    assert f"draws the other {T - alone} tokens alone" in caplog.text


@pytest.mark.parametrize("flight", [1, 4])
async def test_a_picture_begun_with_no_cloud_is_the_devices_own(package: DevicePackage, flight: int) -> None:
    policy = policy_for("ciar", package.calibration, offline="finish", in_flight=flight)
    image = await draw(package, policy, NOWHERE, retry_s=0.0)
    own = await draw(package, policy_for("device-only", None), NOWHERE)
    assert image.tokens == own.tokens
    assert set(image.sources) == {Source.OFFLINE} and set(own.sources) == {Source.KEPT}
    assert (image.counters.offline, image.counters.kept, own.counters.offline) == (T, 0, 0)


async def test_without_being_asked_it_is_given_up(package: DevicePackage) -> None:
    with pytest.raises(CloudUnreachable):
        await draw(package, policy_for("ciar", package.calibration), NOWHERE, retry_s=0.0)


async def test_a_wrong_token_is_no_reason_to_go_on_alone(
    package: DevicePackage, cloud_model: CloudModel
) -> None:
    policy = policy_for("ciar", package.calibration, offline="finish")
    async with running(cloud_model, Settings(tokens=("correct-horse-battery-staple",))) as server:
        with pytest.raises(Refused, match="UNAUTHENTICATED"):
            await draw(package, policy, f"127.0.0.1:{server.port}")


def test_modes_that_ask_nobody_or_nobody_else_have_no_such_choice(package: DevicePackage) -> None:
    for mode in ("device-only", "cloud-only"):
        with pytest.raises(InvalidRequest, match="offline cannot be set in mode"):
            policy_for(mode, package.calibration, offline="finish")
    with pytest.raises(InvalidRequest, match=r"offline later.*retry, finish"):
        policy_for("exact", package.calibration, offline="later")


# ---- one name on both sides


async def test_both_sides_log_the_same_name(cloud_model: CloudModel) -> None:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(JsonLines("test"))
    loggers = [logging.getLogger(name) for name in ("cloud_server.service", "device_client.link")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    async with running(cloud_model, Settings()) as server:
        async with CloudLink(f"127.0.0.1:{server.port}", request_id="abc-1") as link:
            await link.open(order_for(cloud_model))
            await link.finish()
        async with CloudLink(f"127.0.0.1:{server.port}", request_id="abc-2") as link:
            await link.open(order_for(cloud_model))
            await link.finish()
    for logger in loggers:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)  # of the process: later tests read what it prints
    lines = [json.loads(line) for line in text.getvalue().splitlines()]
    assert sorted((line["logger"], line["request_id"]) for line in lines) == [
        ("cloud_server.service", "abc-1"),
        ("cloud_server.service", "abc-2"),
        ("device_client.link", "abc-1"),
        ("device_client.link", "abc-2"),
    ]
