"""Settings of the verbs that train the small DiT: dit-base, dit-device. Knows no argv."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field

from training.step_base import StepBaseRun, StepBaseTrainer
from training.step_device import StepDeviceRun, StepDeviceTrainer
from training.verbs import Run


class DitBase(Run):
    """Train the large DiT on 64 px pictures of 40 things, a class each thing."""

    vae: Path = Field(description="exported autoencoder, RUN/vae of mar-vae")
    steps: int = Field(3000, description="optimiser steps", gt=0)
    batch: int = Field(32, description="pictures per step", gt=0)
    pool: int = Field(8192, description="composed pictures that are learned from", gt=0)

    def run(self) -> None:
        """Train, then export `OUT/cloud` and `OUT/vae`."""
        StepBaseTrainer(StepBaseRun(**self.model_dump(exclude={"threads"}))).train()


class DitDevice(BaseModel):
    """Cut a one-block companion from a large DiT, distil it on pictures that one draws, calibrate it."""

    base: Path = Field(description="run folder of dit-base, or another with cloud/ and vae/")
    out: Path = Field(description="run folder; an existing run with the same settings is resumed")
    steps: int = Field(1500, description="optimiser steps", gt=0)
    batch: int = Field(24, description="guesses per step", gt=0)
    images: int = Field(96, description="pictures drawn to learn from: so many by the cloud, so many by both")
    layers: int = Field(1, description="blocks of the device model", gt=0)
    features: int = Field(32, description="numbers a patch that the cloud tells of its hidden state", gt=0)
    spacing: str = Field("ddim50", description="denoising steps of these pictures")
    guidance: float = Field(2.0, description="guidance that thresholds are calibrated at")
    calibration_images: int = Field(6, description="pictures they are calibrated on", gt=0)
    seed: int = Field(0, description="of new weights and of the pictures", ge=0)
    threads: int = Field(1, description="torch threads", gt=0)
    checkpoint_every: int = Field(250, description="steps between checkpoints and evaluations", gt=0)

    def run(self) -> None:
        """Train, then export `OUT/model`, which server and device load."""
        StepDeviceTrainer(StepDeviceRun(**self.model_dump(exclude={"threads"}))).train()
