"""Several Inter-Heads as one logit interval (SPEC section 2). Knows nothing of models.

Whatever the number of heads, gates, features and draws see one centre and one radius per id:

    ensemble  the mean of the heads' probabilities; the radius is the one whose midpoint bounds are as wide as
              the mean of the heads' bounds, so that Omega, Sigma and U are those of the mean bounds
    voting    id by id the median of the heads' log-probabilities and of their radii: what most heads say
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from shared.decoding.intervals import log_odds, midpoint_bounds
from shared.errors import InvalidRequest


def check_combination(name: str) -> str:
    """The name. Raises InvalidRequest naming the allowed ones."""
    if name not in COMBINATIONS:
        raise InvalidRequest(f"unknown combination of heads {name!r}", f"allowed: {', '.join(COMBINATIONS)}")
    return name


def combine_centres(name: str, centre_HTV: Tensor) -> Tensor:
    """One centre of H: fp32 [T, V]; that of a single head is untouched."""
    return centre_HTV[0] if len(centre_HTV) == 1 else COMBINATIONS[name][0](centre_HTV)


def combine_radii(name: str, centre_HTV: Tensor, radius_HTV: Tensor) -> Tensor:
    """One radius of H heads with these centres: fp32 [T, V]; that of a single head is untouched."""
    return radius_HTV[0] if len(radius_HTV) == 1 else COMBINATIONS[name][1](centre_HTV, radius_HTV)


def _mixture(centre_HTV: Tensor) -> Tensor:
    return centre_HTV.log_softmax(-1).logsumexp(0) - math.log(len(centre_HTV))


def _majority(centre_HTV: Tensor) -> Tensor:
    return _median(centre_HTV.log_softmax(-1))


def _median(value_HTV: Tensor) -> Tensor:
    """The middle one, the mean of the middle two where H is even."""
    ranked_HTV = value_HTV.sort(0).values
    return (ranked_HTV[(len(ranked_HTV) - 1) // 2] + ranked_HTV[len(ranked_HTV) // 2]) / 2


def _as_wide_as_the_mean(centre_HTV: Tensor, radius_HTV: Tensor) -> Tensor:
    """Solve sigmoid(x + r) - sigmoid(x - r) = w for r, with x the log odds of the mixture and w the mean
    width.

    That width is sinh r / (cosh r + cosh x), so y = e^r solves (1 - w) y^2 - 2 w cosh(x) y - (1 + w) = 0.
    """
    bounds = midpoint_bounds(centre_HTV, radius_HTV)
    width_TV = bounds.width_TV.double().mean(0).clamp(max=1 - 1e-6)
    b_TV = width_TV * log_odds(_mixture(centre_HTV)).double().clamp(-300, 300).cosh()
    root_TV = (b_TV + (b_TV.square() + 1 - width_TV.square()).sqrt()) / (1 - width_TV)
    return root_TV.log().clamp(min=0).float()


def _median_radius(_centre_HTV: Tensor, radius_HTV: Tensor) -> Tensor:
    return _median(radius_HTV)


Combination = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
COMBINATIONS: Mapping[str, Combination] = MappingProxyType(
    {"ensemble": (_mixture, _as_wide_as_the_mean), "voting": (_majority, _median_radius)}
)
