"""A tiny model for the whole session, and a real server on a free port for each test that asks for one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from cloud_server.engine import Engine
from cloud_server.server import CloudServer, Settings, running
from shared.models.zoo import CloudModel, load_cloud
from tests.cloud_server.rig import dial
from tests.tiny import build_tiny_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, T = 16."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def cloud(folder: Path) -> CloudModel:
    """Its cloud side."""
    return load_cloud(str(folder), folder)


@pytest.fixture
def engine(cloud: CloudModel) -> Engine:
    """An engine with room for eight."""
    return Engine(cloud, 8)


@pytest.fixture
async def server(cloud: CloudModel) -> AsyncIterator[CloudServer]:
    """A real server on a free port."""
    async with running(cloud, Settings()) as started:
        yield started


@pytest.fixture
async def channel(server: CloudServer) -> AsyncIterator[grpc.aio.Channel]:
    """A connection to it."""
    async with dial(server) as opened:
        yield opened
