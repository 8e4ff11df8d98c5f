"""`ciar-train var-tokenizer`: VAR's multi-scale residual VQ on small pictures. Knows nothing of transformers.

Loss of Tian et al. (2024): reconstruction, and after every scale what is left of the features. First a plain
auto-encoder; then the codebook begins as features of the data, and codes that nothing uses begin again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.models.checkpoint import save_folder
from shared.models.families.var_vae import ScaleVQ, reduced
from shared.models.generators import describe_scale_vq
from shared.models.vq import to_pixels
from training.data import keyed_generator
from training.runs import Learner, RunFolder, drive
from training.scale_data import MAPS, VQ, Pictures, eighth, psnr_db
from training.tokenizer import cosine, reconstruction_loss, start_from_principal_components

_DEAD = 0.02  # uses per step, on average, below which a code begins again
_DECAY = 0.98
_RESTART_EVERY = 10


@dataclass(frozen=True)
class ScaleTokenizerRun:
    """Settings of one run; saved with it."""

    data: Path
    out: Path
    steps: int = 1500
    batch: int = 16
    warmup_share: float = 0.15  # plain auto-encoder steps before the codebook exists
    rate: float = 1e-3
    commitment: float = 0.25
    squared: float = 2.0
    average: float = 0.995
    seed: int = 0
    checkpoint_every: int = 250


@dataclass(frozen=True, eq=False)
class Quantised:
    """Features through the codebook: straight-through, what that costs, which codes, and what they stood
    for."""

    straight_BEHH: Tensor
    loss: Tensor
    ids_N: Tensor
    rest_NE: Tensor


def quantise(vq: ScaleVQ, z_BEHH: Tensor, commitment: float) -> Quantised:
    """Scale after scale the nearest codes of what is left; the loss is the mean over scales."""
    book, sides = vq.quantize, vq.maps.scales
    total = torch.zeros_like(z_BEHH)
    losses, ids, rests = [], [], []
    for scale, side in enumerate(sides):
        rest = z_BEHH.detach() - total.detach()
        rest = rest if side == sides[-1] else reduced(rest, side)
        tokens = book.nearest(rest).flatten(1)
        total = book.added(total, tokens, scale)
        losses.append(
            commitment * F.mse_loss(z_BEHH, total.detach()) + F.mse_loss(total, z_BEHH.detach())
        )
        ids.append(tokens.flatten())
        rests.append(rest.permute(0, 2, 3, 1).reshape(-1, rest.shape[1]))
    straight = z_BEHH + (total - z_BEHH).detach()
    return Quantised(straight, torch.stack(losses).mean(), torch.cat(ids), torch.cat(rests))


class ScaleTokenizerTrainer:
    """One run: step, resume, evaluate, export."""

    def __init__(self, run: ScaleTokenizerRun) -> None:
        self.run, self.folder = run, RunFolder(run.out)
        self.pictures = Pictures(run.data, run.seed)
        torch.manual_seed(run.seed)  # initial weights; everything later is keyed by (seed, step)
        self.model = ScaleVQ(VQ, MAPS)
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=run.rate, betas=(0.9, 0.95), weight_decay=0.01
        )
        self.learner = Learner(self.model, [optimizer], run.average)
        self.uses_K = torch.ones(VQ.codebook_size)
        state = self.folder.begin(run, MAPS)
        if state:
            self.learner.restore(state)
            self.uses_K = state["uses"]
        else:
            some = self.pictures.batch(0, 256).image_B3HW
            start_from_principal_components(self.model, to_pixels(some), spread=1.0)
            self.learner.average.update(self.model, 0)

    def save(self) -> None:
        """Write everything a resumed run needs."""
        self.folder.save({**self.learner.state(), "uses": self.uses_K})

    def train(self) -> None:
        """Run to the last step, then export `OUT/vae`."""
        drive(self, self.run.steps, self.run.batch, self.run.checkpoint_every)
        model = self.averaged_model()
        save_folder(self.run.out / "vae", describe_scale_vq(VQ, MAPS), model.state_dict(), torch.float16)

    def advance(self) -> dict[str, float]:
        """One optimiser step on the next pictures."""
        run, step = self.run, self.learner.step
        warm = round(run.warmup_share * run.steps)
        image = self.pictures.batch(step, run.batch).image_B3HW
        self.learner.set_rates([run.rate * cosine(step, run.steps)])
        with torch.autocast("cpu", torch.bfloat16):
            z_BEHH = self.model.features(image)
        z_BEHH = z_BEHH.float()
        if step == warm:
            self._begin_codebook(z_BEHH.detach())
        record: dict[str, float] = {}
        if step >= warm:
            found = quantise(self.model, z_BEHH, run.commitment)
            self._count(found)
            record = {"quantise": round(found.loss.item(), 4), "codes": int((self.uses_K > _DEAD).sum())}
            z_BEHH, extra = found.straight_BEHH, found.loss
        else:
            extra = torch.zeros(())
        with torch.autocast("cpu", torch.bfloat16):
            drawn = self.model.decode(z_BEHH)
        loss = reconstruction_loss(drawn.float(), image, run.squared)
        self.learner.learn(loss + extra)
        return {"loss": round(loss.item(), 4), **record}

    def averaged_model(self) -> ScaleVQ:
        """The model that ships: averaged weights, the current codebook."""
        model = ScaleVQ(VQ, MAPS)
        model.load_state_dict(self.learner.average.values)
        model.quantize.load_state_dict(self.model.quantize.state_dict())
        return model.eval()

    @torch.no_grad()
    def evaluate(self, count: int = 48) -> dict[str, float]:
        """PSNR in dB on training and on held-back pictures through the codebook; a grid of both."""
        model, figures = self.averaged_model(), {}
        batches = {"psnr_db": self.pictures.batch(0, count), "held_back_psnr_db": self.pictures.held(count)}
        for name, batch in batches.items():
            tokens = model.encode(batch.image_B3HW)
            drawn = eighth(model.picture(model.quantize.sums(tokens)[-1]))
            wanted = eighth((batch.image_B3HW + 1) / 2)
            self.folder.grid(name.removesuffix("_db"), torch.cat([wanted[:12], drawn[:12]]), 12)
            figures[name] = psnr_db(drawn, wanted)
        return figures

    @torch.no_grad()
    def _begin_codebook(self, z_BEHH: Tensor) -> None:
        """Features of pictures at several strengths: later scales see what is left of them."""
        rng = keyed_generator(self.run.seed + 2, self.learner.step)
        points_NE = z_BEHH.permute(0, 2, 3, 1).reshape(-1, z_BEHH.shape[1])
        picks = torch.from_numpy(rng.integers(0, len(points_NE), VQ.codebook_size))
        strength = torch.from_numpy(rng.choice([1.0, 0.5, 0.25, 0.12], VQ.codebook_size)).float()
        self.model.quantize.embedding.weight.copy_(points_NE[picks] * strength[:, None])

    @torch.no_grad()
    def _count(self, found: Quantised) -> None:
        """Remember how often codes are used; now and then begin the unused ones again."""
        used_K = torch.bincount(found.ids_N, minlength=VQ.codebook_size).float()
        self.uses_K.lerp_(used_K, 1 - _DECAY)
        step = self.learner.step
        dead_K = self.uses_K < _DEAD
        if step % _RESTART_EVERY or step > 0.8 * self.run.steps or not dead_K.any():
            return
        rng = keyed_generator(self.run.seed + 3, step)
        picks = torch.from_numpy(rng.integers(0, len(found.rest_NE), int(dead_K.sum())))
        self.model.quantize.embedding.weight[dead_K] = found.rest_NE[picks]
        self.uses_K[dead_K] = 1.0


def encoded(vq: ScaleVQ, image_B3HW: Tensor) -> list[Tensor]:
    """Token ids [B, p * p] of every scale."""
    with torch.no_grad():
        return vq.encode(image_B3HW)
