"""Rotary position tables and the rotation. Knows nothing of layers."""

from __future__ import annotations

import torch
from torch import Tensor

from shared.config import TransformerConfig


def rope_2d(prefix_len: int, grid: int, head_dim: int, base: float) -> Tensor:
    """LlamaGen's table, fp32 [prefix_len + grid*grid, head_dim/2, 2] of (cos, sin).

    The first half of the pairs turns with the row, the second with the column. The prefix rows are ZERO, not
    the identity: text keys vanish and text acts through its values alone, as in the released weights.
    """
    half = head_dim // 2
    frequency_M = 1.0 / base ** (torch.arange(0, half, 2, dtype=torch.float32) / half)
    angle_GM = torch.outer(torch.arange(grid, dtype=torch.float32), frequency_M)
    rows_GGM = angle_GM[:, None, :].expand(grid, grid, -1)
    columns_GGM = angle_GM[None, :, :].expand(grid, grid, -1)
    angle_TP = torch.cat([rows_GGM, columns_GGM], dim=-1).reshape(grid * grid, half)
    image = torch.stack([angle_TP.cos(), angle_TP.sin()], dim=-1)
    return torch.cat([torch.zeros(prefix_len, half, 2), image])


def rope_1d(positions: int, head_dim: int, base: float) -> Tensor:
    """A plain sequence, fp32 [positions, head_dim/2, 2]: pair p turns by t * base^(-2p/head_dim)."""
    frequency_P = 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle_TP = torch.outer(torch.arange(positions, dtype=torch.float32), frequency_P)
    return torch.stack([angle_TP.cos(), angle_TP.sin()], dim=-1)


def rope_table(config: TransformerConfig) -> Tensor:
    """The table of a model, fp32 [positions, head_dim/2, 2]."""
    if config.rope_axes == 1:
        return rope_1d(config.positions, config.head_dim, config.rope_base)
    return rope_2d(config.prefix_len, config.grid, config.head_dim, config.rope_base)


def rotate(x_BTHD: Tensor, table_BTP2: Tensor, pairs: str = "adjacent") -> Tensor:
    """Rotate pairs of components in fp32 and cast back: (a, b) -> (a cos - b sin, b cos + a sin).

    Pair p is the components (2p, 2p+1), or (p, p + head_dim/2) where `pairs` is "halves".
    """
    axis = -1 if pairs == "adjacent" else -2
    shape = (-1, 2) if pairs == "adjacent" else (2, -1)
    a, b = x_BTHD.float().reshape(*x_BTHD.shape[:-1], *shape).unbind(axis)
    cos, sin = table_BTP2[:, :, None].unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=axis).flatten(-2).to(x_BTHD.dtype)
