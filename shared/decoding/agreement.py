"""What is fitted for the gates of one device: the agreement gate's small network, and factors on radii.

The network estimates how likely the cloud, with the SAME noise, draws another token than the device
(SPEC section 4). Knows nothing of files, training or thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from shared.decoding import intervals
from shared.errors import InvalidRequest

SCALARS = 8
HIDDEN = 64
# Radii are scaled by how likely the device thinks an id is: edges between bands, in nats of log q.
BAND_EDGES = (-14.0, -11.0, -8.0, -6.0, -4.0, -2.0, -0.5)
BANDS = len(BAND_EDGES) + 1
LEAST_LOG_Q = -30.0  # a filtered id counts as this unlikely, an unrivalled draw as this far ahead


@dataclass(frozen=True, eq=False)
class Learned:
    """Fitted for one device, one cloud and one warp; all fp32. Raises InvalidRequest for other shapes.

    w1_HS, b1_H  first layer, 8 scalars -> 64; the scalars' mean and scale are folded in
    w2_H, b2     second layer, 64 -> 1
    factor_B     per band of log q, and
    power        what turns a radius r into the 90 % quantile of |log p - log q|: factor * r^power; power 0
                 where the band alone tells more than the radius
    """

    w1_HS: Tensor
    b1_H: Tensor
    w2_H: Tensor
    b2: Tensor
    factor_B: Tensor
    power: Tensor

    def __post_init__(self) -> None:
        for name, shape in LEARNED_SHAPES.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise InvalidRequest(f"the gate's {name} has shape {found}", f"expected {shape}")


LEARNED_SHAPES: dict[str, tuple[int, ...]] = dict(
    zip(
        (item.name for item in fields(Learned)),
        ((HIDDEN, SCALARS), (HIDDEN,), (HIDDEN,), (), (BANDS,), ()),
        strict=True,
    )
)


def scalars(log_q_TV: Tensor, noise_TV: Tensor) -> Tensor:
    """What the network reads, fp32 [T, 8].

    Entropy of q (nats); the three largest q; the gap between the two largest log q + g; log q of those two;
    whether the draw is q's argmax. With V = 2 the third q is 0.
    """
    top_T3 = _top_three(log_q_TV)
    perturbed = (log_q_TV + noise_TV).topk(2, dim=-1)
    gap_T1 = (perturbed.values[:, :1] - perturbed.values[:, 1:]).clamp(max=-LEAST_LOG_Q)
    log_q_T2 = log_q_TV.gather(-1, perturbed.indices).clamp(min=LEAST_LOG_Q)
    is_mode_T1 = (perturbed.indices[:, :1] == log_q_TV.argmax(-1, keepdim=True)).float()
    return torch.cat([intervals.entropy(log_q_TV)[:, None], top_T3, gap_T1, log_q_T2, is_mode_T1], -1).float()


def disagreement(learned: Learned, scalars_TS: Tensor) -> Tensor:
    """Log-odds that the draws differ, fp32 [T]: gelu between the layers."""
    hidden_TH = torch.nn.functional.gelu(scalars_TS @ learned.w1_HS.T + learned.b1_H)
    return hidden_TH @ learned.w2_H + learned.b2


def scaled_radii(learned: Learned | None, log_q_TV: Tensor, radius_TV: Tensor) -> Tensor:
    """Radii in units of log q [T, V]: as they are where nothing was fitted."""
    if learned is None:
        return radius_TV
    return learned.factor_B[band(log_q_TV)] * radius_TV**learned.power


def band(log_q_TV: Tensor) -> Tensor:
    """The band of each log q, int64 [T, V], 0 .. BANDS - 1."""
    return torch.bucketize(log_q_TV, torch.tensor(BAND_EDGES))


def _top_three(log_q_TV: Tensor) -> Tensor:
    top = log_q_TV.topk(min(3, log_q_TV.shape[-1]), dim=-1).values.exp()
    return torch.nn.functional.pad(top, (0, 3 - top.shape[-1]))
