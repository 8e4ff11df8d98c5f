"""Bad input, in a bounded form; `ciar-eval fuzz` sends a hundred thousand frames."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_server.engine import Engine
from cloud_server.server import Settings, running
from device_client.loop import Request
from device_client.policy import policy_for
from evaluation import fuzz, overhead
from evaluation.hostile import Hostile
from shared.errors import InvalidRequest, ModelMismatch, ModelUnavailable
from shared.messages import Draft, Open, ServerInfo
from shared.models.zoo import CloudModel, DevicePackage, load_cloud, load_device_package
from shared.wire import codec
from shared.wire.pb import ciar_pb2 as pb
from tests.tiny import WARP, build_tiny_model

KINDS = {"noise", "made up", "mangled", "one bad frame", "out of order", "out of range"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def cloud(folder: str) -> CloudModel:
    return load_cloud(folder, Path("nowhere"))


@pytest.fixture(scope="module")
def package(folder: str) -> DevicePackage:
    return load_device_package(folder, Path("nowhere"))


@pytest.fixture(scope="module")
def engine(cloud: CloudModel) -> Engine:
    return Engine(cloud, 1)


@pytest.fixture(scope="module")
def info(engine: Engine) -> ServerInfo:
    return ServerInfo(1, (engine.info,), 1000, 64, 1, 1 << 20)


def swallow(engine: Engine, frame: bytes) -> None:
    """What the server does with a frame, short of running the model; whatever else it raises is a bug."""
    with suppress(InvalidRequest, ModelMismatch, ModelUnavailable, codec.UnreadableFrame):
        message = codec.decode_request(pb.GenerateRequest.FromString(frame))
        if isinstance(message, Open):
            engine.close(engine.open(message))
        if isinstance(message, Draft):
            model = engine.info
            session = engine.open(Open(model.name, "", model.codebook_size, "a cat", 7, WARP, 0, "coupled"))
            try:
                if session.answered(message) is None and (settled := session.settled(message)):
                    session.check(settled)
            finally:
                engine.close(session)


@settings(max_examples=400)
@given(frame=st.binary(max_size=300))
def test_any_bytes_are_refused_in_words(engine: Engine, frame: bytes) -> None:
    swallow(engine, frame)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_any_frame_fits_or_is_refused_in_words(engine: Engine, info: ServerInfo, seed: int) -> None:
    hostile = Hostile(info, seed)
    for _ in range(20):
        for frame in hostile.attack().frames:
            swallow(engine, frame)


def test_attacks_are_those_of_their_seed(info: ServerInfo) -> None:
    one, same, other = (Hostile(info, seed) for seed in (1, 1, 2))
    attacks = [one.attack() for _ in range(50)]
    assert attacks == [same.attack() for _ in range(50)]
    assert attacks != [other.attack() for _ in range(50)]
    assert {attack.kind for attack in attacks} == KINDS


async def test_a_server_bears_all_of_it(cloud: CloudModel, package: DevicePackage) -> None:
    policy = policy_for("exact", package.calibration)
    async with running(cloud, Settings(max_sessions=6)) as server:
        target, plan = f"127.0.0.1:{server.port}", fuzz.Plan(frames=300, connections=10)
        outcome = await fuzz.attack(target, package, Request("a red cat", 7, WARP), policy, plan)
    assert outcome.harmless, fuzz.table(outcome)
    assert sum(tally.frames for tally in outcome.tallies.values()) >= 310
    assert f"{outcome.pictures} pictures drawn beside them, 0 of them changed" in fuzz.table(outcome)


async def test_harm_is_noticed(
    cloud: CloudModel, package: DevicePackage, info: ServerInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that fails, one that tells of its inside, and one that keeps its places for itself."""

    def failing(self: Engine, order: Open) -> None:
        raise OSError("/opt/secret/weights.safetensors")

    async with running(cloud, Settings(max_sessions=40)) as server:
        target, tallies = f"127.0.0.1:{server.port}", dict[str, fuzz.Tally]()
        monkeypatch.setattr(Engine, "_check", failing)
        await fuzz._streams(target, Hostile(info, 0), fuzz.Plan(60, 0), tallies)
        faults = [fault for tally in tallies.values() for fault in tally.faults]
        assert faults and all("the cloud failed" in fault for fault in faults)
        assert not fuzz.Outcome(tallies, 1, 0, 1, 1).harmless
        monkeypatch.undo()
        monkeypatch.setattr(Engine, "close", lambda self, session: None)
        request, policy = Request("a red cat", 7, WARP), policy_for("exact", package.calibration)
        outcome = await fuzz.attack(target, package, request, policy, fuzz.Plan(20, 0))
        assert outcome.free_places < outcome.places and not outcome.harmless
    tally = fuzz.Tally()
    fuzz._listen(tally, "Unexpected <class 'ValueError'>")
    assert tally.leaks and not fuzz.Outcome({"x": tally}, 1, 0, 1, 1).harmless


async def test_rounds_are_timed(cloud: CloudModel) -> None:
    async with running(cloud, Settings()) as server:
        found = await overhead.measure(f"127.0.0.1:{server.port}", 20, 2)
    assert len(found) >= 20 and all(round.trip_s > round.forward_s > 0 for round in found)
    lines = overhead.table({2: found}).splitlines()
    assert lines[2].startswith(f"| 2 | {len(found)} | ") and len(lines) == 3
