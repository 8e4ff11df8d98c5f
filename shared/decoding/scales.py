"""Decoding by scales, as in VAR and CoDe: guidance that grows with the scale, and the draw of a whole scale.

Knows no model. Shapes: B images, T tokens of one scale, V codes.
"""

from __future__ import annotations

from torch import Tensor

from shared.decoding.warp import Warp, warp_logits


def guidance_at(scale: int, scales: int, strength: float) -> float:
    """t of `guide_scale`: 0 at the first scale, the full strength at the last."""
    return strength * scale / max(scales - 1, 1)


def guide_scale(cond_BTV: Tensor, uncond_BTV: Tensor, t: float) -> Tensor:
    """(1 + t) conditional - t unconditional: guidance weight 1 + t."""
    return (1 + t) * cond_BTV - t * uncond_BTV


def truncated(logits_BTV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Log-probabilities after top-k, then top-p (0 and 0 are off): -inf where nothing is drawn."""
    return warp_logits(logits_BTV, Warp(top_k=top_k, top_p=top_p or 1.0))


def draw(log_p_BTV: Tensor, noise_BTV: Tensor, temperature: float = 1.0) -> Tensor:
    """argmax(log p / temperature + Gumbel noise): a sample for each place, [B, T].

    The temperature comes after the truncation, as in CoDe: it does not change which codes are kept.
    """
    return (log_p_BTV / temperature + noise_BTV).argmax(-1)


def smoothed(log_p_BTV: Tensor, noise_BTV: Tensor, progress: float) -> Tensor:
    """Weights [B, T, V] of VAR's smooth pictures: a softmax in place of the argmax, sharper with `progress`
    from 0 to 1. The map is then no map of tokens, so nothing drawn this way can be verified."""
    sharpness = max(0.27 * (1 - 0.95 * progress), 0.005)
    return ((log_p_BTV * (1 + progress) + noise_BTV) / sharpness).softmax(-1)
