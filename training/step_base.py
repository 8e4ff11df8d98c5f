"""`ciar-train dit-base`: the large DiT on small pictures, in the latent of an autoencoder.

The loss is the mean squared error of the predicted noise; a tenth of the classes are dropped for guidance.
Knows no device model.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.decoding.denoising import denoising
from shared.models.by_step import save_step_cloud
from shared.models.families.dit import DiTModel, position_table
from training.base import falling, optimizers
from training.scale_data import dropped
from training.step_data import CLOUD_DEPTH, Latents, Noised, dit_shape
from training.trainer import ModelTrainer

DROPPED = 0.1  # share of classes that guidance's other row learns from
SAMPLES, SAMPLE_SPACING, SAMPLE_GUIDANCE = 8, "ddim20", 2.0


@dataclass(frozen=True)
class StepBaseRun:
    """Settings of one run; saved with it."""

    data: Path
    vae: Path
    out: Path
    steps: int = 3000
    batch: int = 32
    pool: int = 8192  # composed pictures that are learned from
    rate: float = 1e-3
    matrix_rate: float = 1e-2
    average: float = 0.998
    seed: int = 0
    checkpoint_every: int = 250


def initialise(model: DiTModel) -> None:
    """As DiT: plain matrices, closed gates, an output of zero."""
    for name, value in model.named_parameters():
        closed = "adaLN_modulation" in name or name.startswith("final_layer") or value.ndim < 2
        if name == "pos_embed":
            continue
        if closed:
            nn.init.zeros_(value)
        elif name.startswith(("t_embedder", "y_embedder")):
            nn.init.normal_(value, std=0.02)
        else:
            nn.init.xavier_uniform_(value.data.view(len(value), -1))
    config = model.config
    table = position_table(config.dim, config.side // config.patch)
    model.pos_embed.data.copy_(table[None])
    model.pos_embed.requires_grad_(False)


@torch.no_grad()
def sampled(model: DiTModel, labels_B: Tensor, seed: int) -> Tensor:
    """Latents [B, C, H, H] that one model draws alone with the seeds `seed`, `seed` + 1, ..."""
    config, process = model.config, denoising(SAMPLE_SPACING, "ddim")
    shape = (config.channels, config.side, config.side)
    state = torch.cat([process.start(seed + row, shape) for row in range(len(labels_B))])
    for step in range(len(process)):
        step_B = torch.full((len(labels_B),), process.original(step))
        out, _ = model.denoised(state, step_B, labels_B, SAMPLE_GUIDANCE)
        state = process.back(step, state, out[:, : config.channels], None, seed)
    return state


class StepBaseTrainer(ModelTrainer[StepBaseRun, DiTModel]):
    """One run: step, resume, evaluate, export."""

    def __init__(self, run: StepBaseRun) -> None:
        super().__init__(run)
        self.latents = Latents(run.data, run.vae, run.seed, run.pool)
        torch.manual_seed(run.seed)  # initial weights; everything later is keyed by (seed, step)
        self.model = DiTModel(dit_shape(CLOUD_DEPTH, self.latents.vae.config))
        initialise(self.model)
        groups = optimizers(self.model, run.rate, run.matrix_rate, "blocks.")
        self.begin(groups, self.model.config)

    def train(self) -> None:
        """Run to the last step, then export `OUT/cloud` and `OUT/vae`."""
        self.drive()
        save_step_cloud(self.run.out / "cloud", self.averaged_model(), self.latents.labels)
        shutil.copytree(self.run.vae, self.run.out / "vae", dirs_exist_ok=True)

    def advance(self) -> dict[str, float]:
        """One optimiser step on the next latents."""
        run, step = self.run, self.learner.step
        batch = self.latents.batch(step, run.batch)
        labels = dropped(batch.labels_B, self.model.config.classes, DROPPED, run.seed + 5, step)
        self.learner.set_rates(falling((run.matrix_rate, run.rate), step, run.steps))
        with torch.autocast("cpu", torch.bfloat16):
            loss = _loss(self.model, batch, labels)
        gradient = self.learner.learn(loss)
        return {"loss": round(loss.item(), 4), "gradient": round(gradient, 3)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The loss on held-back pictures, and a grid of samples."""
        model, batch = self.averaged_model(), self.latents.held(16)
        loss = _loss(model, batch, batch.labels_B)
        labels = torch.arange(SAMPLES) % model.config.classes
        pictures = self.latents.vae.pictures(sampled(model, labels, 0))
        self.folder.grid(f"samples-{self.learner.step:06d}", pictures, 8)
        return {"held_back_loss": round(loss.item(), 4)}


def _loss(model: DiTModel, batch: Noised, labels_B: Tensor) -> Tensor:
    return F.mse_loss(model(batch.state, batch.step_B, labels_B), batch.noise)
