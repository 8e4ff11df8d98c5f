"""DiT's latents to images, by the autoencoder of Stable Diffusion as diffusers reads it. Knows no DiT.

The package is looked for when a decoder is asked for; everything before the picture works without it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import ModelUnavailable
from shared.models.families.dit import LATENT_SCALE

REPOSITORY = "stabilityai/sd-vae-ft-ema"


class LatentDecoder(nn.Module):
    """Wraps diffusers' AutoencoderKL."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def decode(self, latent_B4HH: Tensor) -> Tensor:
        """Latents as DiT draws them to images [B, 3, 8 H, 8 H] in about [-1, 1], not clamped."""
        vae: Any = self.vae
        image: Tensor = vae.decode(latent_B4HH / LATENT_SCALE).sample
        return image

    def pictures(self, latent_B4HH: Tensor) -> Tensor:
        """uint8 [B, 8 H, 8 H, 3], rounded as DiT's own programs do."""
        image = 127.5 * self.decode(latent_B4HH) + 128
        return image.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def load_latent_decoder(folder: Path) -> LatentDecoder:
    """Read a folder that diffusers wrote: config.json and weights. Nothing is fetched.

    Raises ModelUnavailable where the package or the folder is missing, or does not hold an autoencoder.
    """
    if not (folder / "config.json").is_file():
        where = f"put huggingface.co/{REPOSITORY} into {folder}"
        raise ModelUnavailable(f"there is no autoencoder in {folder}", "DiT draws latents", where)
    try:
        kind: Any = importlib.import_module("diffusers").AutoencoderKL
    except ImportError as error:
        what = "DiT's latents need the package diffusers to become pictures"
        raise ModelUnavailable(what, str(error), "pip install 'ciar[dit]'") from error
    try:
        vae = kind.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelUnavailable(f"{folder} holds no autoencoder", str(error).splitlines()[0]) from error
    return LatentDecoder(vae).eval()
