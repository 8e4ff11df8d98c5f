"""Whole processes: a cloud server that is killed, frozen and started again under a device that draws."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from device_client.link import CloudLink
from device_client.loop import Progress, Request, decode
from device_client.policy import Policy, policy_for
from shared.models.zoo import BRIDGE, DevicePackage, load_device_package
from tests.tiny import WARP, build_tiny_model

REQUEST = Request("a green apple on a white background", 99, WARP)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model whose cloud listens to features: what a replay forgets of them would change the image."""
    folder = build_tiny_model(tmp_path_factory.mktemp("tiny"), grid=8)
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight}, folder / "device" / BRIDGE)
    return str(folder)


@pytest.fixture(scope="module")
def package(folder: str) -> DevicePackage:
    return load_device_package(folder, Path("nowhere"))


class ServerProcess:
    """`cloud-server` in a process of its own, always on one port."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.port = taken.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "cloud_server.cli", "--model", self.folder, "--port", str(self.port)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def link(self, deadline_s: float = 20.0) -> CloudLink:
        return CloudLink(f"127.0.0.1:{self.port}", connect_s=60.0, deadline_s=deadline_s, retry_s=60.0)


@pytest.fixture
def server(folder: str) -> Iterator[ServerProcess]:
    server = ServerProcess(folder)
    yield server
    server.kill()


async def whole(package: DevicePackage, policy: Policy, link: CloudLink) -> Progress:
    return [step async for step in decode(package, REQUEST, policy, link)][-1]


async def test_a_killed_server_costs_time_and_no_token(package: DevicePackage, server: ServerProcess) -> None:
    exact = policy_for("exact", package.calibration, span=2, max_forwards=1)
    ciar = policy_for("ciar", package.calibration, gate="margin", threshold=-1.0, max_forwards=1)
    busy = replace(exact, in_flight=4, guesses=True, max_forwards=2, alone="", window=0)
    async with server.link() as link:  # the server is still starting: the link waits for it
        base = await whole(package, policy_for("cloud-only", package.calibration), link)
        undisturbed = await whole(package, ciar, link)
        deaf = await whole(package, replace(ciar, features=False), link)
        disturbed = []
        onward = policy_for("exact", package.calibration, span=2)  # fewer rounds, of many forwards
        for policy, moment in ((exact, 5), (ciar, 5), (busy, 5), (onward, 2)):
            victim = server.process
            async for step in decode(package, REQUEST, policy, link):
                if step.counters.rounds == moment and server.process is victim:
                    server.kill()
                    server.start()
            assert step.done and server.process is not victim
            assert step.counters.resumes >= 1
            disturbed.append(step)
    assert disturbed[0].tokens == disturbed[2].tokens == disturbed[3].tokens == base.tokens
    assert (disturbed[1].tokens, disturbed[1].sources) == (undisturbed.tokens, undisturbed.sources)
    assert disturbed[1].counters.rounds == undisturbed.counters.rounds
    assert deaf.tokens != undisturbed.tokens


async def test_a_frozen_server_is_left_behind_by_its_deadline(
    package: DevicePackage, server: ServerProcess
) -> None:
    policy = policy_for("exact", package.calibration, max_forwards=1)
    async with server.link() as link:
        base = await whole(package, policy, link)
    async with server.link(deadline_s=1.0) as link:
        frozen = 0.0
        async for step in decode(package, REQUEST, policy, link):
            if step.counters.rounds == 3 and not frozen:
                server.process.send_signal(signal.SIGSTOP)
                frozen = time.monotonic()
                asyncio.get_running_loop().call_later(1.5, server.process.send_signal, signal.SIGCONT)
        assert step.tokens == base.tokens
        assert step.counters.resumes >= 1
        assert time.monotonic() - frozen < 30
