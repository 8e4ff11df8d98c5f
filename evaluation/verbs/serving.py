"""`ciar-eval fuzz | overhead`: what a server bears, and what it costs beside its model."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import torch
from pydantic import BaseModel, Field

from device_client.policy import policy_for
from device_client.wish import request_for
from evaluation import fuzz, overhead
from evaluation.run import cloud_server
from shared.errors import CiarError
from shared.models.zoo import load_device_package


class Fuzz(BaseModel):
    """Frames and bytes no device would send, at a cloud-server process beside a device that draws."""

    model: str = Field("emoji", description="model name or folder")
    models: Path = Field(Path("~/.cache/ciar/models"), description="folder of fetched weights")
    frames: int = Field(100_000, description="frames on streams, at least", gt=0)
    connections: int = Field(1_000, description="bare connections that speak no gRPC", ge=0)
    seed: int = Field(0, description="which frames")
    at_once: int = Field(4, description="streams at a time", gt=0)

    def run(self) -> None:
        """Attack, print the table. Raises CiarError where anything came of it."""
        torch.set_num_threads(1)
        models = self.models.expanduser()
        package = load_device_package(self.model, models)
        request = request_for(package, "a cat", 7)
        policy = policy_for("exact", package.calibration)
        plan = fuzz.Plan(self.frames, self.connections, self.seed, self.at_once)
        flags = ("--models", str(models), "--max-sessions", str(self.at_once + 2), "--log-format", "json")
        with cloud_server(self.model, *flags) as target:
            outcome = asyncio.run(fuzz.attack(target, package, request, policy, plan))
        sys.stdout.write(fuzz.table(outcome))
        if not outcome.harmless:
            again = f"the same again: --seed {self.seed}"
            raise CiarError("bad input did harm", "the table says what", again)


class Overhead(BaseModel):
    """Round trip minus forward over loopback, by one device and by several at a time."""

    model: str = Field("emoji", description="model name or folder")
    models: Path = Field(Path("~/.cache/ciar/models"), description="folder of fetched weights")
    rounds: int = Field(500, description="rounds per row, at least", gt=0)
    devices: tuple[int, ...] = Field((1,), description="devices at a time, one row each")
    max_wait_ms: float = Field(0.0, description="as cloud-server's", ge=0)

    def run(self) -> None:
        """Measure, print the table."""
        wait = ("--max-wait-ms", str(self.max_wait_ms), "--max-sessions", str(max(*self.devices, 8)))
        with cloud_server(self.model, "--models", str(self.models.expanduser()), *wait) as target:
            found = {
                count: asyncio.run(overhead.measure(target, self.rounds, count)) for count in self.devices
            }
        sys.stdout.write(overhead.table(found))
