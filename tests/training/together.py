"""What two processes of one run do; in a module of its own, so that the processes can import it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from training.base import BaseRun, BaseTrainer
from training.device import DeviceRun, DeviceTrainer
from training.engine import Engine, Place

STRATEGIES = ("ddp", "fsdp")


def train_both(device: DeviceRun, base: BaseRun, folder: Path) -> None:
    """One step of each run with each strategy, then a second one by a trainer that resumes."""
    torch.set_num_threads(1)
    for strategy in STRATEGIES:
        engine = Engine(Place(strategy=strategy, precision="fp32"))
        records = []
        for name, trainer, run in (("device", DeviceTrainer, device), ("base", BaseTrainer, base)):
            run = replace(run, out=folder / strategy / name)
            first = trainer(run, engine)
            records.append(first.advance())
            first.save()
            engine.wait()
            second = trainer(run, engine)
            records.append(second.advance())
            second.save()
        if engine.main:
            (folder / f"{strategy}.json").write_text(json.dumps([engine.world, *records]))
        engine.wait()
    engine.leave()


def fail() -> None:
    """Go wrong."""
    raise ValueError("the second floor is flooded")
