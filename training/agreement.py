"""Fits what the gates of one device learn: the agreement network, and the factors on radii.

Everything is keyed by a seed. Knows nothing of files or of how images were drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.decoding.agreement import (
    BANDS,
    HIDDEN,
    LEARNED_SHAPES,
    SCALARS,
    Learned,
    band,
    disagreement,
    scalars,
)
from shared.decoding.calibration import auroc
from shared.decoding.gates import Evidence, gate

COVERAGE = 0.9  # of the cloud's log p by the scaled interval, in each band
POWERS = (0.0, 0.5, 1.0)  # of the radius, tried in turn
CERTIFICATE = gate("certificate")
_NO_NETWORK = Learned(**{name: torch.zeros(shape) for name, shape in LEARNED_SHAPES.items()})
_BATCH = 2048
_RATE = 3e-3


@dataclass(frozen=True, eq=False)
class Example:
    """One image the cloud drew, as the device sees it teacher-forced.

    evidence  of all T places
    agree_T   where the device's draw equals the cloud's
    """

    evidence: Evidence
    agree_T: Tensor


def fit_learned(
    examples: Sequence[Example], log_p: Sequence[Tensor], steps: int = 1000, seed: int = 0
) -> Learned:
    """The agreement network of a device, trained with BCE on "the draws differ", and its radii.

    log_p  the cloud's, unfiltered, [T, V], of the first few examples: they scale the radii
    """
    factor_B, power = _radii(examples, log_p)
    read_NS = torch.cat([scalars(e.evidence.log_q_TV, e.evidence.noise_TV) for e in examples])
    differ_N = torch.cat([~e.agree_T for e in examples]).float()
    mean_S, scale_S = read_NS.mean(0), read_NS.std(0).clamp(min=1e-3)
    w1_HS, b1_H, w2_H, b2 = _train((read_NS - mean_S) / scale_S, differ_N, steps, seed)
    w1_HS = w1_HS / scale_S
    return Learned(w1_HS, b1_H - w1_HS @ mean_S, w2_H, b2, factor_B, power)


def _train(read_NS: Tensor, differ_N: Tensor, steps: int, seed: int) -> list[Tensor]:
    """Adam on batches drawn with replacement; the rate falls along a cosine."""
    rng = torch.Generator().manual_seed(seed)
    sizes = {(HIDDEN, SCALARS): SCALARS**-0.5, (HIDDEN,): HIDDEN**-0.5}
    w1_HS, w2_H = (torch.randn(shape, generator=rng) * scale for shape, scale in sizes.items())
    b1_H, b2 = torch.zeros(HIDDEN), torch.zeros(())
    weights = [w1_HS, b1_H, w2_H, b2]
    learned = replace(_NO_NETWORK, w1_HS=w1_HS, b1_H=b1_H, w2_H=w2_H, b2=b2)
    for weight in weights:
        weight.requires_grad_()
    optimizer = torch.optim.AdamW(weights, lr=_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(read_NS), (_BATCH,), generator=rng)
        loss = F.binary_cross_entropy_with_logits(disagreement(learned, read_NS[rows]), differ_N[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return [weight.detach() for weight in weights]


def _radii(examples: Sequence[Example], log_p: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Factors and power: of the powers tried, the one whose certificate ranks best on the examples."""
    differ_N = torch.cat([~e.agree_T for e in examples]).numpy()
    tried = []
    for power in map(torch.tensor, POWERS):
        factor_B = radius_factors([e.evidence for e in examples[: len(log_p)]], log_p, power)
        learned = replace(_NO_NETWORK, factor_B=factor_B, power=power)
        scores = [CERTIFICATE(replace(e.evidence, learned=learned)) for e in examples]
        tried.append((auroc(torch.cat(scores).numpy(), differ_N), factor_B, power))
    _, factor_B, power = max(tried, key=lambda found: found[0])
    return factor_B, power


def radius_factors(evidence: Sequence[Evidence], log_p: Sequence[Tensor], power: Tensor) -> Tensor:
    """Per band of log q, the 90 % quantile of |log p - log q| / r^power, fp32 [BANDS]; 1 for a band without
    ids."""
    ratio, where = [], []
    for known, log_p_TV in zip(evidence, log_p, strict=True):
        off_TV = (log_p_TV - known.log_q_TV).abs() / (known.radius_TV**power).clamp(min=1e-6)
        ratio.append(off_TV.flatten())
        where.append(band(known.log_q_TV).flatten())
    ratios, bands = torch.cat(ratio), torch.cat(where)
    return torch.tensor([_quantile(ratios[bands == index]) for index in range(BANDS)])


def _quantile(values: Tensor) -> float:
    if not len(values):
        return 1.0
    place = min(int(COVERAGE * len(values)), len(values) - 1)
    return float(values.kthvalue(place + 1).values)
