"""Attention while learning in half width: values and gradients of the fused kernels, as far as bf16 holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shared.models.attend import attend

B, T, HEADS, WIDTH = 2, 24, 4, 16


def heads(count: int, seed: int) -> Tensor:
    return torch.randn(B, T, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def learnt(mask_BTS: Tensor, groups: int, dtype: torch.dtype) -> list[Tensor]:
    """The attended values and the gradients of queries, keys and values, in fp32."""
    counts = (HEADS, HEADS // groups, HEADS // groups)
    given = [
        heads(count, seed).bfloat16().to(dtype).requires_grad_() for seed, count in enumerate(counts)
    ]
    out = attend(given[0], given[1], given[2], mask_BTS)
    out.backward(heads(HEADS, 9).to(dtype))  # type: ignore[no-untyped-call]
    assert out.dtype == dtype
    return [out.float(), *(value.grad.float() for value in given if value.grad is not None)]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("added", [False, True])
def test_half_width_learns_as_full_width_does(groups: int, added: bool) -> None:
    mask_BTS = torch.ones(T, T, dtype=torch.bool).tril().expand(B, -1, -1).clone()
    mask_BTS[1, 5:, :3] = False  # a shorter caption
    if added:
        mask_BTS = torch.zeros(B, T, T).masked_fill(~mask_BTS, -1e9)
    wide = learnt(mask_BTS, groups, torch.float32)
    half = learnt(mask_BTS, groups, torch.bfloat16)
    assert len(wide) == len(half) == 4
    for ours, theirs in zip(half, wide, strict=True):
        assert (ours - theirs).norm() < 0.015 * theirs.norm()
