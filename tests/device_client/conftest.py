"""A tiny model and real cloud servers for the tests of the REST service, and slow drawing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path

import pytest

from cloud_server.server import CloudServer, Settings, running
from device_client import jobs
from device_client.draw import Upstream
from shared.models.zoo import CloudModel, DevicePackage, load_cloud, load_device_package
from tests.device_client.rig import GRID, Pace
from tests.tiny import build_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """Model folders by the side of their image."""
    return cache(lambda grid: str(build_tiny_model(tmp_path_factory.mktemp("tiny"), grid=grid)))


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tiny: Callable[[int], str]) -> str:
    """A model folder, T the square of what the module calls GRID."""
    return tiny(getattr(request.module, "GRID", GRID))


@pytest.fixture(scope="module")
def package(folder: str) -> DevicePackage:
    """Its device side."""
    return load_device_package(folder, Path("nowhere"))


@pytest.fixture(scope="module")
def cloud_model(folder: str) -> CloudModel:
    """Its cloud side."""
    return load_cloud(folder, Path("nowhere"))


@pytest.fixture
async def cloud(cloud_model: CloudModel) -> AsyncIterator[CloudServer]:
    """A server of it."""
    async with running(cloud_model, Settings(max_sessions=4)) as server:
        yield server


@pytest.fixture
def upstream(cloud: CloudServer) -> Upstream:
    """Where the server is."""
    return Upstream(f"127.0.0.1:{cloud.port}", retry_s=0.2)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Pace:
    """Drawing with a pause behind every step, as over a bad network."""
    pace = Pace(0.02)
    monkeypatch.setattr(jobs, "steps", pace.steps)
    return pace
