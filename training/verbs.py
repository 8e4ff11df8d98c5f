"""Settings of the training verbs that run anywhere: base, device, bridge, ablate. Knows nothing of argv."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from pydantic_settings import CliImplicitFlag

from shared.decoding.heads import COMBINATIONS
from shared.models.inter_head import MAX_HEADS
from training.ablate import GROUPS, ablate
from training.base import BaseRun, BaseTrainer
from training.bridge import BridgeRun, BridgeTrainer
from training.calibrate import CALIBRATED
from training.device import DeviceRun, DeviceTrainer
from training.engine import DEVICES, PRECISIONS, STRATEGIES, Engine, Place, launch
from training.inter_dro import BOUNDS, TERMS, InterDRO
from training.presets import PRESETS
from training.standing_in import Keeping
from training.teacher import FORMS


class Run(BaseModel):
    """What every training verb is told."""

    data: Path = Field(description="picture folder: captions.jsonl and <style>.tar or <style>/<concept>.webp")
    out: Path = Field(description="run folder; an existing run with the same settings is resumed")
    steps: int = Field(description="optimiser steps", gt=0)
    batch: int = Field(16, description="scenes per step", gt=0)
    seed: int = Field(0, description="initial weights and order of scenes", ge=0)
    threads: int = Field(2, description="torch threads", gt=0)
    checkpoint_every: int = Field(250, description="steps between checkpoints and evaluations", gt=0)


class PlacedRun(Run):
    """A run that says where it computes; it may be resumed elsewhere."""

    device: str = Field("cpu", description=f"where to compute: {' or '.join(DEVICES)}")
    devices: int = Field(1, description="processes on this machine, on cuda one GPU each", gt=0)
    strategy: str = Field("ddp", description=f"how several processes share: {' or '.join(STRATEGIES)}")
    precision: str = Field("bf16", description=f"of the transformer: {' or '.join(PRECISIONS)}")
    workers: int = Field(0, description="processes per device that compose scenes", ge=0)

    def place(self) -> Place:
        """Where to compute."""
        return Place(self.device, self.devices, self.strategy, self.precision, self.workers)

    def settings(self, *without: str) -> dict[str, Any]:
        """Everything else, but for the fields `without`."""
        return self.model_dump(exclude={"threads", *(item.name for item in fields(Place)), *without})


Work = Callable[[Any, Engine], None]


def train_at(place: Place, threads: int, work: Work, run: object) -> None:
    """`work(run, engine)` in every process of the place."""
    launch(place, _enter, place, threads, work, run)


def _enter(place: Place, threads: int, work: Work, run: object) -> None:
    torch.set_num_threads(threads)
    engine = Engine(place)
    work(run, engine)
    engine.leave()


def train_base(run: BaseRun, engine: Engine) -> None:
    """Train, then export `OUT/cloud`."""
    BaseTrainer(run, engine).train()


def train_device(run: DeviceRun, engine: Engine) -> None:
    """Distil, then export `OUT/device`."""
    DeviceTrainer(run, engine).train()


def train_bridge(run: BridgeRun, engine: Engine) -> None:
    """Train, then export `OUT/device`."""
    BridgeTrainer(run, engine).train()


class Device(PlacedRun):
    """Distil the device model with its Inter-Heads from a cloud model, then calibrate its gates."""

    tokenizer: Path = Field(description="exported tokenizer, RUN/vq")
    cloud: Path = Field(description="exported cloud model, RUN/cloud")
    preset: str = Field("everyday", description=f"one of {sorted(PRESETS)}")
    steps: int = Field(600, description="optimiser steps", gt=0)
    layers: int = Field(1, description="layers of the device model", gt=0)
    heads: int = Field(1, description="Inter-Heads, from different seeds", gt=0, le=MAX_HEADS)
    combine: str = Field("ensemble", description=f"several heads are one by: {' or '.join(COMBINATIONS)}")
    bounds: str = Field("logit", description=f"how the bounds enter the loss: {' or '.join(BOUNDS)}")
    without: list[str] = Field([], description=f"terms of the loss to leave out: {', '.join(TERMS)}")
    drawn: int = Field(256, description="images the cloud draws for training", gt=0)
    calibration_images: int = Field(64, description="held-back images the gates are measured on", gt=0)
    drawn_share: float = Field(0.5, description="share of a batch that the cloud drew", ge=0, le=1)
    real: int = Field(0, description="size of a fixed pool of real scenes; 0: always fresh ones", ge=0)
    images: Path | None = Field(None, description="folder of drawn images and kept teachers; default OUT")
    teacher: str = Field("fly", description=f"the teacher's distributions: {', '.join(FORMS)}")
    teacher_ids: int = Field(64, description="ids per place that a sparse teacher keeps", gt=0)
    guidance: float = Field(2.0, description="guidance of the pair")
    distill_guidance: CliImplicitFlag[bool] = Field(True, description="distil guidance into one row per step")
    temperature: float = Field(0.7, description="default temperature of the pair")
    top_p: float = Field(0.9, description="default top-p of the pair")
    patience: int = Field(0, description="evaluations without a better AUROC before the end; 0: all", ge=0)
    stop_gate: str = Field("interval", description="gate whose AUROC on held-back images is watched")

    def order(self, *without: str) -> DeviceRun:
        """The settings of the run."""
        loss = InterDRO(self.bounds).without(*self.without)
        return DeviceRun(**self.settings("bounds", "without", *without), loss=loss)

    def run(self) -> None:
        """Distil, then export `OUT/device`."""
        train_at(self.place(), self.threads, train_device, self.order())


class Ablate(Device):
    """Train the loss without each term, other layers and other numbers of heads; one table."""

    steps: int = Field(200, description="optimiser steps of each variant", gt=0)
    groups: list[str] = Field(list(GROUPS), description=f"what to vary: {', '.join(GROUPS)}")

    def run(self) -> None:
        """Train what the table in OUT lacks, print it."""
        train_at(self.place(), self.threads, partial(_ablate, self.groups), self.order("groups"))


def _ablate(groups: Sequence[str], run: DeviceRun, engine: Engine) -> None:
    text = ablate(run, groups, engine)
    if engine.main:
        sys.stdout.write(text)


class Bridge(PlacedRun):
    """Teach a frozen cloud to listen to interval features: phi and W."""

    cloud: Path = Field(description="exported cloud model, RUN/cloud")
    device_model: Path = Field(description="exported device model, RUN/device")
    preset: str = Field("everyday", description=f"one of {sorted(PRESETS)}")
    steps: int = Field(300, description="optimiser steps", gt=0)
    batch: int = Field(8, description="images per step", gt=0)
    drawn: int = Field(256, description="images the cloud draws for training", gt=0)
    held_back: int = Field(32, description="images the effect is measured on", gt=0)
    images: Path | None = Field(None, description="folder of drawn images; default OUT")
    rate: float = Field(3e-4, description="learning rate", gt=0)
    gate: str = Field("entropy", description=f"keeps what it scores least: {', '.join(CALIBRATED)}")
    least: float = Field(0.3, description="least share of an image's tokens that the device keeps")
    most: float = Field(0.8, description="largest share of an image's tokens that the device keeps")

    def run(self) -> None:
        """Train, then export `OUT/device`: the device with its phi, and W."""
        keeping = Keeping(self.gate, self.least, self.most)
        settings = self.settings("device_model", "gate", "least", "most")
        run = BridgeRun(**settings, device=self.device_model, keeping=keeping)
        train_at(self.place(), self.threads, train_bridge, run)
