"""The autoencoder with a Gaussian bottleneck that MAR's tokens are latents of. Convolutions stand under
LlamaGen's names. Knows no transformer. Always fp32.

Source: Rombach et al., "High-resolution image synthesis with latent diffusion models" (2022), MAR's variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from shared.config import VQConfig
from shared.models.vq import AttnBlock, Decoder, Encoder, ResBlock

LATENT_SCALE = 0.2325  # a latent times this is a token of MAR


@dataclass(frozen=True)
class KLConfig:
    """latent: numbers of a latent; *_attention: levels that have it, counted from the image in the encoder,
    from the latents in the decoder. The middle has it where there is one. The last four are those of
    shared.config.VQConfig, with the published values."""

    ch: int
    ch_mult: tuple[int, ...]
    z_channels: int
    latent: int
    encoder_res: int = 2
    decoder_res: int = 3
    encoder_attention: tuple[int, ...] = (4,)
    decoder_attention: tuple[int, ...] = ()
    patch: int = 1
    norm_groups: int = 32
    middle: bool = True
    linear_path: bool = False

    @property
    def factor(self) -> int:
        """Pixels per latent and side."""
        return self.stack.factor

    @property
    def stack(self) -> VQConfig:
        """The convolutions, as a VQ without codes."""
        return VQConfig(
            ch=self.ch, ch_mult=self.ch_mult, z_channels=self.z_channels, codebook_size=0,
            codebook_dim=self.latent, encoder_res=self.encoder_res, decoder_res=self.decoder_res,
            attention=False, unit_codes=False, patch=self.patch, norm_groups=self.norm_groups,
            middle=self.middle, linear_path=self.linear_path,
        )  # fmt: skip


class KLVAE(nn.Module):
    """Image <-> latents [B, latent, h, w]."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        self.config = config
        # The encoder gives mean and logarithm of the variance.
        self.encoder = Encoder(replace(config.stack, z_channels=2 * config.z_channels))
        self.decoder = Decoder(config.stack)
        _attend(self.encoder.conv_blocks, config.encoder_attention, config.stack.norm_groups)
        _attend(self.decoder.conv_blocks, config.decoder_attention, config.stack.norm_groups)
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


def _attend(levels: nn.ModuleList, where: Sequence[int], groups: int) -> None:
    """Give some levels an attention behind each of their residual blocks."""
    for index in where:
        blocks = [block for block in levels[index].modules() if isinstance(block, ResBlock)]
        levels[index].attn = nn.ModuleList(AttnBlock(block.conv2.out_channels, groups) for block in blocks)
