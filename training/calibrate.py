"""What a device's gates are worth against its cloud: scores on images the cloud drew, fitted to tables.

Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.decoding.agreement import Learned
from shared.decoding.calibration import Calibration, fit_gate
from shared.decoding.gates import GATES, NEED_FIT, Evidence
from shared.decoding.noise import gumbel
from shared.decoding.warp import Warp, warp_logits
from training.agreement import Example

SCORED = tuple(name for name in GATES if name not in ("never", "always"))
CALIBRATED = tuple(name for name in SCORED if name not in NEED_FIT)  # what scores without being fitted
Scores = Mapping[str, NDArray[np.float32]]


def look(
    seed: int,
    interval: tuple[Tensor, Tensor],
    tokens_T: Tensor,
    warp: Warp,
    learned: Learned | None = None,
) -> Example:
    """One image as the device sees it: `interval` is its centre and radius [T, V] on the cloud's tokens."""
    centre_TV, radius_TV = interval
    places_T = torch.arange(len(tokens_T))
    noise_TV = gumbel(seed, range(len(tokens_T)), centre_TV.shape[-1])
    doubt_TV = warp_logits(centre_TV, warp.unfiltered)
    evidence = Evidence(seed, places_T, doubt_TV, noise_TV, centre_TV, radius_TV, learned)
    return Example(evidence, (warp_logits(centre_TV, warp) + noise_TV).argmax(-1) == tokens_T)


def scores_of(example: Example, names: Iterable[str]) -> Scores:
    """Scores [T] of the gates named, finite."""
    return {name: GATES[name](example.evidence).clamp(-1e6, 1e6).numpy() for name in names}


def score_image(
    seed: int, centre_TV: Tensor, radius_TV: Tensor, tokens_T: Tensor, warp: Warp
) -> tuple[Scores, NDArray[np.bool_]]:
    """Scores [T] of every gate that needs no fit, and where the device's coupled draw equals the cloud's
    token."""
    example = look(seed, (centre_TV, radius_TV), tokens_T, warp)
    return scores_of(example, CALIBRATED), example.agree_T.numpy()


def stacked(examples: Sequence[Example], names: Iterable[str]) -> tuple[Scores, NDArray[np.bool_]]:
    """Scores [N, T] of the gates named, and where the draws agree [N, T]."""
    names = tuple(names)
    scored = [scores_of(example, names) for example in examples]
    agree_NT = np.stack([example.agree_T.numpy() for example in examples])
    return {name: np.stack([image[name] for image in scored]) for name in names}, agree_NT


def fit(  # noqa: PLR0913 - what a table says about itself
    scores: Scores, agree_NT: NDArray[np.bool_], cloud_digest: str, warp: Warp, span: int, prefix_rate: float
) -> Calibration:
    """The table of every gate from scores [N, T]."""
    prefix = int(prefix_rate * agree_NT.shape[1])
    tables = {name: fit_gate(score_NT, agree_NT, span, prefix) for name, score_NT in scores.items()}
    return Calibration(cloud_digest, warp, span, prefix / agree_NT.shape[1], tables)
