"""When does the device ask? Every gate scores positions; ask iff score > threshold (SPEC section 4).

Knows nothing of thresholds, models or networks: a gate reads one Evidence and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from shared.decoding import agreement, intervals, noise
from shared.errors import InvalidRequest

VECTORS = 8  # k of the gate `discrete`
MOST_VECTORS = 64
NEED_FIT = frozenset({"agreement"})  # gates that score only with Evidence.learned
_READ_RADII = re.compile(r"interval|certificate|discrete(\(.*\))?")


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the device knows about T positions when it must decide.

    position_T           int64, image positions
    log_q_TV             log-probabilities of the device under `Warp.unfiltered`: drawn from is what top-k and
                         top-p leave of them, but what they cut away is doubt too
    noise_TV             the Gumbel noise g shared with the cloud
    centre_TV, radius_TV the Inter-Head's logit interval
    learned              what was fitted for this device; `agreement` needs it, radii are scaled by it
    """

    seed: int
    position_T: Tensor
    log_q_TV: Tensor
    noise_TV: Tensor
    centre_TV: Tensor
    radius_TV: Tensor
    learned: agreement.Learned | None = None


Gate = Callable[[Evidence], Tensor]


def _interval(evidence: Evidence) -> Tensor:
    """U * sqrt(V) of eq. 4, with the midpoint fuse."""
    bounds = intervals.inter_fuse(evidence.centre_TV, evidence.radius_TV)
    return intervals.uncertainty(bounds).scaled_u


def _margin(evidence: Evidence) -> Tensor:
    """Minus the gap between the two largest log q + g; -inf (certain) when a single id survived the warp."""
    best_T2 = (evidence.log_q_TV + evidence.noise_TV).topk(2, dim=-1).values
    return best_T2[..., 1] - best_T2[..., 0]


def _agreement(evidence: Evidence) -> Tensor:
    """Log-odds that the cloud's draw differs, from 8 scalars of q and the shared noise. Raises
    InvalidRequest where nothing was fitted."""
    if evidence.learned is None:
        raise InvalidRequest(
            "gate 'agreement' was not fitted for this device", "it is a small network", "run ciar-train gate"
        )
    read_TS = agreement.scalars(evidence.log_q_TV, evidence.noise_TV)
    return agreement.disagreement(evidence.learned, read_TS)


def _certificate(evidence: Evidence) -> Tensor:
    """Minus the largest lambda at which the draw x is certain: -min_j (z_x - z_j) / (r_x + r_j).

    z = log q + g. Were the cloud's log p within lambda * r of log q everywhere, it would draw x as well.
    """
    log_q_TV = evidence.log_q_TV
    perturbed_TV = log_q_TV + evidence.noise_TV
    radius_TV = agreement.scaled_radii(evidence.learned, log_q_TV, evidence.radius_TV)
    drawn_T1 = perturbed_TV.argmax(-1, keepdim=True)
    gap_TV = perturbed_TV.gather(-1, drawn_T1) - perturbed_TV
    reach_TV = (radius_TV.gather(-1, drawn_T1) + radius_TV).clamp(min=1e-6)
    return -(gap_TV / reach_TV).scatter(-1, drawn_T1, torch.inf).amin(-1)


def discrete(k: int) -> Gate:
    """U * sqrt(V) of the hull of k distributions, whose logits are drawn inside the interval: O(kV).

    The uniforms are keyed by (seed, t). Raises InvalidRequest for fewer than 2 vectors or more than 64.
    """
    if not 2 <= k <= MOST_VECTORS:
        raise InvalidRequest(f"gate 'discrete' with {k} vectors", f"allowed: 2 to {MOST_VECTORS}")

    def score(evidence: Evidence) -> Tensor:
        rows, size = evidence.centre_TV.shape
        u = noise.uniform(evidence.seed, evidence.position_T.cpu().numpy(), k * size, noise.VECTORS)
        u_TKV = torch.from_numpy(u).to(evidence.centre_TV).reshape(rows, k, size)
        logits_TKV = evidence.centre_TV[:, None] + (2 * u_TKV - 1) * evidence.radius_TV[:, None]
        probs_TKV = logits_TKV.softmax(-1)
        hull = intervals.Interval(probs_TKV.amin(1), probs_TKV.amax(1))
        return intervals.uncertainty(hull).scaled_u

    return score


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
        "agreement": _agreement,
        "certificate": _certificate,
        "entropy": _entropy,
        "softmax": _softmax,
        "random": _random,
        "discrete": discrete(VECTORS),
        "never": _never,
        "always": _always,
    }
)


def gate(name: str) -> Gate:
    """The gate of that name: Evidence -> scores, fp32 [T]; "discrete(k)" is `discrete` with k vectors.

    Raises InvalidRequest naming the allowed ones.
    """
    if match := re.fullmatch(r"discrete\((\d{1,3})\)", name):
        return discrete(int(match[1]))
    if name not in GATES:
        raise InvalidRequest(f"unknown gate {name!r}", f"allowed: {', '.join(GATES)}")
    return GATES[name]


def reads_radii(name: str) -> bool:
    """Whether the Inter-Head must run before this gate can score."""
    return _READ_RADII.fullmatch(name) is not None


def reads_seed(name: str) -> bool:
    """Whether Evidence.seed moves the score: then evidence of several images cannot be scored at once."""
    return name == "random" or name.startswith("discrete")
