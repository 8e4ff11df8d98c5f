"""`ciar-train tokenizer`: the VQ image tokenizer. Knows nothing of text or of transformers.

Recipe: train as a plain auto-encoder first, start the codebook with spherical k-means, then quantise with an
exponential-moving-average codebook (van den Oord et al. 2017, appendix A.1) and reseed dead codes. The
encoder is local, and cells of flat background are snapped to the features of that flat colour, so that
background is one token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.models.checkpoint import load_vq, save_vq
from shared.models.families.var_vae import ScaleVQ
from shared.models.vq import VQModel, from_pixels, to_pixels
from training.data import CELL, keyed_generator
from training.presets import preset
from training.runs import Learner, RunFolder, drive
from training.scenes import Scene, batch_pixels, scene_split


@dataclass(frozen=True)
class TokenizerRun:
    """Settings of one run; saved with it."""

    data: Path
    out: Path
    preset: str = "everyday"
    steps: int = 900
    batch: int = 16
    warmup_share: float = 0.1  # plain auto-encoder steps before the codebook exists
    rate: float = 1.5e-3
    commitment: float = 0.25
    codebook_decay: float = 0.99
    squared: float = 2.0  # weight of the squared error: what PSNR counts, beside the L1 that keeps edges
    average: float = 0.995
    seed: int = 0
    checkpoint_every: int = 200
    decoder_of: Path | None = None  # an exported tokenizer whose decoder alone is trained: same tokens


def flat_cells(pixels_BHW3: Tensor, backgrounds_B3: Tensor) -> Tensor:
    """Cells [B, h, w] in which every pixel is exactly the background colour."""
    same = (pixels_BHW3 == backgrounds_B3[:, None, None]).all(-1).float()
    return F.avg_pool2d(same[:, None], CELL)[:, 0] == 1


def snapped_features(model: VQModel, pixels_BHW3: Tensor, backgrounds_B3: Tensor) -> Tensor:
    """Encoder features [B, E, h, w] with flat background cells replaced by those of a flat image of that
    colour."""
    z = model.features(from_pixels(pixels_BHW3).contiguous(memory_format=torch.channels_last))
    flat = backgrounds_B3[:, None, None].expand(-1, 2 * CELL, 2 * CELL, -1)
    z_flat = model.features(from_pixels(flat))[:, :, :1, :1]
    return torch.where(flat_cells(pixels_BHW3, backgrounds_B3)[:, None], z_flat, z)


def encode_scenes(model: VQModel, scenes: list[Scene]) -> Tensor:
    """Token ids [B, h, w] of scenes, flat background snapped."""
    with torch.no_grad():
        return model.quantize.nearest(snapped_features(model, *_tensors(scenes)))


def _tensors(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    backgrounds = torch.tensor([scene.background for scene in scenes], dtype=torch.uint8)
    return torch.from_numpy(batch_pixels(scenes)), backgrounds


def reconstruction_loss(image: Tensor, target: Tensor, squared: float) -> Tensor:
    """L1 + L1 of the image gradients + `squared` times the squared error: sharp edges without an
    adversary."""
    loss = (image - target).abs().mean() + squared * (image - target).square().mean()
    for dim in (-1, -2):
        loss = loss + (image.diff(dim=dim) - target.diff(dim=dim)).abs().mean()
    return loss


def spherical_kmeans(points_NE: Tensor, count: int, rng: np.random.Generator, rounds: int = 12) -> Tensor:
    """`count` unit centres of unit points; empty clusters restart at a random point."""
    pick = torch.from_numpy(rng.choice(len(points_NE), count, replace=len(points_NE) < count))
    centres = points_NE[pick]
    for _ in range(rounds):
        nearest = (points_NE @ centres.T).argmax(-1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points_NE)
        empty = sums.norm(dim=-1) < 1e-6
        again = torch.from_numpy(rng.choice(len(points_NE), int(empty.sum())))
        sums[empty] = points_NE[again]
        centres = F.normalize(sums, dim=-1)
    return centres


@torch.no_grad()
def start_from_principal_components(
    model: VQModel | ScaleVQ, pixels_BHW3: Tensor, spread: float = 0.35
) -> None:
    """Start the linear path as an auto-encoder over the E - 1 strongest principal components of patches.

    The last code dimension is constant, so that unit length costs little: with coordinates small beside it,
    normalising is almost the identity. Colour is then right from the first step, and no axis of it can be
    lost when the codebook is laid over the features.
    """
    factor, width = model.config.factor, model.config.codebook_dim
    patches_NP = F.pixel_unshuffle(from_pixels(pixels_BHW3), factor).permute(0, 2, 3, 1).flatten(0, 2)
    patches_NP = patches_NP[patches_NP.std(-1) > 1e-3]  # flat background would outvote the artwork
    mean_P = patches_NP.mean(0)
    _, scale_E, axes_PE = torch.pca_lowrank(patches_NP - mean_P, width - 1, center=False, niter=4)
    gain_E = spread * len(patches_NP) ** 0.5 / scale_E
    for layer in (model.quant_conv, model.post_quant_conv):
        layer.weight.zero_()[:width, :width, 0, 0] = torch.eye(width)
        assert layer.bias is not None
        layer.bias.zero_()
    forth, back = model.encoder.linear, model.decoder.linear
    assert forth.bias is not None and back.bias is not None
    forth.weight.zero_()[: width - 1, :, 0, 0] = (axes_PE * gain_E).T
    forth.bias.zero_()[: width - 1] = -(mean_P @ axes_PE) * gain_E
    forth.bias[width - 1] = 1.0
    back.weight.zero_()[:, : width - 1, 0, 0] = axes_PE / gain_E
    back.bias.copy_(mean_P)
    nn.init.normal_(model.post_quant_conv.weight[width:], std=0.3)  # more views of the code for the stack
    for last in (model.encoder.conv_out, model.decoder.conv_out):
        last.weight.mul_(0.1)
        assert last.bias is not None
        last.bias.zero_()


class CodebookAverage:
    """The moving averages behind the codebook: how often each code is used and the sum of what it stands
    for."""

    def __init__(self, codes_KE: Tensor, decay: float) -> None:
        self.decay = decay
        self.counts = torch.ones(len(codes_KE))
        self.sums = codes_KE.clone()

    def update(self, model: VQModel, z_NE: Tensor, ids_N: Tensor, rng: np.random.Generator) -> None:
        """Blend in one batch and reseed codes that nothing uses any more with features of this batch."""
        used = torch.bincount(ids_N, minlength=len(self.counts)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, ids_N, z_NE)
        self.counts.lerp_(used, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        dead = self.counts < 0.03
        self.sums[dead] = z_NE[torch.from_numpy(rng.integers(0, len(z_NE), int(dead.sum())))]
        self.counts[dead] = 1.0
        model.quantize.embedding.weight.data.copy_(F.normalize(self.sums, dim=-1))


def cosine(step: int, steps: int) -> float:
    """A share of the learning rate: warm up over 40 steps, then fall along a cosine to 2 %."""
    return min(1.0, (step + 1) / 40) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))


class TokenizerTrainer:
    """One run: step, resume, evaluate, export."""

    def __init__(self, run: TokenizerRun) -> None:
        self.run, self.folder = run, RunFolder(run.out)
        chosen = preset(run.preset)
        self.shape = chosen.vq
        torch.manual_seed(run.seed)  # initial weights; everything later is keyed by (seed, step)
        self.model = load_vq(run.decoder_of) if run.decoder_of else VQModel(self.shape)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        frozen = ("encoder", "quant_conv", "quantize") if run.decoder_of else ("quantize",)
        learned = [p for n, p in self.model.named_parameters() if not n.startswith(frozen)]
        optimizer = torch.optim.AdamW(learned, lr=run.rate, betas=(0.9, 0.95), weight_decay=0.01)
        self.codebook: CodebookAverage | None = None
        # Every picture of the folder, whatever the preset's concepts: more artwork only helps the codebook.
        self.scenes, self.held_back = scene_split(run.data, None, chosen.scenes, run.seed)
        state = self.folder.begin(run, chosen)
        if not state and self.shape.linear_path and not run.decoder_of:
            some = [self.scenes[i] for i in range(min(256, len(self.scenes.pictures)))]
            start_from_principal_components(self.model, _tensors(some)[0])
        self.learner = Learner(self.model, [optimizer], run.average)
        if state:
            self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        self.learner.restore(state)
        if state["counts"] is not None:
            self.codebook = CodebookAverage(state["sums"], self.run.codebook_decay)
            self.codebook.counts = state["counts"]

    def save(self) -> None:
        """Write everything a resumed run needs."""
        book = self.codebook
        averages = {"counts": book.counts if book else None, "sums": book.sums if book else None}
        self.folder.save({**self.learner.state(), **averages})

    def train(self) -> None:
        """Run to the last step, then export."""
        drive(self, self.run.steps, self.run.batch, self.run.checkpoint_every)
        save_vq(self.run.out / "vq", self.averaged_model())

    def advance(self) -> dict[str, float]:
        """One optimiser step on the next scenes; returns its losses."""
        run, step = self.run, self.learner.step
        rng = keyed_generator(run.seed + 2, step)
        if self.codebook is None and step >= run.warmup_share * run.steps and not run.decoder_of:
            self._start_codebook(rng)
        self.learner.set_rates([run.rate * cosine(step, run.steps)])
        pixels, backgrounds = _tensors([self.scenes[step * run.batch + i] for i in range(run.batch)])
        with torch.autocast("cpu", torch.bfloat16):
            z = snapped_features(self.model, pixels, backgrounds)
            unit = F.normalize(z.float(), dim=1)
            loss, record = self._quantised_loss(unit, from_pixels(pixels), rng)
        self.learner.learn(loss)
        return record

    def _quantised_loss(
        self, unit: Tensor, image: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        code, commitment, used = unit, torch.zeros(()), 0
        if self.run.decoder_of:
            unit = code = self.model.quantize.codes()[self.model.quantize.nearest(unit)].permute(0, 3, 1, 2)
        if self.codebook is not None:
            ids = self.model.quantize.nearest(unit)
            code = self.model.quantize.codes()[ids].permute(0, 3, 1, 2)
            commitment = (unit - code.detach()).square().sum(1).mean()
            flat = unit.detach().permute(0, 2, 3, 1).reshape(-1, unit.shape[1])
            self.codebook.update(self.model, flat, ids.flatten(), rng)
            used = int((torch.bincount(ids.flatten()) > 0).sum())
        straight = unit + (code - unit).detach()
        drawn = self.model.decode_features(straight)
        reconstruction = reconstruction_loss(drawn, image, self.run.squared)
        record = {
            "loss": round(reconstruction.item(), 4),
            "commitment": round(commitment.item(), 4),
            "codes": used,
        }
        return reconstruction + self.run.commitment * commitment, record

    def _start_codebook(self, rng: np.random.Generator) -> None:
        scenes = [self.scenes[i] for i in range(min(400, len(self.scenes.pictures)))]
        with torch.no_grad():
            z = torch.cat([snapped_features(self.model, *_tensors([scene])) for scene in scenes])
        points = F.normalize(z, dim=1).permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        centres = spherical_kmeans(points, self.shape.codebook_size, rng)
        self.model.quantize.embedding.weight.data.copy_(centres)
        self.learner.average.values["quantize.embedding.weight"].copy_(centres)
        self.codebook = CodebookAverage(centres, self.run.codebook_decay)

    def averaged_model(self) -> VQModel:
        """The model that ships: averaged weights, the current codebook."""
        model = VQModel(self.shape)
        model.load_state_dict(self.learner.average.values)
        model.quantize.embedding.weight.data.copy_(self.model.quantize.embedding.weight)
        return model.eval()

    @torch.no_grad()
    def evaluate(self, count: int = 48) -> dict[str, float]:
        """PSNR in dB on held-back pictures through the codebook, and a grid of originals above
        reconstructions."""
        model = self.averaged_model()
        batch = [self.held_back[i] for i in range(min(count, len(self.held_back.pictures)))]
        pixels = torch.from_numpy(batch_pixels(batch))
        image = to_pixels(model.decode(encode_scenes(model, batch)))
        error = (image.float() - pixels.float()).square().mean((1, 2, 3)).clamp(min=1e-3)
        self.folder.grid("reconstructions", torch.cat([pixels[:12], image[:12]]), 12)
        return {"psnr_db": round((10 * torch.log10(255**2 / error)).mean().item(), 2)}
