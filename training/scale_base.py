"""`ciar-train var-base`: the large VAR on small pictures; or CoDe's drafter, on the first scales.

Teacher forcing on pictures that a trained tokenizer encoded; a tenth of the classes are dropped for guidance.
Some tokens are told wrong, and the scales behind them learn to mend that (Han et al., "Infinity", 2024):
without it a model of few pictures knows them by heart and is lost behind its own first mistake. Loss and
evaluation are means over scales, else the last ones would be most of it. Knows no device model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.decoding.acceptance import nearest_neighbours
from shared.decoding.scales import draw, scale_noise, truncated
from shared.errors import InvalidRequest
from shared.models.by_scale import save_scale_cloud
from shared.models.families.var import VARModel
from shared.models.families.var_run import ScaleRun
from shared.models.families.var_vae import ScaleQuantizer, ScaleVQ
from shared.models.generators import load_generator, load_scale_vq
from training.base import falling, optimizers
from training.data import keyed_generator
from training.scale_data import CLOUD_DEPTH, Pictures, dropped, eighth, var_shape
from training.scale_tokenizer import encoded
from training.trainer import ModelTrainer

DROPPED = 0.1  # share of classes that guidance's other row learns from
SAMPLE_GUIDANCE, SAMPLE_TOP_K, SAMPLE_TOP_P = 1.5, 100, 0.9
SAMPLES = 8
NEAR = 32  # a wrong token is one of so many codes next to the right one


@dataclass(frozen=True)
class ScaleBaseRun:
    """Settings of one run; saved with it. Raises InvalidRequest where `until` is no number of scales."""

    data: Path
    vae: Path
    out: Path
    steps: int = 900
    batch: int = 16
    rate: float = 2e-3
    matrix_rate: float = 1e-2
    average: float = 0.99
    wrong: float = 0.1  # share of tokens told wrong, on average over pictures
    seed: int = 0
    checkpoint_every: int = 150
    start_from: Path | None = None  # exported model whose weights the run begins with
    until: int | None = None  # only the first scales: CoDe's drafter

    def __post_init__(self) -> None:
        scales = len(var_shape(1).scales)
        if self.until is not None and not 1 <= self.until <= scales:
            raise InvalidRequest(f"the first {self.until} scales", f"allowed: 1 to {scales}")


def initialise(model: VARModel) -> None:
    """Small normal weights and open gates, so that it begins as a plain transformer."""
    for name, value in model.named_parameters():
        if value.ndim < 2 or name.endswith("scale_mul_1H11"):
            continue
        residual = name.endswith(("attn.proj.weight", "ffn.fc2.weight"))
        nn.init.normal_(value, std=0.02 / (2 * model.config.depth) ** 0.5 if residual else 0.02)
    if model.config.one_adaln:
        bias = model.shared_ada_lin[1].bias
        assert isinstance(bias, Tensor)
        nn.init.ones_(bias[: 2 * model.config.dim])  # the gains come first


def forced(
    model: VARModel, quantizer: ScaleQuantizer, tokens: list[Tensor], labels_B: Tensor, until: int
) -> tuple[Tensor, Tensor]:
    """States [B, T, D] of the first `until` scales of images with these tokens, and the conditions [B, D]."""
    with torch.no_grad():
        sums = quantizer.sums(tokens[: until - 1]) if until > 1 else []
        maps = [quantizer.input_map(total, scale) for scale, total in enumerate(sums, 1)]
        nothing = quantizer.nothing(len(labels_B)).flatten(2).transpose(1, 2)[:, :0]
        maps_BTE = torch.cat([nothing, *maps], 1)
    cond_BD = model.class_emb(labels_B)
    return model(maps_BTE, cond_BD, 0, until), cond_BD


@torch.no_grad()
def misled(
    vq: ScaleVQ, near_VN: Tensor, image_B3HW: Tensor, wrong: float, rng: np.random.Generator
) -> tuple[list[Tensor], list[Tensor]]:
    """Tokens of every scale as they are told, and as they are wanted: the right ones behind what was told.

    A picture has up to twice the share `wrong` of them told wrong. Each scale encodes what the ones told
    before it leave, so it makes up for their mistakes.
    """
    rest_BEHH = vq.features(image_B3HW).float()
    share_B1 = torch.from_numpy(rng.random((len(rest_BEHH), 1))) * 2 * wrong
    told: list[Tensor] = []
    wanted: list[Tensor] = []
    for scale in range(len(vq.maps.scales)):
        right_BT = vq.quantize.code_of(rest_BEHH, scale)
        hit_BT = torch.from_numpy(rng.random(right_BT.shape)) < share_B1
        which_BT = torch.from_numpy(rng.integers(0, near_VN.shape[1], right_BT.shape))
        wrong_BT = near_VN[right_BT].gather(-1, which_BT[..., None])[..., 0]
        wanted.append(right_BT)
        told.append(torch.where(hit_BT, wrong_BT, right_BT))
        rest_BEHH = rest_BEHH - vq.quantize.added(torch.zeros_like(rest_BEHH), told[-1], scale)
    return told, wanted


def by_scale(model: VARModel, values_BT: Tensor, until: int) -> list[Tensor]:
    """The parts [B, p * p, ...] of a sequence of the first scales."""
    offsets = model.config.offsets
    return [values_BT[:, offsets[scale] : offsets[scale + 1]] for scale in range(until)]


def sampled(vq: ScaleVQ, model: VARModel, labels_B: Tensor, seed: int) -> Tensor:
    """Pictures, uint8 [B, H, W, 3], that one model draws alone with the seeds `seed`, `seed` + 1, ..."""
    run = ScaleRun(model, vq.quantize, labels_B, SAMPLE_GUIDANCE)
    for scale, side in enumerate(model.config.scales):
        seeds = range(seed, seed + len(labels_B))
        noise = scale_noise(seeds, scale, side * side, model.config.vocab_size)
        run.push(draw(truncated(run.logits(), SAMPLE_TOP_K, SAMPLE_TOP_P), noise))
    return eighth(vq.picture(run.sum_BEHH))


class ScaleBaseTrainer(ModelTrainer[ScaleBaseRun, VARModel]):
    """One run: step, resume, evaluate, export."""

    def __init__(self, run: ScaleBaseRun) -> None:
        super().__init__(run)
        self.pictures, self.vq = Pictures(run.data, run.seed), load_scale_vq(run.vae)
        self.near_VN = nearest_neighbours(self.vq.quantize.codes())[:, :NEAR].long()
        torch.manual_seed(run.seed)  # initial weights; everything later is keyed by (seed, step)
        self.model = VARModel(var_shape(CLOUD_DEPTH))
        self.until = run.until or len(self.model.config.scales)
        initialise(self.model)
        if run.start_from:
            self.model.load_state_dict(load_generator(run.start_from).state_dict())
        groups = optimizers(self.model, run.rate, run.matrix_rate, "blocks.")
        self.begin(groups, self.model.config)

    def train(self) -> None:
        """Run to the last step, then export `OUT/cloud`."""
        self.drive()
        save_scale_cloud(self.run.out / "cloud", self.averaged_model(), self.pictures.labels)

    def advance(self) -> dict[str, float]:
        """One optimiser step on the next pictures; the loss is nats per token, the mean over scales."""
        run, step = self.run, self.learner.step
        batch = self.pictures.batch(step, run.batch)
        labels = dropped(batch.labels_B, self.model.config.classes, DROPPED, run.seed + 5, step)
        self.learner.set_rates(falling((run.matrix_rate, run.rate), step, run.steps))
        rng = keyed_generator(run.seed + 6, step)
        with torch.autocast("cpu", torch.bfloat16):
            told, wanted = misled(self.vq, self.near_VN, batch.image_B3HW, run.wrong, rng)
            losses_S = self._losses(self.model, told, wanted, labels)
        gradient = self.learner.learn(losses_S.mean())
        return {"loss": round(losses_S.mean().item(), 4), "gradient": round(gradient, 3)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Nats per token on training and held-back pictures; a grid of samples where all scales are drawn."""
        model, figures = self.averaged_model(), {}
        for name, batch in (("loss", self.pictures.batch(0, 16)), ("held_back_loss", self.pictures.held(16))):
            tokens = encoded(self.vq, batch.image_B3HW)
            losses_S = self._losses(model, tokens, tokens, batch.labels_B)
            figures[f"plain_{name}"] = round(losses_S.mean().item(), 4)
        if self.run.until is None:
            labels = torch.arange(SAMPLES) % model.config.classes
            self.folder.grid(f"samples-{self.learner.step:06d}", sampled(self.vq, model, labels, 0), 8)
        return figures

    def _losses(
        self, model: VARModel, told: list[Tensor], wanted: list[Tensor], labels_B: Tensor
    ) -> Tensor:
        """Nats per token of each scale that is trained, [S], behind the scales as they were told."""
        hidden_BTD, cond_BD = forced(model, self.vq.quantize, told, labels_B, self.until)
        logits = by_scale(model, model.logits(hidden_BTD, cond_BD), self.until)
        pairs = zip(logits, wanted, strict=False)  # of tokens there may be more
        return torch.stack([F.cross_entropy(z.flatten(0, 1), ids.flatten()) for z, ids in pairs])
