"""Moving thresholds and relaxed acceptance against a real server: what they do to calls and tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloud_server.server import CloudServer, Settings, running
from device_client.link import CloudLink
from device_client.loop import Progress, Request, Source, decode
from device_client.policy import Policy, policy_for
from shared.decoding.acceptance import Relaxation
from shared.models.zoo import DevicePackage, load_cloud, load_device_package
from tests.tiny import WARP, build_tiny_model

PROMPTS = ("a red cat", "a dog on a blue background", "a banana", "green house")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny"), grid=8)


@pytest.fixture(scope="module")
def package(folder: Path) -> DevicePackage:
    return load_device_package(str(folder), folder)


@pytest.fixture
async def server(folder: Path) -> AsyncIterator[CloudServer]:
    async with running(load_cloud(str(folder), folder), Settings(max_sessions=1)) as server:
        yield server


async def images(package: DevicePackage, policy: Policy, server: CloudServer) -> list[Progress]:
    drawn = []
    for seed, prompt in enumerate(PROMPTS):
        async with CloudLink(f"127.0.0.1:{server.port}") as link:
            steps = decode(package, Request(prompt, seed, WARP), policy, link)
            drawn.append([step async for step in steps][-1])
    return drawn


@pytest.mark.parametrize("target", [0.15, 0.25])
async def test_budget_keeps_every_image_near_the_target(
    package: DevicePackage, server: CloudServer, target: float
) -> None:
    """Three of 64 forwards are the most any image is off, where `fixed` is off by more in some."""
    policies = [
        policy_for("ciar", package.calibration, gate="agreement", cloud_budget=target, pacing=pacing)
        for pacing in ("budget", "fixed")
    ]
    paced, plain = [await images(package, policy, server) for policy in policies]
    off = [abs(image.counters.call_rate - target) for image in paced]
    assert max(off) <= 3 / 64
    assert max(off) <= max(abs(image.counters.call_rate - target) for image in plain)


async def test_early_keeps_nothing_before_the_budget_is_spent(
    package: DevicePackage, server: CloudServer
) -> None:
    """So that what it keeps is the end of the image, and what stands before is the cloud's own."""
    base = await images(package, policy_for("exact", package.calibration), server)
    early = policy_for("ciar", package.calibration, cloud_budget=0.1, pacing="early")
    assert early.max_forwards == 8
    for whole, image in zip(base, await images(package, early, server), strict=True):
        first = image.sources.index(Source.KEPT)
        assert set(image.sources[first:]) == {Source.KEPT}
        assert image.tokens[:first] == whole.tokens[:first]
        assert 0.1 <= image.counters.call_rate + 1 / 64 <= 0.1 + 8 / 64


async def test_cost_asks_less_where_rounds_are_dear(package: DevicePackage, server: CloudServer) -> None:
    """Loopback is far cheaper than the reference round, so `cost` asks more than the same fixed budget."""
    rates = {}
    for pacing in ("fixed", "cost"):
        policy = policy_for(
            "ciar", package.calibration, gate="entropy", cloud_budget=0.15, pacing=pacing, max_forwards=1
        )
        drawn = await images(package, policy, server)
        rates[pacing] = sum(image.counters.rounds for image in drawn)
    assert rates["cost"] > rates["fixed"]


async def test_relaxed_accepts_more_as_its_bounds_widen(package: DevicePackage, server: CloudServer) -> None:
    """Delta 0 draws the base image; more room costs fewer rounds and changes tokens."""
    base = await images(package, policy_for("exact", package.calibration, span=4), server)
    found = []
    for delta in (0.0, 0.3, 1.0):
        policy = policy_for(
            "exact", package.calibration, span=4, acceptance="relaxed", relaxation=Relaxation(20, delta)
        )
        found.append(await images(package, policy, server))
    strict, some, loose = found
    assert [image.tokens for image in strict] == [image.tokens for image in base]
    rounds = [sum(image.counters.rounds for image in drawn) for drawn in found]
    assert rounds[0] >= rounds[1] >= rounds[2] and rounds[0] > rounds[2]
    assert [image.tokens for image in loose] != [image.tokens for image in base]
    assert len(some) == len(base)
