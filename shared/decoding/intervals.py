"""From logit intervals to probability intervals and their uncertainty (SPEC section 2).

Knows nothing of models. The paper's symbols and their names here (T positions, V codebook ids):

    c           centre_TV    interval centre, a logit
    r           radius_TV    half width of the interval, a logit, >= 0
    p^l, p^u    Interval.lower_TV, Interval.upper_TV    probability bounds (eqs. 27-30)
    w           upper - lower, the width of a probability interval
    Omega       omega_T      ||w||_1 (eq. 4)
    Sigma       sigma_T      population standard deviation of w (eq. 4)
    U           u_T          Omega * Sigma (eq. 4)
    s           s_TS         the compressed interval from which an interval feature is made (eq. 5)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from shared.errors import InvalidRequest

FUSES = ("midpoint", "tight")
WIDEST = 16  # ids whose interval is kept in the summary
SUMMARY_WIDTH = 6 + 2 * WIDEST

# Lower bounds sum to less than one and upper bounds to more, so that every interval holds a distribution.
MOST_LOWER = 0.99
LEAST_UPPER = 1.01


@dataclass(frozen=True, eq=False)
class Interval:
    """Probability bounds, fp32 [T, V].

    0 <= lower <= softmax(centre) <= upper <= 1 and sum lower <= 1 <= sum upper, within fp32 rounding.
    """

    lower_TV: Tensor
    upper_TV: Tensor

    @property
    def width_TV(self) -> Tensor:
        """w = p^u - p^l, fp32 [T, V]."""
        return self.upper_TV - self.lower_TV


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Eq. 4 per position, fp32 [T]: 0 <= omega <= V, 0 <= sigma <= 1/2, u = omega * sigma."""

    omega_T: Tensor
    sigma_T: Tensor
    u_T: Tensor
    codebook_size: int  # V

    @property
    def scaled_u(self) -> Tensor:
        """U * sqrt(V), fp32 [T]: at most omega^2, whatever V is."""
        return self.u_T * math.sqrt(self.codebook_size)


def inter_fuse(centre_TV: Tensor, radius_TV: Tensor, fuse: str = "midpoint") -> Interval:
    """InterFuse (eqs. 27-30): logit interval [c - r, c + r] -> probability bounds.

    `midpoint` moves one logit and holds the others at their centre; `tight` moves the others the opposite
    way: the hull over every logit vector in the box. Raises InvalidRequest for another `fuse`.
    """
    if fuse not in FUSES:
        raise InvalidRequest(f"unknown fuse {fuse!r}", f"allowed: {', '.join(FUSES)}")
    raw = midpoint_bounds(centre_TV, radius_TV) if fuse == "midpoint" else _tight_bounds(centre_TV, radius_TV)
    lower_TV, upper_TV = raw.lower_TV, raw.upper_TV
    shrink_T1 = (MOST_LOWER / lower_TV.sum(-1, keepdim=True)).clamp(max=1.0)
    grow_T1 = (LEAST_UPPER / upper_TV.sum(-1, keepdim=True)).clamp(min=1.0)
    return Interval(lower_TV * shrink_T1, (upper_TV * grow_T1).clamp(max=1.0))


def midpoint_bounds(centre_TV: Tensor, radius_TV: Tensor) -> Interval:
    """The `midpoint` bounds before their sums are corrected: sigmoid of an id's own log odds -+ r."""
    odds_TV = log_odds(centre_TV)
    return Interval(torch.sigmoid(odds_TV - radius_TV), torch.sigmoid(odds_TV + radius_TV))


def _tight_bounds(centre_TV: Tensor, radius_TV: Tensor) -> Interval:
    centre_TV = _shifted(centre_TV)
    low_TV, high_TV = centre_TV - radius_TV, centre_TV + radius_TV
    lower_TV = torch.sigmoid(low_TV - _logsumexp_others(high_TV))
    return Interval(lower_TV, torch.sigmoid(high_TV - _logsumexp_others(low_TV)))


def _shifted(centre_TV: Tensor) -> Tensor:
    """Probabilities do not see a common shift, but fp32 does: small logits have small rounding errors."""
    return centre_TV.float() - centre_TV.float().amax(-1, keepdim=True)


def log_odds(centre_TV: Tensor) -> Tensor:
    """log p / (1 - p) of every id, fp32 [T, V], exact for the likeliest id as well."""
    centre_TV = _shifted(centre_TV)
    return centre_TV - _logsumexp_others(centre_TV)


def uncertainty(interval: Interval) -> Uncertainty:
    """Omega, Sigma and U of the interval's widths (eq. 4)."""
    width_TV = interval.width_TV
    omega_T = width_TV.sum(-1)
    sigma_T = width_TV.std(-1, correction=0)
    return Uncertainty(omega_T, sigma_T, omega_T * sigma_T, width_TV.shape[-1])


def entropy(log_q_TV: Tensor) -> Tensor:
    """Shannon entropy in nats, fp32 [T]; filtered ids (-inf) count 0 * log 0 = 0."""
    terms_TV: Tensor = torch.special.entr(log_q_TV.float().exp())
    return terms_TV.sum(-1)


def summarise(interval: Interval, log_q_TV: Tensor) -> Tensor:
    """The compressed interval s of eq. 5, fp32 [T, SUMMARY_WIDTH].

    Omega, Sigma, U * sqrt(V), max p^l, max p^u, entropy of q (nats), then the (p^l, p^u) pairs of the 16
    widest ids, widest first, the smaller id first among equals; zeros where V < 16.
    """
    spread = uncertainty(interval)
    most_lower_T, most_upper_T = interval.lower_TV.amax(-1), interval.upper_TV.amax(-1)
    scalars = (spread.omega_T, spread.sigma_T, spread.scaled_u, most_lower_T, most_upper_T, entropy(log_q_TV))
    head_T6 = torch.stack(scalars, -1)
    # A full stable sort, not topk: ties must fall the same way on every machine.
    widest = interval.width_TV.sort(dim=-1, descending=True, stable=True).indices[..., :WIDEST]
    bounds = (interval.lower_TV.gather(-1, widest), interval.upper_TV.gather(-1, widest))
    pairs = torch.stack(bounds, -1).flatten(-2)
    return torch.cat((head_T6, functional.pad(pairs, (0, 2 * WIDEST - pairs.shape[-1]))), -1)


def _logsumexp_others(z_TV: Tensor) -> Tensor:
    """log sum_{k != i} exp(z_k) for every i.

    Away from the maximum it is LSE + log(1 - exp(z_i - LSE)): there p_i <= 1/2, so nothing cancels. At the
    maximum that difference vanishes in fp32 once p_i > 1 - 2**-24, so there the sum is taken without it.
    """
    top_T1 = z_TV.argmax(-1, keepdim=True)
    total_T1 = z_TV.logsumexp(-1, keepdim=True)
    others_TV = total_T1 + torch.log1p(-(z_TV - total_T1).exp())
    without_top_T1 = z_TV.scatter(-1, top_T1, -torch.inf).logsumexp(-1, keepdim=True)
    return others_TV.scatter(-1, top_T1, without_top_T1)
