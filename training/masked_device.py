"""`ciar-train mar-device`: the small MAR, cut from a large one and distilled from it.

The lesson is the large model's own output at the same states: drafts along the same noise then end near its
tokens, and that is what the cloud keeps.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.decoding.diffusion import cosine
from shared.errors import InvalidRequest
from shared.models.by_mask import load_mar, save_masked_device
from shared.models.checkpoint import digest
from shared.models.diffloss import Condition
from shared.models.families.mar import MARModel
from shared.models.generators import load_kl
from training.base import falling, optimizers
from training.masked_base import DROPPED
from training.masked_data import CLIP, Lesson, conditions, encoded, lesson
from training.scale_data import Pictures, dropped
from training.trainer import ModelTrainer


@dataclass(frozen=True)
class MaskedDeviceRun:
    """Settings of one run; saved with it. `layers` are those of each tower, `head_layers` of the head."""

    data: Path
    vae: Path
    cloud: Path
    out: Path
    steps: int = 600
    batch: int = 32
    layers: int = 1
    head_layers: int = 1
    rate: float = 1e-3
    matrix_rate: float = 5e-3
    average: float = 0.99
    seed: int = 0
    checkpoint_every: int = 200


def cut_masked(cloud: MARModel, layers: int, head_layers: int) -> MARModel:
    """The first blocks of each tower of the cloud, and of its head. Raises InvalidRequest."""
    config = cloud.config
    for count, most, name in (
        (layers, min(config.encoder.depth, config.decoder.depth), "layers"),
        (head_layers, config.head_depth, "layers of the head"),
    ):
        if not 1 <= count <= most:
            raise InvalidRequest(f"{count} {name} of {most}", f"allowed: 1 to {most}")
    towers = {name: replace(getattr(config, name), depth=layers) for name in ("encoder", "decoder")}
    device = MARModel(replace(config, **towers, head_depth=head_layers))
    known = cloud.state_dict()
    device.load_state_dict({name: known[name] for name in device.state_dict()})
    return device


class MaskedDeviceTrainer(ModelTrainer[MaskedDeviceRun, MARModel]):
    """One run: distil, evaluate, export."""

    def __init__(self, run: MaskedDeviceRun) -> None:
        super().__init__(run)
        self.schedule = cosine()
        self.pictures, self.vae = Pictures(run.data, run.seed), load_kl(run.vae)
        self.cloud = load_mar(run.cloud).requires_grad_(False)
        self.model = cut_masked(self.cloud, run.layers, run.head_layers)
        groups = optimizers(self.model, run.rate, run.matrix_rate, "_blocks.")
        self.begin(groups, self.model.config)

    def train(self) -> None:
        """Run to the last step, then export `OUT/model` with its cloud and autoencoder."""
        run, home = self.run, self.run.out / "model"
        self.drive()
        of_cloud, labels = digest(run.cloud), self.pictures.labels
        save_masked_device(home / "device", self.averaged_model(), of_cloud, labels, CLIP)
        for name, source in (("cloud", run.cloud), ("vae", run.vae)):
            shutil.copytree(source, home / name, dirs_exist_ok=True)

    def advance(self) -> dict[str, float]:
        """One optimiser step on the next pictures."""
        run, step = self.run, self.learner.step
        batch = self.pictures.batch(step, run.batch)
        labels = dropped(batch.labels_B, self.model.config.classes, DROPPED, run.seed + 5, step)
        self.learner.set_rates(falling((run.matrix_rate, run.rate), step, run.steps))
        tokens = encoded(self.vae, batch.image_B3HW, run.seed, step)
        learnt = lesson(tokens, self.schedule, run.seed + 6, step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self._loss(self.model, learnt, labels)
        self.learner.learn(loss)
        return {"loss": round(loss.item(), 5)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The loss on held-back pictures."""
        batch = self.pictures.held(32)
        learnt = lesson(encoded(self.vae, batch.image_B3HW, self.run.seed + 8, 0), self.schedule, 9, 0)
        return {"held_back_loss": round(self._loss(self.averaged_model(), learnt, batch.labels_B).item(), 5)}

    def _loss(self, model: MARModel, learnt: Lesson, labels_B: Tensor) -> Tensor:
        """Squared distance from what the cloud says of the same states: noise, and place of the variance."""
        with torch.no_grad():
            wanted = self._said(self.cloud, learnt, labels_B)
        return F.mse_loss(self._said(model, learnt, labels_B), wanted)

    def _said(self, model: MARModel, learnt: Lesson, labels_B: Tensor) -> Tensor:
        z_BLD = model(learnt.tokens_BLC, learnt.masked_BL, conditions(model, labels_B))
        return model.diffloss.output(learnt.state_NC, learnt.t_N, Condition(learnt.of_masked(z_BLD)))
