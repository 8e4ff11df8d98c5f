"""Softmax attention, over rows given at once or over what the cache holds for each. Knows nothing of weights.

Shapes: B rows, T new tokens, S visible positions, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.models.kv_cache import Apart, LayerCache, Window


def attend_cache(q_BTHD: Tensor, window: Window, cache: LayerCache) -> Tensor:
    """Attention of queries to what their window sees of the cache: [B, T, H, head_dim]."""
    if not isinstance(window, Apart):
        return attend(q_BTHD, *cache.seen(window), window.mask_BTS)
    queries = torch.split_with_sizes(q_BTHD[0], [part.positions_BT.numel() for part in window.parts])
    attended = []
    for own_NHD, part in zip(queries, window.parts, strict=True):
        own_BTHD = own_NHD.view(*part.positions_BT.shape, *own_NHD.shape[1:])
        attended.append(attend(own_BTHD, *cache.seen(part), part.mask_BTS).flatten(0, 1))
    return torch.cat(attended)[None]


def attend(q_BTHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, mask_BTS: Tensor | None) -> Tensor:
    """Softmax attention [B, T, H, head_dim] in the dtype of the queries; there may be fewer key-value heads.

    On a CPU it computes in fp32: its half-width kernels take several times as long for a few queries. While
    learning, whose queries are whole images, plain matrix products in half width take half as long.
    """
    on_cpu = q_BTHD.device.type == "cpu"
    if on_cpu and q_BTHD.requires_grad and q_BTHD.dtype == torch.bfloat16 and mask_BTS is not None:
        return _attend_plainly(q_BTHD, k_BSHD, v_BSHD, mask_BTS)
    dtype = torch.float32 if on_cpu else q_BTHD.dtype
    q, k, v = (heads.transpose(1, 2).to(dtype) for heads in (q_BTHD, k_BSHD, v_BSHD))
    mask = None if mask_BTS is None else mask_BTS[:, None]
    if mask is not None and mask.is_floating_point():
        mask = mask.to(dtype)
    grouped = k.shape[1] != q.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    return out.transpose(1, 2).to(q_BTHD.dtype)


def _attend_plainly(q_BTHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, mask_BTS: Tensor) -> Tensor:
    """As `attend`, every score kept for the way back."""
    groups = q_BTHD.shape[2] // k_BSHD.shape[2]
    if groups > 1:
        k_BSHD, v_BSHD = (heads.repeat_interleave(groups, dim=2) for heads in (k_BSHD, v_BSHD))
    q, k, v = (heads.transpose(1, 2).contiguous() for heads in (q_BTHD, k_BSHD, v_BSHD))
    scores_BHTS = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask_BTS.is_floating_point():
        scores_BHTS = scores_BHTS + mask_BTS[:, None].to(scores_BHTS.dtype)
    else:
        scores_BHTS = scores_BHTS.masked_fill(~mask_BTS[:, None], torch.finfo(scores_BHTS.dtype).min)
    out_BHTD: Tensor = scores_BHTS.softmax(-1).to(v.dtype) @ v
    return out_BHTD.transpose(1, 2)
