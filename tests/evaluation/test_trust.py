"""Faults, load, soak and replicas in their shortest form, over real processes; and that each can say no."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from device_client.cloud import Request
from device_client.link import CloudLink
from device_client.policy import policy_for
from evaluation import faults, load, replicas, soak
from evaluation.chaos import Chaos
from evaluation.cli import main
from evaluation.processes import ServerProcess
from evaluation.scripted import Played, Script, play, record
from shared.errors import CiarError
from shared.models.zoo import DevicePackage, load_device_package
from tests.tiny import WARP, build_tiny_model

PLACES = 4
REQUEST = Request("a green apple on a white background", 99, WARP)
ENVOY = Path(__file__).parents[2] / "deploy" / "envoy.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return str(build_tiny_model(tmp_path_factory.mktemp("tiny"), grid=8))


@pytest.fixture(scope="module")
def package(folder: str) -> DevicePackage:
    return load_device_package(folder, Path("nowhere"))


@pytest.fixture(scope="module")
def server(folder: str) -> Iterator[ServerProcess]:
    with ServerProcess(folder, "--max-sessions", str(PLACES)) as started:
        yield started


@pytest.fixture
async def scene(folder: str, package: DevicePackage, server: ServerProcess) -> faults.Scene:
    await server.ready()
    policy = policy_for("ciar", package.calibration, prefix_rate=0.25)
    truth = await faults.image(package, REQUEST, policy, server.target)
    return faults.Scene(folder, Path(folder), package, REQUEST, policy, server, truth, 1.0, 0.7)


@pytest.fixture
async def script(package: DevicePackage, server: ServerProcess) -> Script:
    await server.ready()
    policy = policy_for("exact", package.calibration, max_forwards=1)
    return await record(package, server.target, REQUEST, policy)


# ---- faults


@pytest.mark.parametrize(
    ("row", "stage"),
    [
        (faults.device_killed, "awaiting"),
        (faults.device_frozen, "between rounds"),
        (faults.server_frozen, "drafting"),
        (faults.link_cut, "prefix"),
        (faults.link_cut, "awaiting"),
        (faults.black_hole, "drafting"),
        *faults.ONCE[:3],
        faults.ONCE[-1],
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
async def test_a_fault_costs_no_token_and_no_place(scene: faults.Scene, row: faults.Row, stage: str) -> None:
    outcome = await row(scene, stage)
    assert outcome.good, outcome
    assert len(faults.line(outcome)) == len(faults.HEADER)
    assert await faults.places_free(scene, PLACES)


async def test_a_server_that_dies_is_started_again_and_asked_again(scene: faults.Scene) -> None:
    patient = replace(scene, deadline_s=20.0)
    outcome = await faults.server_killed(patient, "awaiting")
    assert outcome.good and "1 resumed" in outcome.outcome
    assert outcome.recovery_s > 0.1  # no server starts faster


async def test_a_held_place_is_seen(scene: faults.Scene) -> None:
    assert await faults.places_free(scene, PLACES)
    assert not await faults.places_free(scene, PLACES + 1)
    assert await scene.leaked() == 0


def test_every_fault_comes_at_every_stage() -> None:
    assert len(faults.FULL) == len(faults.EVERYWHERE) * len(faults.STAGES) + len(faults.ONCE + faults.SLOW)
    assert {row for row, _ in (*faults.SHORT, *faults.SLOW)} == {row for row, _ in faults.FULL}
    good = faults.Outcome("a fault", "a stage", "finished", 0.1, True, 0)
    bad = [replace(good, identical=False), replace(good, leaked=1), replace(good, held=False)]
    assert good.good and not any(outcome.good for outcome in bad)


# ---- the proxy


@pytest.fixture
async def echo() -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(100):
                writer.write(chunk)
        writer.close()

    served = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"127.0.0.1:{served.sockets[0].getsockname()[1]}"
    served.close()


async def test_the_proxy_does_what_it_is_told(echo: str) -> None:
    async with Chaos(echo) as proxy:
        host, port = proxy.address.split(":")
        for way in (proxy.cut, proxy.halve_next):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"1234")
            assert await reader.readexactly(4) == b"1234"
            way()
            writer.write(b"5678")
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)) as lost:
                await reader.readexactly(4)
            assert not getattr(lost.value, "partial", b"") or way == proxy.halve_next
            writer.close()
        reader, writer = await asyncio.open_connection(host, int(port))
        proxy.stall(0.3)
        writer.write(b"abcd")
        answer = asyncio.create_task(reader.readexactly(4))
        await asyncio.wait([answer], timeout=0.1)
        assert not answer.done()
        assert await answer == b"abcd"
        writer.close()


# ---- scripts, load, soak


async def test_a_script_is_answered_as_it_was(server: ServerProcess, script: Script) -> None:
    whole = await play(server.target, script, think=False)
    ending = script.ending(3)
    assert len(whole.rounds_s) == len(script.turns) > len(ending.turns) == 3
    assert len((await play(server.target, ending)).rounds_s) == 3
    left = await play(server.target, script, think=False, leave_after=1)
    assert len(left.rounds_s) == 1
    assert (await server.emptied())[0] == 0


async def test_another_answer_is_noticed(server: ServerProcess, script: Script) -> None:
    wrong = replace(script.turns[0].verdict, accepted=script.turns[0].verdict.accepted + 1)
    tampered = replace(script, turns=(replace(script.turns[0], verdict=wrong), *script.turns[1:]))
    with pytest.raises(CiarError, match="it answered"):
        await play(server.target, tampered, think=False)


async def test_more_devices_than_places_all_get_their_images(server: ServerProcess, script: Script) -> None:
    held = [CloudLink(server.target) for _ in range(PLACES)]
    for link in held:
        await link.__aenter__()
        await link.open(script.order)
    crowd = load.Crowd(devices=3, images=1, processes=1, think=False)
    devices = asyncio.create_task(asyncio.to_thread(load.run, server, [script], crowd, PLACES))
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        while await server.sample("ciar_errors_total") < 3:  # each was refused once
            await asyncio.sleep(0.05)
    for link in held:
        await link.__aexit__(None, None, None)
    seen = await devices
    assert seen.images == len(seen.devices) == 3
    assert len(seen.told_s) >= 3 and min(seen.told_s) > 0
    assert len(load.line(seen)) == len(load.HEADER)
    assert seen.worked_s > 0


def test_the_figures_of_a_load() -> None:
    slow = load.Device(2, (Played((0.3,), 6.0, (1.0,)),))
    quick = [load.Device(number, (Played((0.1, 0.2), 2.0, ()),)) for number in range(2)]
    seen = load.Load(8, 6.0, (*quick, slow), worked_s=3.0)
    assert (seen.images, seen.rate, seen.unfairness) == (3, 0.5, 3.0)
    assert load.line(seen) == ["3", "8", "3", "0.50", "50 %", "200", "200", "3.00", "1", "1 to 1"]


async def test_a_short_soak(server: ServerProcess, script: Script) -> None:
    plan = soak.Plan(images=20, devices=2, leave=0.3, kill_every=8, samples=3)
    samples = [sample async for sample in soak.run(server, [script.ending(2)], plan)]
    assert len(samples) == 3 and samples[-1].images >= 20
    assert samples[-1].killed >= 1 and samples[-1].left > 0
    assert samples[-1].sessions == 0
    assert samples[-1].resident_mib > 50 and samples[-1].descriptors > 5
    grown = replace(samples[0], resident_mib=2 * samples[0].resident_mib)
    assert soak.growth([samples[0], grown]) == pytest.approx(1.0)


# ---- replicas


async def test_a_killed_replica_behind_envoy_costs_no_image(
    folder: str, package: DevicePackage, server: ServerProcess
) -> None:
    with ServerProcess(folder) as other:
        await other.ready()
        pair = (server, other)
        with replicas.envoy(replicas.read_envoy(ENVOY), [replica.target for replica in pair]) as target:
            requests = [Request("a red cat", seed, WARP) for seed in range(24)]
            policy = policy_for("exact", package.calibration)
            study = replicas.Study("Envoy", package, requests, policy, target, server.target)
            seen = await study.run(lambda: replicas.kill_a_busy_one(pair))
    assert seen.identical and len(seen.cells) == len(replicas.HEADER)
    assert int(seen.cells[3]) >= 1  # the kill did hit images


@pytest.mark.parametrize(
    ("flags", "status", "says"),
    [
        (["load", "--devices", "4,x"], 1, "--devices names 'x'"),
        (["replicas", "--envoy-config", "nowhere.yaml"], 1, "no file nowhere.yaml"),
        (["replicas", "--front", "nginx"], 2, "nginx"),
        (["soak", "--images", "0"], 2, "images"),
    ],
)
def test_wrong_flags(flags: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == status
    assert says in capsys.readouterr().err
