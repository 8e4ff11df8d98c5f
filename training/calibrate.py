"""What a device's gates are worth against its cloud: scores on images the cloud drew, fitted to tables.

Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.decoding.calibration import Calibration, fit_gate
from shared.decoding.gates import GATES, Evidence
from shared.decoding.noise import gumbel
from shared.decoding.warp import Warp, warp_logits

CALIBRATED = tuple(name for name in GATES if name not in ("never", "always"))
Scores = Mapping[str, NDArray[np.float32]]


def score_image(
    seed: int, centre_TV: Tensor, radius_TV: Tensor, tokens_T: Tensor, warp: Warp
) -> tuple[Scores, NDArray[np.bool_]]:
    """Scores [T] of every calibrated gate, and where the device's coupled draw equals the cloud's token."""
    places_T = torch.arange(len(tokens_T))
    log_q_TV = warp_logits(centre_TV, warp)
    noise_TV = gumbel(seed, range(len(tokens_T)), centre_TV.shape[-1])
    doubt_TV = warp_logits(centre_TV, warp.unfiltered)
    evidence = Evidence(seed, places_T, doubt_TV, noise_TV, centre_TV, radius_TV)
    scores = {name: GATES[name](evidence).clamp(-1e6, 1e6).numpy() for name in CALIBRATED}
    return scores, ((log_q_TV + noise_TV).argmax(-1) == tokens_T).numpy()


def fit(  # noqa: PLR0913 - what a table says about itself
    scores: Scores, agree_NT: NDArray[np.bool_], cloud_digest: str, warp: Warp, span: int, prefix_rate: float
) -> Calibration:
    """The table of every gate from scores [N, T]."""
    prefix = int(prefix_rate * agree_NT.shape[1])
    tables = {name: fit_gate(score_NT, agree_NT, span, prefix) for name, score_NT in scores.items()}
    return Calibration(cloud_digest, warp, span, prefix_rate, tables)
