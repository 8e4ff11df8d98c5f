"""The autoencoder with a Gaussian bottleneck that MAR's tokens are latents of. Convolutions stand under
LlamaGen's names. Knows no transformer. Always fp32.

Source: Rombach et al., "High-resolution image synthesis with latent diffusion models" (2022), MAR's variant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from shared.config import VQConfig
from shared.models.vq import Decoder, Encoder

LATENT_SCALE = 0.2325  # a latent times this is a token of MAR


@dataclass(frozen=True)
class KLConfig:
    """latent: numbers of a latent; attention at the lowest resolution of the encoder, of the decoder."""

    ch: int
    ch_mult: tuple[int, ...]
    z_channels: int
    latent: int
    encoder_res: int = 2
    decoder_res: int = 3
    encoder_attention: bool = True
    decoder_attention: bool = False

    @property
    def factor(self) -> int:
        """Pixels per latent and side."""
        return int(2 ** (len(self.ch_mult) - 1))

    def _stack(self, z_channels: int, attention: bool) -> VQConfig:
        return VQConfig(
            ch=self.ch, ch_mult=self.ch_mult, z_channels=z_channels, codebook_size=0,
            codebook_dim=self.latent,
            encoder_res=self.encoder_res, decoder_res=self.decoder_res, attention=attention, unit_codes=False,
        )  # fmt: skip

    @property
    def down(self) -> VQConfig:
        """The encoder's convolutions; it gives mean and logarithm of the variance."""
        return self._stack(2 * self.z_channels, self.encoder_attention)

    @property
    def up(self) -> VQConfig:
        """The decoder's."""
        return replace(self.down, z_channels=self.z_channels, attention=self.decoder_attention)


class KLVAE(nn.Module):
    """Image <-> latents [B, latent, h, w]."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config.down), Decoder(config.up)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.latent, 1)
        self.post_quant_conv = nn.Conv2d(config.latent, config.z_channels, 1)

    def moments(self, image_B3HW: Tensor) -> Tensor:
        """Image in [-1, 1] to means and logarithms of variances [B, 2 latent, h, w], not clamped."""
        out: Tensor = self.quant_conv(self.encoder(image_B3HW))
        return out

    def encode(self, image_B3HW: Tensor, noise: Tensor) -> Tensor:
        """Tokens' latents on MAR's scale [B, latent, h, w]: a sample made with `noise` of that shape."""
        mean, log_variance = self.moments(image_B3HW).chunk(2, dim=1)
        return (mean + (log_variance.clamp(-30, 20) / 2).exp() * noise) * LATENT_SCALE

    def decode(self, latent: Tensor) -> Tensor:
        """Latents on MAR's scale to an image [B, 3, H, W] in about [-1, 1], not clamped."""
        out: Tensor = self.decoder(self.post_quant_conv(latent / LATENT_SCALE))
        return out

    def pictures(self, latent: Tensor) -> Tensor:
        """Latents on MAR's scale to uint8 [B, H, W, 3], rounded."""
        image = (self.decode(latent) + 1) / 2 * 255
        return image.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
