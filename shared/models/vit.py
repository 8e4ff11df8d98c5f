"""Parts that VAR, MAR and DiT have in common, under the names of timm and of their programs. Knows no model.

Shapes: B rows, T tokens, D width, H heads, N timesteps.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6
FREQUENCIES = 256  # of the sinusoid of a timestep


class Attention(nn.Module):
    """Full attention of every token to every token; queries, keys and values in one matrix with a bias."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; `mask` is broadcast over heads, False hides a token."""
        q, k, v = self.qkv(x_BTD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """fc1, GELU, fc2; `approximate` is "none" for the exact GELU."""

    def __init__(self, dim: int, hidden: int, approximate: Literal["none", "tanh"]) -> None:
        super().__init__()
        self.approximate = approximate
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Shape kept."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x_BTD), approximate=self.approximate))
        return out


class TimeEmbedding(nn.Module):
    """A timestep as a vector: sinusoid, then a small network."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t_N: Tensor) -> Tensor:
        """[N] -> [N, D]."""
        out: Tensor = self.mlp(time_features(t_N))
        return out


def time_features(t_N: Tensor) -> Tensor:
    """Sinusoids [N, 256] of timesteps, the cosines first."""
    half = FREQUENCIES // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t_N.device) / half)
    angles_NF = t_N[:, None].float() * rates
    return torch.cat([angles_NF.cos(), angles_NF.sin()], -1)


def plain_norm(x: Tensor) -> Tensor:
    """LayerNorm over the last axis without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift: adaLN after the norm."""
    return x * (1 + scale) + shift


def conditioning(dim: int, vectors: int) -> nn.Sequential:
    """The network that turns a condition [B, D] into `vectors` vectors of that width, side by side."""
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, vectors * dim))


class FinalLayer(nn.Module):
    """The last norm (shift, scale) and a linear map."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, out)
        self.adaLN_modulation = conditioning(dim, 2)

    def forward(self, x: Tensor, cond_BD: Tensor) -> Tensor:
        """[B, D] or [B, T, D] -> the same with `out` numbers; one condition [B, D] a row."""
        out: Tensor = self.linear(self.normed(x, cond_BD))
        return out

    def normed(self, x: Tensor, cond_BD: Tensor) -> Tensor:
        """What the linear map is given: the shape of `x`."""
        signals = self.adaLN_modulation(cond_BD)
        shift, scale = (signals if x.ndim == 2 else signals[:, None]).chunk(2, dim=-1)
        return modulated(plain_norm(x), shift, scale)
