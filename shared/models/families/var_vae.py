"""The multi-scale residual VQ of VAR: an image is a sum of maps, each a small grid of codes drawn larger.

Source: Tian et al., "Visual Autoregressive Modeling" (2024), section 3.2, and its public code. Convolutions
stand under LlamaGen's names. Knows no transformer. Always fp32.

Shapes: B images, S scales, H the side of the largest map, E code width, p the side of one map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.config import VQConfig
from shared.models.vq import Decoder, Encoder, Quantizer

# Which filter serves which scale, where two of them are equally near: the published model's row.
_PUBLISHED = {(10, 4): (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)}


@dataclass(frozen=True)
class ScaleVQConfig:
    """What VQConfig does not say.

    scales   side of each map, in order
    filters  convolutions shared among the scales
    ratio    how much of a map is filtered: the rest passes as it is
    kernel   of the convolutions around the codebook
    """

    scales: tuple[int, ...]
    filters: int
    ratio: float = 0.5
    kernel: int = 3


def filter_of(scale: int, scales: int, filters: int) -> int:
    """The filter of a scale: the one whose place on [0, 1] is nearest."""
    if (scales, filters) in _PUBLISHED:
        return _PUBLISHED[scales, filters][scale]
    edge = 1 / 3 / filters if filters == 4 else 1 / 2 / filters
    places = np.linspace(edge, 1 - edge, filters)
    return int(np.argmin(np.abs(places - scale / max(scales - 1, 1))))


class ScaleQuantizer(Quantizer):
    """Codebook and filters; sums of maps are fp32 and never changed in place."""

    def __init__(self, config: VQConfig, maps: ScaleVQConfig) -> None:
        super().__init__(config)
        self.maps = maps
        width = config.codebook_dim
        self.phi = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(maps.filters))

    @property
    def side(self) -> int:
        """H."""
        return self.maps.scales[-1]

    def nothing(self, images: int) -> Tensor:
        """The sum before the first scale: zeros [B, E, H, H]."""
        return self.embedding.weight.new_zeros(images, self.embedding.weight.shape[1], self.side, self.side)

    def filtered(self, map_BEHH: Tensor, scale: int) -> Tensor:
        """What a scale adds, from its codes at full size."""
        phi = self.phi[filter_of(scale, len(self.maps.scales), self.maps.filters)]
        out: Tensor = map_BEHH * (1 - self.maps.ratio) + phi(map_BEHH) * self.maps.ratio
        return out

    def added(self, sum_BEHH: Tensor, tokens_BT: Tensor, scale: int) -> Tensor:
        """The sum with the codes of one more scale, [B, p * p]."""
        side = self.maps.scales[scale]
        codes_BEpp = self.codes()[tokens_BT].transpose(1, 2).reshape(len(tokens_BT), -1, side, side)
        if scale < len(self.maps.scales) - 1:
            codes_BEpp = enlarged(codes_BEpp, self.side)
        return sum_BEHH + self.filtered(codes_BEpp, scale)

    def input_map(self, sum_BEHH: Tensor, scale: int) -> Tensor:
        """What the transformer sees for a scale: the sum of all smaller ones, reduced, [B, p * p, E]."""
        return reduced(sum_BEHH, self.maps.scales[scale]).flatten(2).transpose(1, 2)

    def sums(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """The sum [B, E, H, H] after each of the given scales, from the first on."""
        out = [self.nothing(len(tokens[0]))]
        for scale, tokens_BT in enumerate(tokens):
            out.append(self.added(out[-1], tokens_BT, scale))
        return out[1:]

    def code_of(self, rest_BEHH: Tensor, scale: int) -> Tensor:
        """Token ids [B, p * p] of one scale: the codes nearest to what the scales before it leave."""
        last = scale == len(self.maps.scales) - 1
        return self.nearest(rest_BEHH if last else reduced(rest_BEHH, self.maps.scales[scale])).flatten(1)

    def encode(self, features_BEHH: Tensor) -> list[Tensor]:
        """Token ids [B, p * p] of every scale: each the nearest codes of what the scales before leave."""
        rest, tokens = features_BEHH.float(), []
        for scale in range(len(self.maps.scales)):
            tokens.append(self.code_of(rest, scale))
            rest = rest - self.added(torch.zeros_like(rest), tokens[-1], scale)
        return tokens


class ScaleVQ(nn.Module):
    """Encoder, codebook with filters, decoder."""

    def __init__(self, config: VQConfig, maps: ScaleVQConfig) -> None:
        super().__init__()
        self.config, self.maps = config, maps
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = ScaleQuantizer(config, maps)
        width, pad = config.codebook_dim, maps.kernel // 2
        self.quant_conv = nn.Conv2d(config.z_channels, width, maps.kernel, padding=pad)
        self.post_quant_conv = nn.Conv2d(width, config.z_channels, maps.kernel, padding=pad)

    def features(self, image_B3HW: Tensor) -> Tensor:
        """Image in [-1, 1] to features before quantisation [B, E, H, H]."""
        out: Tensor = self.quant_conv(self.encoder(image_B3HW))
        return out

    def encode(self, image_B3HW: Tensor) -> list[Tensor]:
        """Image in [-1, 1] to token ids [B, p * p] of every scale."""
        return self.quantize.encode(self.features(image_B3HW))

    def decode(self, sum_BEHH: Tensor) -> Tensor:
        """The sum of all scales to an image in about [-1, 1], not clamped."""
        out: Tensor = self.decoder(self.post_quant_conv(sum_BEHH))
        return out

    def picture(self, sum_BEHH: Tensor) -> Tensor:
        """The image in [0, 1]."""
        return (self.decode(sum_BEHH).clamp(-1, 1) + 1) / 2


def enlarged(map_BEpp: Tensor, side: int) -> Tensor:
    """Bicubic to a larger side."""
    return F.interpolate(map_BEpp, size=(side, side), mode="bicubic")


def reduced(map_BEHH: Tensor, side: int) -> Tensor:
    """The mean of each cell of a coarser grid; cells overlap where the sides do not divide."""
    return F.interpolate(map_BEHH, size=(side, side), mode="area")
