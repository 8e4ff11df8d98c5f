"""`ciar-train mar-base`: the large MAR on small pictures. Knows no device model.

Loss of Li et al. (2024): the predicted noise of masked tokens, and a variational term that teaches the place
of the variance alone (Nichol and Dhariwal, 2021). A tenth of the classes are dropped for guidance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.decoding.continuous import order_of, start_noise, step_noise
from shared.decoding.diffusion import Schedule, at, believed, cosine, respaced
from shared.models.by_mask import save_masked_cloud
from shared.models.diffloss import Condition
from shared.models.families.mar import MARModel, unpatched
from shared.models.families.mar_run import Plan, steps
from shared.models.generators import load_kl
from shared.models.kl_vae import KLVAE
from training.base import falling, optimizers
from training.masked_data import (
    CLIP,
    CLOUD_DEPTH,
    CLOUD_HEAD,
    Lesson,
    conditions,
    encoded,
    lesson,
    mar_shape,
)
from training.scale_data import Pictures, dropped
from training.trainer import ModelTrainer

DROPPED = 0.1  # share of classes that guidance's other row learns from
SAMPLES, SAMPLE_STEPS, SAMPLE_HEAD, SAMPLE_GUIDANCE = 8, 16, 25, 2.0


@dataclass(frozen=True)
class MaskedBaseRun:
    """Settings of one run; saved with it."""

    data: Path
    vae: Path
    out: Path
    steps: int = 1500
    batch: int = 32
    rate: float = 2e-3
    matrix_rate: float = 1e-2
    average: float = 0.99
    seed: int = 0
    checkpoint_every: int = 250


def initialise(model: MARModel) -> None:
    """Small normal weights; the head begins by predicting nothing."""
    for name, value in model.named_parameters():
        if value.ndim < 2:
            continue
        nn.init.normal_(value, std=0.02)
        if "adaLN_modulation" in name or "final_layer.linear" in name:
            nn.init.zeros_(value)


def loss_of(model: MARModel, schedule: Schedule, batch: Lesson, labels_B: Tensor) -> Tensor:
    """Mean over the states: squared error of the noise, and the divergence in bits of the Gaussian of the
    state before, whose mean is held."""
    z_BLD = model(batch.tokens_BLC, batch.masked_BL, conditions(model, labels_B))
    found = model.diffloss.output(batch.state_NC, batch.t_N, Condition(batch.of_masked(z_BLD)))
    eps, v = found.chunk(2, dim=1)
    return F.mse_loss(eps, batch.noise_NC) + divergence(schedule, batch, eps.detach(), v)


def divergence(schedule: Schedule, batch: Lesson, eps: Tensor, v: Tensor) -> Tensor:
    """KL(true || believed) of the state before, in bits per number."""
    t_N, state = batch.t_N, batch.state_NC
    guess = believed(schedule, t_N, state, eps, v)
    mean = at(schedule.mean_of_image, t_N, state) * batch.target_NC
    mean = mean + at(schedule.mean_of_state, t_N, state) * state
    log_variance = at(schedule.log_variance, t_N, state)
    wider = guess.log_variance - log_variance
    moved = (mean - guess.mean).square() * (-guess.log_variance).exp()
    return ((wider + (-wider).exp() - 1 + moved) / 2).mean() / math.log(2)


def sampled(vae: KLVAE, model: MARModel, labels_B: Tensor, seed: int) -> Tensor:
    """Pictures, uint8 [B, H, W, 3], that one model draws alone with the seeds `seed`, `seed` + 1, ..."""
    tokens, width = model.config.tokens, model.config.token_dim
    schedule = replace(respaced(cosine(), str(SAMPLE_HEAD)), clip=CLIP)
    seeds = range(seed, seed + len(labels_B))
    plan = Plan(
        torch.stack([order_of(key, tokens) for key in seeds]),
        torch.stack([start_noise(key, range(tokens), width) for key in seeds]),
        torch.stack([step_noise(key, range(tokens), len(schedule), width) for key in seeds]),
        SAMPLE_STEPS,
        SAMPLE_GUIDANCE,
    )
    last = list(steps(model, schedule, model.classes(labels_B), plan))[-1]
    return vae.pictures(unpatched(last.tokens_BLC, model.config.patch))


class MaskedBaseTrainer(ModelTrainer[MaskedBaseRun, MARModel]):
    """One run: step, resume, evaluate, export."""

    def __init__(self, run: MaskedBaseRun) -> None:
        super().__init__(run)
        self.schedule = cosine()
        self.pictures, self.vae = Pictures(run.data, run.seed), load_kl(run.vae)
        torch.manual_seed(run.seed)  # initial weights; everything later is keyed by (seed, step)
        self.model = MARModel(mar_shape(CLOUD_DEPTH, CLOUD_HEAD))
        initialise(self.model)
        groups = optimizers(self.model, run.rate, run.matrix_rate, "_blocks.")
        self.begin(groups, self.model.config)

    def train(self) -> None:
        """Run to the last step, then export `OUT/cloud`."""
        self.drive()
        save_masked_cloud(self.run.out / "cloud", self.averaged_model(), self.pictures.labels)

    def advance(self) -> dict[str, float]:
        """One optimiser step on the next pictures."""
        run, step = self.run, self.learner.step
        batch = self.pictures.batch(step, run.batch)
        labels = dropped(batch.labels_B, self.model.config.classes, DROPPED, run.seed + 5, step)
        self.learner.set_rates(falling((run.matrix_rate, run.rate), step, run.steps))
        tokens = encoded(self.vae, batch.image_B3HW, run.seed, step)
        learnt = lesson(tokens, self.schedule, run.seed + 6, step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(self.model, self.schedule, learnt, labels)
        gradient = self.learner.learn(loss)
        return {"loss": round(loss.item(), 4), "gradient": round(gradient, 3)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The loss on training and on held-back pictures; a grid of samples."""
        model, figures = self.averaged_model(), {}
        for name, batch in (("loss", self.pictures.batch(0, 32)), ("held_back_loss", self.pictures.held(32))):
            tokens = encoded(self.vae, batch.image_B3HW, self.run.seed + 8, 0)
            learnt = lesson(tokens, self.schedule, self.run.seed + 9, 0)
            figures[f"plain_{name}"] = round(
                loss_of(model, self.schedule, learnt, batch.labels_B).item(), 4
            )
        labels = torch.arange(SAMPLES) % model.config.classes
        self.folder.grid(f"samples-{self.learner.step:06d}", sampled(self.vae, model, labels, 0), 8)
        return figures
