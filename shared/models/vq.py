"""The VQ image tokenizer in LlamaGen's layout and names. Knows nothing of prompts or of how it was trained.

Shapes: B images, H and W pixels, h = H/f and w = W/f tokens, E code width, K codes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.config import VQConfig

Padding = Literal["zeros", "replicate"]


class PixelNorm(nn.Module):
    """RMS norm over the channels of each pixel: a flat region keeps its value whatever surrounds it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Shape kept."""
        scale = torch.rsqrt(x_BCHW.square().mean(1, keepdim=True) + 1e-6)
        return x_BCHW * scale * self.weight[:, None, None] + self.bias[:, None, None]


def _norm(channels: int, kind: str, groups: int) -> nn.Module:
    if kind == "pixel":
        return PixelNorm(channels)
    return nn.GroupNorm(min(groups, channels), channels, eps=1e-6)


class ResBlock(nn.Module):
    """norm1-swish-conv1-norm2-swish-conv2 + x, with a 1x1 shortcut where the width changes."""

    def __init__(self, c_in: int, c_out: int, norm: str, padding: Padding, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(c_in, norm, groups)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1, padding_mode=padding)
        self.norm2 = _norm(c_out, norm, groups)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, padding_mode=padding)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, H, W] -> [B, c_out, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h
        return out


class AttnBlock(nn.Module):
    """Single-head attention over all pixels, residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(min(groups, channels), channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Shape kept."""
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        out: Tensor = x + self.proj_out(attended)
        return out


class Downsample(nn.Module):
    """Halve the resolution: pad right and bottom by one, 3x3 convolution of stride 2."""

    def __init__(self, channels: int, padding: Padding) -> None:
        super().__init__()
        self.mode = "constant" if padding == "zeros" else padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1), mode=self.mode))
        return out


class Upsample(nn.Module):
    """Double the resolution: nearest, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """The blocks of one resolution; `resample` is a Downsample, an Upsample or None."""

    def __init__(self, res: list[ResBlock], attn: list[AttnBlock], resample: nn.Module | None) -> None:
        super().__init__()
        self.res, self.attn = nn.ModuleList(res), nn.ModuleList(attn)
        if isinstance(resample, Downsample):
            self.downsample = resample
        elif resample is not None:
            self.upsample = resample

    def forward(self, x: Tensor) -> Tensor:
        """Residual blocks, each followed by its attention where there is one, then the resampling."""
        for index, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


def _middle(width: int, config: VQConfig, norm: str, padding: Padding) -> nn.ModuleList:
    if not config.middle:
        return nn.ModuleList()
    ends = [ResBlock(width, width, norm, padding, config.norm_groups) for _ in range(2)]
    return nn.ModuleList([ends[0], AttnBlock(width, config.norm_groups), ends[1]])


def _exact(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer in fp32 whatever autocast says: rounded to bf16, the sign of a small error would be noise, and
    the gradient of an absolute error is that sign."""
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = layer(x.float())
    return out


class Encoder(nn.Module):
    """Image [B, 3, H, W] in [-1, 1] to features [B, z, h, w]."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.patch, self.factor = config.patch, config.factor
        if config.linear_path:
            self.linear = nn.Conv2d(3 * config.factor**2, config.z_channels, 1)
        norm, padding, groups = config.encoder_norm, config.encoder_padding, config.norm_groups
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = nn.Conv2d(3 * config.patch**2, config.ch, 3, padding=1, padding_mode=padding)
        levels, width = [], config.ch
        for index, out in enumerate(widths):
            last = index == len(widths) - 1
            res = [
                ResBlock(width if j == 0 else out, out, norm, padding, groups)
                for j in range(config.encoder_res)
            ]
            attn = [AttnBlock(out, groups) for _ in res] if last and config.attention else []
            levels.append(Level(res, attn, None if last else Downsample(out, padding)))
            width = out
        self.conv_blocks = nn.ModuleList(levels)
        self.mid = _middle(width, config, norm, padding)
        self.norm_out = _norm(width, norm, groups)
        self.conv_out = nn.Conv2d(width, config.z_channels, 3, padding=1, padding_mode=padding)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, z, h, w]."""
        h = self.conv_in(F.pixel_unshuffle(x, self.patch))
        for block in (*self.conv_blocks, *self.mid):
            h = block(h)
        out = _exact(self.conv_out, F.silu(self.norm_out(h)))
        if hasattr(self, "linear"):
            out = out + _exact(self.linear, F.pixel_unshuffle(x, self.factor))
        return out


class Decoder(nn.Module):
    """Features [B, z, h, w] to an image [B, 3, H, W], about [-1, 1], not clamped."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.patch, self.factor = config.patch, config.factor
        if config.linear_path:
            self.linear = nn.Conv2d(config.z_channels, 3 * config.factor**2, 1)
        groups = config.norm_groups
        widths = [config.ch * m for m in reversed(config.ch_mult)]
        width = widths[0]
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.mid = _middle(width, config, "group", "zeros")
        levels = []
        for index, out in enumerate(widths):
            res = [
                ResBlock(width if j == 0 else out, out, "group", "zeros", groups)
                for j in range(config.decoder_res)
            ]
            attn = [AttnBlock(out, groups) for _ in res] if index == 0 and config.attention else []
            levels.append(Level(res, attn, Upsample(out) if index < len(widths) - 1 else None))
            width = out
        self.conv_blocks = nn.ModuleList(levels)
        self.norm_out = _norm(width, "group", groups)
        self.conv_out = nn.Conv2d(width, 3 * config.patch**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """[B, z, h, w] -> [B, 3, H, W]."""
        h = self.conv_in(z)
        for block in (*self.mid, *self.conv_blocks):
            h = block(h)
        out = F.pixel_shuffle(_exact(self.conv_out, F.silu(self.norm_out(h))), self.patch)
        if hasattr(self, "linear"):
            out = out + F.pixel_shuffle(_exact(self.linear, z), self.factor)
        return out


class Quantizer(nn.Module):
    """A codebook; with `unit_codes` it lies on the unit sphere, though the stored rows need not."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.unit = config.unit_codes
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)

    def codes(self) -> Tensor:
        """The codebook [K, E] as it is decoded, fp32."""
        codes_KE = self.embedding.weight.float()
        return F.normalize(codes_KE, dim=-1) if self.unit else codes_KE

    def nearest(self, z_BEhw: Tensor) -> Tensor:
        """Ids [B, h, w] of the nearest codes: argmin |z - c|^2 = argmax z c - |c|^2 / 2."""
        z = F.normalize(z_BEhw.float(), dim=1) if self.unit else z_BEhw.float()
        codes_KE = self.codes()
        near = torch.einsum("behw,ke->bhwk", z, codes_KE)
        return (near if self.unit else near - codes_KE.square().sum(-1) / 2).argmax(-1)


class VQModel(nn.Module):
    """Encoder, codebook, decoder. Always fp32: lower precision shows in the pixels."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Quantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)

    def features(self, image_B3HW: Tensor) -> Tensor:
        """Image in [-1, 1] to features before quantisation [B, E, h, w]."""
        return _exact(self.quant_conv, self.encoder(image_B3HW))

    def encode(self, image_B3HW: Tensor) -> Tensor:
        """Image in [-1, 1] to token ids [B, h, w]."""
        return self.quantize.nearest(self.features(image_B3HW))

    def decode_features(self, z_BEhw: Tensor) -> Tensor:
        """Code vectors [B, E, h, w] to an image [B, 3, H, W], not clamped."""
        out: Tensor = self.decoder(_exact(self.post_quant_conv, z_BEhw))
        return out

    def decode(self, ids_Bhw: Tensor) -> Tensor:
        """Token ids [B, h, w] to an image [B, 3, H, W], not clamped."""
        return self.decode_features(self.quantize.codes()[ids_Bhw].permute(0, 3, 1, 2))

    def pictures(self, ids_Bhw: Tensor) -> Tensor:
        """Token ids [B, h, w] to uint8 [B, H, W, 3], rounded as the model's own programs do."""
        return to_pixels(self.decode(ids_Bhw), self.config.pixel_shift)


def to_pixels(image_B3HW: Tensor, shift: float = 128.0) -> Tensor:
    """[-1, 1] to uint8 [B, H, W, 3]: clamp(127.5 x + shift), truncated; LlamaGen's shift is 128."""
    return (127.5 * image_B3HW + shift).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def from_pixels(pixels_BHW3: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to [-1, 1] [B, 3, H, W]."""
    return pixels_BHW3.permute(0, 3, 1, 2).float() / 127.5 - 1
