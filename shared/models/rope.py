"""Rotary position tables. Knows nothing of models."""

from __future__ import annotations

import torch
from torch import Tensor


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


def rotate(x_BTHD: Tensor, table_BTP2: Tensor) -> Tensor:
    """Rotate ADJACENT pairs (2p, 2p+1) in fp32 and cast back: (a, b) -> (a cos - b sin, b cos + a sin)."""
    a, b = x_BTHD.float().reshape(*x_BTHD.shape[:-1], -1, 2).unbind(-1)
    cos, sin = table_BTP2[:, :, None].unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x_BTHD.dtype)
