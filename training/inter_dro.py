"""The loss of the device model, Inter-DRO (eqs. 9 to 12, SPEC section 7). Knows no models.

N positions, V codebook ids: the teacher's distribution p_NV, the student's interval centre_NV -+ radius_NV.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.decoding.intervals import inter_fuse
from shared.errors import InvalidRequest

BOUNDS = ("logit", "prob")
TERMS = ("anchor", "lower", "upper", "centre")


@dataclass(frozen=True)
class InterDRO:
    """Weights and switches of the loss (eqs. 9 to 12). Raises InvalidRequest for unknown bounds, and where
    nothing is left to learn from."""

    bounds: str = "logit"  # how lower and upper enter: softmax(c -+ r), or the fused p^l and p^u
    absolute: float = 1.0  # lambda_v of eq. 9
    entropy: float = 0.1  # lambda_p of eq. 9
    centre: float = 1.0  # lambda_b of eq. 11
    alpha: float = 1.0  # sharpness of the worst-case weights of eq. 10
    use_anchor: bool = True  # of the centre; the bounds' own anchors go with them
    use_lower: bool = True  # its anchor and the worst case
    use_upper: bool = True
    use_centre: bool = True

    def __post_init__(self) -> None:
        if self.bounds not in BOUNDS:
            raise InvalidRequest(f"unknown bounds {self.bounds!r}", f"allowed: {', '.join(BOUNDS)}")
        if not any(getattr(self, f"use_{name}") for name in TERMS):
            raise InvalidRequest("every term of the loss is off", f"leave one of {', '.join(TERMS)} on")

    def without(self, *terms: str) -> InterDRO:
        """The same loss with terms switched off. Raises InvalidRequest for an unknown one."""
        unknown = sorted(set(terms) - set(TERMS))
        if unknown:
            raise InvalidRequest(f"unknown terms of the loss {unknown}", f"allowed: {', '.join(TERMS)}")
        off: dict[str, Any] = {f"use_{term}": False for term in terms}
        return replace(self, **off)


def inter_dro(loss: InterDRO, centre_NV: Tensor, radius_NV: Tensor, p_NV: Tensor) -> dict[str, Tensor]:
    """The terms of eq. 12 over N positions, each a scalar; a term that is switched off is absent.

    Eq. 9 anchors a distribution d to the teacher p: lambda_v ||d - p||_1 + lambda_p CE(p, d). Eq. 10 weighs
    the cross entropy of the lower bound towards its worst positions: the mean over positions under weights
    N softmax(alpha CE). Eq. 11 is KL(p || softmax c).
    """
    log_centre, log_low, log_high = _log_bounds(loss.bounds, centre_NV, radius_NV)
    terms: dict[str, Tensor] = {}
    named = {"anchor": (loss.use_anchor, log_centre), "upper": (loss.use_upper, log_high)}
    for name, (used, log_d) in {**named, "lower": (loss.use_lower, log_low)}.items():
        if used:
            terms[name] = _anchor(loss, log_d, p_NV)
    if loss.use_centre:
        kl = F.kl_div(log_centre, p_NV, reduction="batchmean")
        terms["centre"] = loss.centre * kl
    if loss.use_lower:
        cross_N = -(p_NV * log_low).sum(-1)
        weight_N = (loss.alpha * cross_N.detach()).softmax(0)
        terms["worst_case"] = (weight_N * cross_N).sum()
    return terms


def heads_loss(loss: InterDRO, centre_HNV: Tensor, radius_HNV: Tensor, p_NV: Tensor) -> dict[str, Tensor]:
    """Every head learns for itself; the terms are means over the heads."""
    each = [inter_dro(loss, c_NV, r_NV, p_NV) for c_NV, r_NV in zip(centre_HNV, radius_HNV, strict=True)]
    return {name: torch.stack([terms[name] for terms in each]).mean() for name in each[0]}


def _log_bounds(bounds: str, centre_NV: Tensor, radius_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_centre = centre_NV.log_softmax(-1)
    if bounds == "logit":
        return log_centre, (centre_NV - radius_NV).log_softmax(-1), (centre_NV + radius_NV).log_softmax(-1)
    fused = inter_fuse(centre_NV, radius_NV)
    return log_centre, fused.lower_TV.clamp(min=1e-12).log(), fused.upper_TV.clamp(min=1e-12).log()


def _anchor(loss: InterDRO, log_d_NV: Tensor, p_NV: Tensor) -> Tensor:
    absolute = (log_d_NV.exp() - p_NV).abs().sum(-1).mean()
    return loss.absolute * absolute + loss.entropy * -(p_NV * log_d_NV).sum(-1).mean()
