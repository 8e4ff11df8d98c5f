"""`ciar-eval rehearse`: real call rates and promises for the gates of a pair. Knows no argv."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg

from evaluation.rehearsal import Plan, Rehearsal
from evaluation.run import cloud_server
from shared.models.zoo import CALIBRATION, load_cloud, load_device_package, write_calibration
from training.gate import gate_prompts
from training.presets import PRESETS


class Rehearse(BaseModel):
    """Draw pictures at several thresholds of every gate of a pair, and write down what each really costs."""

    model: CliPositionalArg[Path] = Field(
        description="model folder; calibration.json of its device/ is rewritten"
    )
    prompts: Path | None = Field(None, description="one prompt a line, or instead")
    data: Path | None = Field(None, description="picture folder whose captions are the prompts, with")
    preset: str = Field("everyday", description=f"the preset of the pair, one of {sorted(PRESETS)}")
    gates: list[str] = Field([], description="gates to rehearse; none named: all")
    images: int = Field(12, description="images per gate and threshold", gt=0)
    promised: int = Field(96, description="the same for gates that promise a share of wrong tokens", gt=0)
    at_once: int = Field(4, description="images under way at a time", gt=0)
    threads: int = Field(1, description="torch threads of the device", gt=0)

    def run(self) -> None:
        """Start the cloud, draw, write, print a line per gate."""
        torch.set_num_threads(self.threads)
        prompts = gate_prompts(self.prompts, self.data, self.preset, max(self.images, self.promised))
        plan = Plan(prompts, self.images, self.promised, self.at_once)
        name = str(self.model)
        cloud, package = load_cloud(name, self.model), load_device_package(name, self.model)
        with cloud_server(name) as target:
            asyncio.run(self._write(Rehearsal(target, package, cloud, plan, self._tell)))
        about = f"{self.images} and {self.promised} images a threshold"
        sys.stdout.write(f"{self.model}: gates rehearsed on {about}\n")

    async def _write(self, rehearsal: Rehearsal) -> None:
        """Gate by gate, so that a stopped rehearsal loses one at most."""
        async for calibration in rehearsal.calibrations(self.gates):
            write_calibration(self.model / "device" / CALIBRATION, calibration)

    @staticmethod
    def _tell(line: str) -> None:
        sys.stderr.write(line + "\n")
