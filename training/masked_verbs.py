"""Settings of the verbs that train the small MAR: mar-vae, mar-base, mar-device. Knows no argv."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from training.masked_base import MaskedBaseRun, MaskedBaseTrainer
from training.masked_device import MaskedDeviceRun, MaskedDeviceTrainer
from training.masked_vae import MaskedVaeRun, MaskedVaeTrainer
from training.verbs import Run


class MarVae(Run):
    """Train the autoencoder of MAR's tokens on 64 px pictures of 40 things."""

    steps: int = Field(600, description="optimiser steps", gt=0)

    def run(self) -> None:
        """Train, then export `OUT/vae`."""
        MaskedVaeTrainer(MaskedVaeRun(**self.model_dump(exclude={"threads"}))).train()


class MarBase(Run):
    """Train the large MAR, a class each thing."""

    vae: Path = Field(description="exported autoencoder, RUN/vae")
    steps: int = Field(1500, description="optimiser steps", gt=0)

    def run(self) -> None:
        """Train, then export `OUT/cloud`."""
        MaskedBaseTrainer(MaskedBaseRun(**self.model_dump(exclude={"threads"}))).train()


class MarDevice(Run):
    """Cut a small MAR from a large one and distil it."""

    vae: Path = Field(description="exported autoencoder, RUN/vae")
    cloud: Path = Field(description="exported large model, RUN/cloud, that it will work with")
    steps: int = Field(600, description="optimiser steps", gt=0)
    layers: int = Field(1, description="blocks of each of its towers", gt=0)
    head_layers: int = Field(1, description="blocks of its diffusion head", gt=0)

    def run(self) -> None:
        """Train, then export `OUT/model`, which server and device load."""
        MaskedDeviceTrainer(MaskedDeviceRun(**self.model_dump(exclude={"threads"}))).train()
