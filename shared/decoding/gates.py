"""When does the device ask? Every gate scores positions; ask iff score > threshold (SPEC section 4).

Knows nothing of thresholds, models or networks: a gate reads one Evidence and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from shared.decoding import intervals, noise
from shared.errors import InvalidRequest


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the device knows about T positions when it must decide.

    position_T           int64, image positions
    log_q_TV             log-probabilities of the device under `Warp.unfiltered`: drawn from is what top-k and
                         top-p leave of them, but what they cut away is doubt too
    noise_TV             the Gumbel noise g shared with the cloud
    centre_TV, radius_TV the Inter-Head's logit interval
    """

    seed: int
    position_T: Tensor
    log_q_TV: Tensor
    noise_TV: Tensor
    centre_TV: Tensor
    radius_TV: Tensor


Gate = Callable[[Evidence], Tensor]


def _interval(evidence: Evidence) -> Tensor:
    """U * sqrt(V) of eq. 4, with the midpoint fuse."""
    bounds = intervals.inter_fuse(evidence.centre_TV, evidence.radius_TV)
    return intervals.uncertainty(bounds).scaled_u


def _margin(evidence: Evidence) -> Tensor:
    """Minus the gap between the two largest log q + g; -inf (certain) when a single id survived the warp."""
    best_T2 = (evidence.log_q_TV + evidence.noise_TV).topk(2, dim=-1).values
    return best_T2[..., 1] - best_T2[..., 0]


def _entropy(evidence: Evidence) -> Tensor:
    """Entropy of q in nats."""
    return intervals.entropy(evidence.log_q_TV)


def _softmax(evidence: Evidence) -> Tensor:
    """1 - max q."""
    return 1.0 - evidence.log_q_TV.amax(-1).exp()


def _random(evidence: Evidence) -> Tensor:
    """A uniform keyed by (seed, t): a threshold tau asks with probability 1 - tau."""
    u_T1 = noise.uniform(evidence.seed, evidence.position_T.cpu().numpy(), 1, noise.GATE)
    return torch.from_numpy(u_T1[:, 0]).to(evidence.log_q_TV.device, torch.float32)


def _never(evidence: Evidence) -> Tensor:
    """-inf: below every threshold."""
    return torch.full_like(evidence.log_q_TV[:, 0], -torch.inf)


def _always(evidence: Evidence) -> Tensor:
    """+inf: above every finite threshold."""
    return torch.full_like(evidence.log_q_TV[:, 0], torch.inf)


GATES: Mapping[str, Gate] = MappingProxyType(
    {
        "interval": _interval,
        "margin": _margin,
        "entropy": _entropy,
        "softmax": _softmax,
        "random": _random,
        "never": _never,
        "always": _always,
    }
)


def gate(name: str) -> Gate:
    """The gate of that name: Evidence -> scores, fp32 [T]. Raises InvalidRequest naming the allowed ones."""
    if name not in GATES:
        raise InvalidRequest(f"unknown gate {name!r}", f"allowed: {', '.join(GATES)}")
    return GATES[name]
