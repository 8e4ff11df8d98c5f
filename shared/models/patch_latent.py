"""A latent without a network: every patch of a picture as its few principal components. Knows no DiT.

For small pictures of few colours; a plain linear map there and back, fitted in seconds. Shapes: B pictures, P
pixels a patch (3 p p), C channels of the latent, H its side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.config import from_dict, to_dict
from shared.models.checkpoint import load_weights, read_config, save_folder, unfilled

KIND = "patch-latent"


@dataclass(frozen=True)
class PatchLatentConfig:
    """`patch` pixels a latent and side, of which `channels` components are kept."""

    patch: int
    channels: int


class PatchLatent(nn.Module):
    """latent = (pixels - mean) basis / scale, and back."""

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, config: PatchLatentConfig) -> None:
        super().__init__()
        self.config = config
        pixels = 3 * config.patch**2
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("basis", torch.zeros(pixels, config.channels))
        self.register_buffer("scale", torch.ones(config.channels))

    def fit(self, image_B3HW: Tensor) -> None:
        """The components of these images, in [-1, 1]. A channel's deviation in the latent is the root of what
        it was, and they are 1 on average: details count less than shapes, and are not drowned either."""
        patches_MP = self._patches(image_B3HW).transpose(1, 2).flatten(0, 1).double()
        mean_P = patches_MP.mean(0)
        centred = patches_MP - mean_P
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        order = values.argsort(descending=True)[: self.config.channels]
        deviation_C = values[order].clamp(min=1e-12).sqrt()
        self.mean.copy_(mean_P)
        self.basis.copy_(vectors[:, order])
        self.scale.copy_(deviation_C.sqrt() * deviation_C.mean().sqrt())

    def encode(self, image_B3HW: Tensor) -> Tensor:
        """Images in [-1, 1] to latents [B, C, H, H]."""
        patches_BPN = self._patches(image_B3HW)
        latent_BNC = (patches_BPN.transpose(1, 2) - self.mean) @ self.basis / self.scale
        side = image_B3HW.shape[-1] // self.config.patch
        return latent_BNC.transpose(1, 2).reshape(len(image_B3HW), -1, side, side)

    def decode(self, latent_BCHH: Tensor) -> Tensor:
        """Latents to images [B, 3, p H, p H] in about [-1, 1], not clamped."""
        latent_BNC = latent_BCHH.flatten(2).transpose(1, 2) * self.scale
        patches_BPN = (latent_BNC @ self.basis.T + self.mean).transpose(1, 2)
        pixels = latent_BCHH.shape[-1] * self.config.patch
        return F.fold(patches_BPN, (pixels, pixels), self.config.patch, stride=self.config.patch)

    def pictures(self, latent_BCHH: Tensor) -> Tensor:
        """uint8 [B, p H, p H, 3]."""
        image = (self.decode(latent_BCHH) + 1) * 127.5
        return image.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def _patches(self, image_B3HW: Tensor) -> Tensor:
        return F.unfold(image_B3HW, self.config.patch, stride=self.config.patch)


def save_patch_latent(folder: Path, latent: PatchLatent) -> str:
    """Write it; its digest."""
    config = {"kind": KIND, "latent": to_dict(latent.config)}
    return save_folder(folder, config, latent.state_dict(), torch.float32)


def load_patch_latent(folder: Path) -> PatchLatent:
    """Read one. Raises ModelUnavailable as `read_config` and `load_weights` do."""
    config = from_dict(PatchLatentConfig, read_config(folder, KIND)["latent"])
    latent = unfilled(lambda: PatchLatent(config))
    load_weights(folder, latent)
    return latent.eval()
