"""Settings of the verbs that train the small VAR: var-tokenizer, var-base, var-device. Knows no argv."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from training.scale_base import ScaleBaseRun, ScaleBaseTrainer
from training.scale_device import ScaleDeviceRun, ScaleDeviceTrainer
from training.scale_tokenizer import ScaleTokenizerRun, ScaleTokenizerTrainer
from training.verbs import Run


class VarTokenizer(Run):
    """Train VAR's multi-scale VQ on 64 px pictures of 40 things."""

    steps: int = Field(1500, description="optimiser steps", gt=0)

    def run(self) -> None:
        """Train, then export `OUT/vae`."""
        ScaleTokenizerTrainer(ScaleTokenizerRun(**self.model_dump(exclude={"threads"}))).train()


class VarBase(Run):
    """Train the large VAR, a class each thing; or, with --until and --start-from, CoDe's drafter of it."""

    vae: Path = Field(description="exported tokenizer, RUN/vae")
    steps: int = Field(900, description="optimiser steps", gt=0)
    wrong: float = Field(0.1, description="share of tokens told wrong, to be mended later", ge=0, lt=0.5)
    until: int | None = Field(None, description="train the first scales alone: a drafter of so many")
    start_from: Path | None = Field(None, description="exported model to begin with, RUN/cloud")

    def run(self) -> None:
        """Train, then export `OUT/cloud`."""
        ScaleBaseTrainer(ScaleBaseRun(**self.model_dump(exclude={"threads"}))).train()


class VarDevice(Run):
    """Cut a small VAR with an Inter-Head from a large one and distil it; with --begin, CoDe's refiner."""

    vae: Path = Field(description="exported tokenizer, RUN/vae")
    cloud: Path = Field(description="exported large model, RUN/cloud, that it will work with")
    steps: int = Field(400, description="optimiser steps", gt=0)
    layers: int = Field(1, description="blocks of the device model", gt=0)
    teacher: Path | None = Field(None, description="large model to learn from, if not the one of --cloud")
    begin: int = Field(0, description="first scale to learn: N behind a drafter of N", ge=0)
    start_from: Path | None = Field(None, description="exported device model to begin with")
    calibration_images: int = Field(40, description="images the gates are measured on", gt=0)

    def run(self) -> None:
        """Train, then export `OUT/model`, which server and device load."""
        ScaleDeviceTrainer(ScaleDeviceRun(**self.model_dump(exclude={"threads"}))).train()
