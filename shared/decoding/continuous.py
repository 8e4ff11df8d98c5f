"""Speculative decoding of continuous tokens: who keeps a drafted token, and what replaces a refused one.

Knows no model. Log-densities, not densities: products of sixteen standard deviations leave the range of half
precision. Shapes: N tokens, C numbers of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLATTENING = 42.0  # by how much the published test widens the last step's Gaussians


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Independent normals: mean and logarithm of the standard deviation, both [..., C]."""

    mean: Tensor
    log_std: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """[...], up to the constant that is the same for all Gaussians of this width."""
        return -(((x - self.mean) * (-self.log_std).exp()).square() / 2 + self.log_std).sum(-1)


def published_ratio(
    p: Gaussian, q: Gaussian, x_NC: Tensor, fixed_N: Tensor, flattening: float = FLATTENING
) -> Tensor:
    """The published acceptance ratio [N] of target p and draft q, for comparison only: it keeps no law.

    The Gaussians are those of the last step, which adds no noise, so x is q's mean and the ratio a test of
    distance; `fixed_N` is exp(sum log std of p - the same of q) over all steps before.
    """
    wide = torch.tensor(flattening).log()
    wide_p, wide_q = (Gaussian(of.mean, of.log_std + wide) for of in (p, q))
    return (wide_p.log_density(x_NC) - wide_q.log_density(x_NC)).exp() * fixed_N


def published_residual(p: Gaussian, q: Gaussian, x_NC: Tensor, fixed_N: Tensor) -> Tensor:
    """The published probability [N] of keeping a proposal from p after a refusal: (p - q / fixed)+ / p."""
    return (1 - (q.log_density(x_NC) - p.log_density(x_NC)).exp() / fixed_N).clamp_min(0)
