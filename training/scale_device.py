"""`ciar-train var-device`: the small VAR with an Inter-Head, cut from a large one and distilled from it.

The teacher is the large model under the same classes; the loss is Inter-DRO within each scale, then the mean
over scales, else the last ones would be most of it. From some scale on alone it makes CoDe's refiner.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import InvalidRequest, ModelUnavailable
from shared.models.by_scale import Companion, ScaleDevice, cut_scales, load_scale_device, save_scale_device
from shared.models.checkpoint import digest
from shared.models.families.var import VARModel
from shared.models.generators import load_generator, load_scale_vq
from training.base import falling, optimizers
from training.inter_dro import InterDRO, inter_dro
from training.scale_base import DROPPED, by_scale, forced
from training.scale_calibrate import play, write_thresholds
from training.scale_data import Pictures, dropped
from training.scale_tokenizer import encoded
from training.trainer import ModelTrainer


@dataclass(frozen=True)
class ScaleDeviceRun:
    """Settings of one run; saved with it."""

    data: Path
    vae: Path
    cloud: Path
    out: Path
    steps: int = 400
    batch: int = 16
    layers: int = 1
    rate: float = 1e-3
    matrix_rate: float = 5e-3
    average: float = 0.99
    seed: int = 0
    checkpoint_every: int = 100
    calibration_images: int = 40
    teacher: Path | None = None  # whose distributions are learnt; None: the cloud's
    start_from: Path | None = None  # exported device whose weights the run begins with
    begin: int = 0  # the first scale that counts: CoDe's refiner learns those behind its drafter's
    loss: InterDRO = field(default_factory=InterDRO)


class ScaleDeviceTrainer(ModelTrainer[ScaleDeviceRun, ScaleDevice]):
    """One run: distil, evaluate, calibrate, export."""

    def __init__(self, run: ScaleDeviceRun) -> None:
        super().__init__(run)
        self.pictures, self.vq = Pictures(run.data, run.seed), load_scale_vq(run.vae)
        self.cloud, self.teacher = _var(run.cloud), _var(run.teacher or run.cloud)
        self.scales = len(self.cloud.config.scales)
        if not 0 <= run.begin < self.scales:
            raise InvalidRequest(f"scales from {run.begin} on", f"allowed: 0 to {self.scales - 1}")
        torch.manual_seed(run.seed)  # radii; everything later is keyed by (seed, step)
        self.model = cut_scales(self.cloud, run.layers, Companion(digest(run.cloud)))
        if run.start_from:
            self.model.load_state_dict(load_scale_device(run.start_from).state_dict())
        groups = optimizers(self.model, run.rate, run.matrix_rate, "blocks.")
        self.begin(groups, self.model.base.config)

    def train(self) -> None:
        """Run to the last step, then export `OUT/model` with its cloud and tokenizer, gates calibrated."""
        run, home = self.run, self.run.out / "model"
        self.drive()
        model = self.averaged_model()
        save_scale_device(home / "device", model, self.pictures.labels)
        for name, source in (("cloud", run.cloud), ("vae", run.vae)):
            shutil.copytree(source, home / name, dirs_exist_ok=True)
        played = play(self.cloud, model, self.vq.quantize, run.calibration_images)
        write_thresholds(home / "device", played)
        ranks = {"auroc": played.ranks(), "agreement": played.agreement()}
        self.folder.log({"step": self.learner.step, **ranks})

    def advance(self) -> dict[str, float]:
        """One optimiser step on the next pictures."""
        run, step = self.run, self.learner.step
        batch = self.pictures.batch(step, run.batch)
        labels = dropped(batch.labels_B, self.cloud.config.classes, DROPPED, run.seed + 5, step)
        self.learner.set_rates(falling((run.matrix_rate, run.rate), step, run.steps))
        with torch.autocast("cpu", torch.bfloat16):
            loss = self._loss(self.model, encoded(self.vq, batch.image_B3HW), labels)
        self.learner.learn(loss)
        return {"loss": round(loss.item(), 4)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The loss on held-back pictures."""
        batch = self.pictures.held(16)
        loss = self._loss(self.averaged_model(), encoded(self.vq, batch.image_B3HW), batch.labels_B)
        return {"held_back_loss": round(loss.item(), 4)}

    def _loss(self, model: ScaleDevice, tokens: list[Tensor], labels_B: Tensor) -> Tensor:
        """Eq. 12 within each scale from `begin` on, then the mean."""
        with torch.no_grad():
            states, cond = forced(self.teacher, self.vq.quantize, tokens, labels_B, self.scales)
            teacher = by_scale(self.teacher, self.teacher.logits(states, cond), self.scales)
        hidden_BTD, cond_BD = forced(model.base, self.vq.quantize, tokens, labels_B, self.scales)
        centres = by_scale(self.cloud, model.base.logits(hidden_BTD, cond_BD), self.scales)
        radii = by_scale(self.cloud, model.radii(hidden_BTD, cond_BD), self.scales)
        losses = []
        for centre, radius, z in list(zip(centres, radii, teacher, strict=True))[self.run.begin :]:
            rows = (part.flatten(0, 1) for part in (centre, radius, z.softmax(-1)))
            losses.append(torch.stack(list(inter_dro(self.run.loss, *rows).values())).sum())
        return torch.stack(losses).mean()


def _var(folder: Path) -> VARModel:
    model = load_generator(folder)
    if not isinstance(model, VARModel):
        raise ModelUnavailable(f"{folder} holds family {model.family!r}", f"allowed: {VARModel.family!r}")
    return model.requires_grad_(False)
