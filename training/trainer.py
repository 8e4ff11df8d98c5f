"""A training run of one model whose averaged weights ship: what all such runs share. Knows no model."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from training.runs import Learner, RunFolder, drive


class RunSettings(Protocol):
    """What every run is told."""

    @property
    def out(self) -> Path:
        """Its folder."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""

    @property
    def batch(self) -> int:
        """Pictures a step."""

    @property
    def average(self) -> float:
        """Decay of the averaged weights."""

    @property
    def checkpoint_every(self) -> int:
        """Steps between two checkpoints."""


RunT = TypeVar("RunT", bound=RunSettings)
ModelT = TypeVar("ModelT", bound=nn.Module)


class ModelTrainer(ABC, Generic[RunT, ModelT]):
    """Step, resume, evaluate, export. A subclass makes its model, then calls `begin`."""

    model: ModelT
    learner: Learner

    def __init__(self, run: RunT) -> None:
        self.run, self.folder = run, RunFolder(run.out)

    def begin(self, optimizers: Sequence[torch.optim.Optimizer], settings: Any) -> None:  # noqa: ANN401
        """Take up where the folder's run stands. `settings`, any dataclass, are recorded beside the run's
        own. Raises InvalidRequest for the folder of another run."""
        self.learner = Learner(self.model, optimizers, self.run.average)
        if state := self.folder.begin(self.run, settings):
            self.learner.restore(state)

    def drive(self) -> None:
        """To the last step."""
        drive(self, self.run.steps, self.run.batch, self.run.checkpoint_every)

    @abstractmethod
    def advance(self) -> dict[str, float]:
        """One optimiser step; returns its metrics."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Figures on held-back data, sample grids on the way."""

    def save(self) -> None:
        """Write everything a resumed run needs."""
        self.folder.save(self.learner.state())

    def averaged_model(self) -> ModelT:
        """The model that ships: averaged weights."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.learner.averaged())
        return model.eval()
