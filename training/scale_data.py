"""What the small VAR is trained on: pictures of a few things at 64 px, each a class. No models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from shared.config import VQConfig
from shared.models.families.var import VARConfig
from shared.models.families.var_vae import ScaleVQConfig
from shared.models.vq import from_pixels
from training.data import keyed_generator
from training.presets import FIRST
from training.scenes import SceneRange, Scenes, batch_pixels, scene_split

PIXELS = 64
# Ten scales, as published, on a grid of 8 x 8: the last side three times, each what the others leave.
SCALES = (1, 2, 3, 4, 5, 6, 7, 8, 8, 8)
CODES, WIDTH = 512, 16
# In the middle, on white, of one size: what minutes of one core can learn.
PLAIN = SceneRange(shift_cells=0, white=1.0)
CLOUD_DEPTH, CLOUD_DIM, HEADS = 6, 96, 3
VQ = VQConfig(
    ch=16, ch_mult=(1, 2, 4), z_channels=64, codebook_size=CODES, codebook_dim=WIDTH, encoder_res=1,
    decoder_res=2, patch=2, attention=False, middle=False, norm_groups=8, unit_codes=False, pixel_shift=127.5,
    linear_path=True,
)  # fmt: skip
MAPS = ScaleVQConfig(scales=SCALES, filters=4, kernel=1)


def var_shape(depth: int) -> VARConfig:
    """The small VAR with so many blocks; the cloud's has CLOUD_DEPTH."""
    return VARConfig(
        depth=depth, dim=CLOUD_DIM, heads=HEADS, classes=len(FIRST), vocab_size=CODES, code_dim=WIDTH,
        scales=SCALES, hidden=4 * CLOUD_DIM, one_adaln=True,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Batch:
    """Images [B, 3, 64, 64] in [-1, 1] and their classes [B]."""

    image_B3HW: Tensor
    labels_B: Tensor


class Pictures:
    """Batches of labelled pictures; batch `step` of a seed is always the same."""

    def __init__(self, data: Path, seed: int) -> None:
        self.scenes, self.held_back = scene_split(data, FIRST, PLAIN, seed)
        self.labels = FIRST

    def batch(self, step: int, size: int) -> Batch:
        """Training pictures."""
        return self._of(self.scenes, range(step * size, (step + 1) * size))

    def held(self, count: int) -> Batch:
        """Pictures of the data set's own held-back split: known things in styles never seen for them."""
        return self._of(self.held_back, range(min(count, len(self.held_back.pictures))))

    def _of(self, scenes: Scenes, indices: range) -> Batch:
        names = {picture.key: picture.name for picture in scenes.pictures}
        chosen = [scenes[index] for index in indices]
        image = F.avg_pool2d(from_pixels(torch.from_numpy(batch_pixels(chosen))), 2)
        return Batch(image, torch.tensor([FIRST.index(names[scene.key]) for scene in chosen]))


def dropped(labels_B: Tensor, nothing: int, share: float, seed: int, step: int) -> Tensor:
    """The classes with a share of them replaced by `nothing`: what guidance needs."""
    rng = keyed_generator(seed, step)
    hit_B = torch.from_numpy(rng.random(len(labels_B)) < share)
    return torch.where(hit_B, torch.tensor(nothing), labels_B)


def eighth(image_B3HW: Tensor) -> Tensor:
    """uint8 [B, 64, 64, 3] of images in [0, 1]."""
    return (image_B3HW * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def psnr_db(found: Tensor, wanted: Tensor) -> float:
    """Mean over the images of uint8 [B, H, W, 3], in dB."""
    error_B = (found.float() - wanted.float()).square().mean((1, 2, 3)).clamp(min=1e-3)
    return round(float(np.mean((10 * torch.log10(255**2 / error_B)).numpy())), 2)
