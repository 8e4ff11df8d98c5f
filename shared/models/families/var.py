"""VAR: an image as maps of growing side, each predicted at once from all smaller ones.

Source: Tian et al., "Visual Autoregressive Modeling" (2024), and its public code, whose names the parameters
have. Knows no files, no codebook and no sampler.

Shapes: B rows (of guidance too), T tokens of the scales in a call, D width, H heads, E code width, V codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.errors import InvalidRequest
from shared.models.vit import Mlp, conditioning, modulated, plain_norm

_TOP_SCALE = math.log(100)  # largest logarithm of a head's query scale


@dataclass(frozen=True)
class VARConfig:
    """The published depths d have dim 64 d, d heads and 1,000 classes. Raises InvalidRequest without scales.

    scales      side of each map, in order
    l2_norm     queries and keys of length 1, with a learned scale per head
    one_adaln   one conditioning network for all blocks (the 512 px model)
    """

    depth: int
    dim: int
    heads: int
    classes: int
    vocab_size: int
    code_dim: int
    scales: tuple[int, ...]
    hidden: int
    l2_norm: bool = True
    one_adaln: bool = False

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 1 or self.dim % self.heads:
            what = f"scales {self.scales} with {self.heads} heads of width {self.dim}"
            raise InvalidRequest(
                f"there is no VAR of {what}", "a scale at least; heads that divide the width"
            )

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each scale begins in the sequence of all tokens, and its length at the end: S + 1 numbers."""
        return (0, *accumulate(side * side for side in self.scales))

    @property
    def tokens(self) -> int:
        """L, tokens of all scales."""
        return self.offsets[-1]

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """The scale of each of the L tokens."""
        return tuple(level for level, side in enumerate(self.scales) for _ in range(side * side))


class ScaleCache:
    """Keys (as compared: normalised) and values [depth, B, H, L, head width] of scales already seen.

    A scale is written where it belongs, so going back to an earlier scale needs no call.
    """

    def __init__(self, config: VARConfig, rows: int) -> None:
        shape = (config.depth, rows, config.heads, config.tokens, config.dim // config.heads)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)

    def extend(self, layer: int, begin: int, k_BHTd: Tensor, v_BHTd: Tensor) -> tuple[Tensor, Tensor]:
        """Write tokens from place `begin` on; everything up to their end."""
        end = begin + k_BHTd.shape[2]
        self.keys[layer, :, :, begin:end], self.values[layer, :, :, begin:end] = k_BHTd, v_BHTd
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


@dataclass(frozen=True, eq=False)
class _View:
    """What a call may see: its first place, the mask [T, S] (None: everything), the cache."""

    begin: int
    mask_TS: Tensor | None
    cache: ScaleCache | None


class ScaleAttention(nn.Module):
    """Queries and values have a bias, keys none."""

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.scale = 1.0 if config.l2_norm else 0.25 / math.sqrt(config.dim // config.heads)
        self.mat_qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(config.dim)) for _ in range(2))
        if config.l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.heads, 1, 1), math.log(4)))
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x_BTD: Tensor, layer: int, view: _View) -> Tensor:
        """Shape kept."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x_BTD, self.mat_qkv.weight, bias).reshape(*x_BTD.shape[:2], 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if hasattr(self, "scale_mul_1H11"):
            q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(_TOP_SCALE).exp()
            k = F.normalize(k, dim=-1)
        if view.cache is not None:
            k, v = view.cache.extend(layer, view.begin, k, v)
        seen = F.scaled_dot_product_attention(q, k, v, view.mask_TS, scale=self.scale)
        out: Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return out


class VARBlock(nn.Module):
    """Attention and feed-forward part under adaLN: gains, scales, shifts, in this order."""

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.attn = ScaleAttention(config)
        self.ffn = Mlp(config.dim, config.hidden, "tanh")
        if config.one_adaln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, config.dim))
        else:
            self.ada_lin = conditioning(config.dim, 6)

    def forward(self, x_BTD: Tensor, cond: Tensor, layer: int, view: _View) -> Tensor:
        """`cond` is [B, D], or [B, 1, 6, D] where all blocks share one network."""
        if hasattr(self, "ada_gss"):
            signals = self.ada_gss + cond
        else:
            signals = self.ada_lin(cond).unflatten(1, (6, -1))[:, None]
        gain1, gain2, scale1, scale2, shift1, shift2 = signals.unbind(2)
        x_BTD = x_BTD + gain1 * self.attn(modulated(plain_norm(x_BTD), shift1, scale1), layer, view)
        out: Tensor = x_BTD + gain2 * self.ffn(modulated(plain_norm(x_BTD), shift2, scale2))
        return out


class HeadNorm(nn.Module):
    """The last norm: scale, then shift."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ada_lin = conditioning(dim, 2)

    def forward(self, x_BTD: Tensor, cond_BD: Tensor) -> Tensor:
        """Shape kept."""
        scale, shift = self.ada_lin(cond_BD)[:, None].chunk(2, dim=-1)
        return modulated(plain_norm(x_BTD), shift, scale)


class VARModel(nn.Module):
    """Class and maps of the scales before -> logits of whole scales."""

    family = "var"

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.config, dim = config, config.dim
        self.pos_start = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_1LC = nn.Parameter(torch.zeros(1, config.tokens, dim))
        self.word_embed = nn.Linear(config.code_dim, dim)
        self.class_emb = nn.Embedding(config.classes + 1, dim)
        self.lvl_embed = nn.Embedding(len(config.scales), dim)
        if config.one_adaln:
            self.shared_ada_lin = conditioning(dim, 6)
        self.blocks = nn.ModuleList(VARBlock(config) for _ in range(config.depth))
        self.head_nm = HeadNorm(dim)
        self.head = nn.Linear(dim, config.vocab_size)

    def condition(self, labels_B: Tensor) -> Tensor:
        """[B] classes to conditions [2B, D]: those of the classes, then as many of no class."""
        nothing_B = torch.full_like(labels_B, self.config.classes)
        out: Tensor = self.class_emb(torch.cat([labels_B, nothing_B]))
        return out

    def forward(
        self, maps_BTE: Tensor, cond_BD: Tensor, first: int, last: int, cache: ScaleCache | None = None
    ) -> Tensor:
        """Hidden states [B, T, D] of scales `first` .. `last` - 1, from one pass.

        `maps_BTE` are the input maps of these scales in raster order; scale 0 has none, it begins with the
        class. Without a cache, `first` is 0. A token sees its own scale and all smaller ones.
        """
        begin, end = self.config.offsets[first], self.config.offsets[last]
        levels_L = torch.tensor(self.config.levels[:end], device=cond_BD.device)
        x_BTD: Tensor = self.word_embed(maps_BTE)
        if first == 0:
            x_BTD = torch.cat([cond_BD[:, None] + self.pos_start, x_BTD], 1)
        x_BTD = x_BTD + self.lvl_embed(levels_L[begin:]) + self.pos_1LC[:, begin:end]
        mask_TS = levels_L[begin:, None] >= levels_L if last - first > 1 else None
        view = _View(begin, mask_TS, cache)
        cond = self.shared_ada_lin(cond_BD).unflatten(1, (1, 6, -1)) if self.config.one_adaln else cond_BD
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, cond, layer, view)
        return x_BTD

    def logits(self, hidden_BTD: Tensor, cond_BD: Tensor) -> Tensor:
        """[B, T, V], fp32."""
        out: Tensor = self.head(self.head_nm(hidden_BTD, cond_BD)).float()
        return out
