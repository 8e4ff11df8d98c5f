"""What the small DiT is trained on: latents of pictures of a few things, each a class, by the autoencoder of
the small MAR.

Shapes: B pictures, C channels, H the side of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.decoding.diffusion import STEPS, at, linear
from shared.models.families.dit import DiTConfig
from shared.models.families.mar import unpatched
from shared.models.generators import load_kl
from shared.models.kl_vae import KLConfig
from training.data import keyed_generator
from training.masked_data import encoded
from training.presets import FIRST
from training.scale_data import PIXELS, Batch, Pictures

CLOUD_DEPTH, CLOUD_DIM, HEADS = 8, 128, 4
CHUNK = 64  # pictures composed at a time


def dit_shape(depth: int, latent: KLConfig) -> DiTConfig:
    """The small DiT with so many blocks; the cloud's has CLOUD_DEPTH. All of its channels are guided."""
    return DiTConfig(
        depth=depth, dim=CLOUD_DIM, heads=HEADS, hidden=4 * CLOUD_DIM, patch=1, channels=latent.latent,
        side=PIXELS // latent.factor, classes=len(FIRST), learned_spread=False, guided=latent.latent,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Noised:
    """Latents [B, C, H, H] at original steps [B], the noise in them, and their classes [B]."""

    state: Tensor
    step_B: Tensor
    noise: Tensor
    labels_B: Tensor


def noised(latent: Tensor, labels_B: Tensor, step_B: Tensor, noise: Tensor) -> Noised:
    """The process of `linear` at those steps."""
    kept = at(linear().kept, step_B, latent)
    return Noised(kept.sqrt() * latent + (1 - kept).sqrt() * noise, step_B, noise, labels_B)


class Latents:
    """A pool of labelled latents; batch `step` of a seed is always the same."""

    def __init__(self, data: Path, vae: Path, seed: int, pool: int) -> None:
        self.pictures, self.vae, self.seed = Pictures(data, seed), load_kl(vae), seed
        self.labels = self.pictures.labels
        chunks = [self.pictures.batch(chunk, CHUNK) for chunk in range(-(-pool // CHUNK))]
        latents = [self._encoded(chunk, seed + 8, step) for step, chunk in enumerate(chunks)]
        self.pool = torch.cat(latents)[:pool]  # [N, C, H, H]
        self._labels = torch.cat([chunk.labels_B for chunk in chunks])[:pool]

    def batch(self, step: int, size: int) -> Noised:
        """Latents of the pool at random steps."""
        rng, draw = keyed_generator(self.seed + 7, step), torch.Generator().manual_seed(self.seed + step)
        chosen = torch.from_numpy(rng.integers(0, len(self.pool), size))
        step_B = torch.from_numpy(rng.integers(0, STEPS, size))
        latent = self.pool[chosen]
        noise = torch.randn(latent.shape, generator=draw)
        return noised(latent, self._labels[chosen], step_B, noise)

    def held(self, count: int) -> Noised:
        """Pictures of the data set's own held-back split, at steps spread evenly."""
        batch = self.pictures.held(count)
        latent = self._encoded(batch, self.seed + 9, 0)
        step_B = torch.linspace(0, STEPS - 1, len(latent)).round().long()
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(self.seed))
        return noised(latent, batch.labels_B, step_B, noise)

    def _encoded(self, batch: Batch, seed: int, step: int) -> Tensor:
        return unpatched(encoded(self.vae, batch.image_B3HW, seed, step), 1)
