"""What the small DiT is trained on: latents of pictures of a few things, each a class. No models but a linear
map, which is fitted here.

Shapes: B pictures, C channels, H the side of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.decoding.diffusion import STEPS, at, linear
from shared.models.families.dit import DiTConfig
from shared.models.patch_latent import PatchLatent, PatchLatentConfig
from training.data import keyed_generator
from training.presets import FIRST
from training.scale_data import PIXELS, Pictures

LATENT = PatchLatentConfig(patch=4, channels=8)
SIDE, PATCH = PIXELS // LATENT.patch, 2
CLOUD_DEPTH, CLOUD_DIM, HEADS = 8, 128, 4
FITTED = 192  # pictures the latent is fitted on
_CHUNK = 64  # pictures composed at a time


def dit_shape(depth: int) -> DiTConfig:
    """The small DiT with so many blocks; the cloud's has CLOUD_DEPTH. All of its channels are guided."""
    return DiTConfig(
        depth=depth, dim=CLOUD_DIM, heads=HEADS, hidden=4 * CLOUD_DIM, patch=PATCH, channels=LATENT.channels,
        side=SIDE, classes=len(FIRST), learned_spread=False, guided=LATENT.channels,
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

    def __init__(self, data: Path, seed: int, pool: int) -> None:
        self.pictures, self.seed = Pictures(data, seed), seed
        self.labels, self.latent = self.pictures.labels, PatchLatent(LATENT)
        self.latent.fit(self.pictures.batch(0, FITTED).image_B3HW)
        chunks = [self.pictures.batch(chunk, _CHUNK) for chunk in range(-(-pool // _CHUNK))]
        self._latents = torch.cat([self.latent.encode(chunk.image_B3HW) for chunk in chunks])[:pool]
        self._labels = torch.cat([chunk.labels_B for chunk in chunks])[:pool]

    def batch(self, step: int, size: int) -> Noised:
        """Latents of the pool at random steps."""
        rng, draw = keyed_generator(self.seed + 7, step), torch.Generator().manual_seed(self.seed + step)
        chosen = torch.from_numpy(rng.integers(0, len(self._latents), size))
        step_B = torch.from_numpy(rng.integers(0, STEPS, size))
        latent = self._latents[chosen]
        noise = torch.randn(latent.shape, generator=draw)
        return noised(latent, self._labels[chosen], step_B, noise)

    def held(self, count: int) -> Noised:
        """Pictures of the data set's own held-back split, at steps spread evenly."""
        batch = self.pictures.held(count)
        latent = self.latent.encode(batch.image_B3HW)
        step_B = torch.linspace(0, STEPS - 1, len(latent)).round().long()
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(self.seed))
        return noised(latent, batch.labels_B, step_B, noise)
