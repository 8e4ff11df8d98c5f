"""Sequences in which the device's kept tokens stand in for the cloud's. Knows nothing of bridges.

The places where the device asks hold the cloud's own tokens; where its gate is sure stands what it draws with
the image's noise. A token it keeps changes what it draws behind it, so the device is run a few times over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.decoding.gates import GATES, Evidence
from shared.decoding.intervals import inter_fuse, summarise
from shared.decoding.noise import gumbel
from shared.decoding.warp import Warp, warp_logits
from shared.errors import InvalidRequest
from shared.models.inter_head import DeviceModel
from training.calibrate import CALIBRATED
from training.device import forced_hidden


@dataclass(frozen=True)
class Keeping:
    """How much the device keeps. Raises InvalidRequest for a value out of range.

    gate    whose least scores are kept; one that scores without being fitted
    least, most   the share of places kept behind the prefix is drawn between them, image by image
    prefix_rate   rho: the cloud draws the first floor(rho * T) tokens
    passes  runs of the device over its own tokens
    """

    gate: str = "entropy"
    least: float = 0.3
    most: float = 0.8
    prefix_rate: float = 0.06
    passes: int = 2

    def __post_init__(self) -> None:
        if self.gate not in CALIBRATED:
            raise InvalidRequest(f"unknown gate {self.gate!r}", f"allowed: {', '.join(CALIBRATED)}")
        if not 0 < self.least <= self.most <= 1:
            why = "allowed: above 0, up to 1, the least first"
            raise InvalidRequest(f"shares kept {self.least} to {self.most} are not allowed", why)
        if not 0 <= self.prefix_rate < 1 or self.passes < 1:
            found = f"prefix rate {self.prefix_rate}, passes {self.passes}"
            raise InvalidRequest(f"{found} are not allowed", "allowed: 0 to below 1, from 1")

    def shares(self, rng: np.random.Generator, images: int) -> NDArray[np.float64]:
        """How much of each image is kept, [B]."""
        return rng.uniform(self.least, self.most, images)


@dataclass(frozen=True, eq=False)
class Replayed:
    """Images [B, T] with the device's tokens where `kept_BT`, their noise, and what features are made of
    (eq. 5)."""

    tokens_BT: Tensor
    kept_BT: Tensor
    hidden_BTD: Tensor
    summary_BTS: Tensor
    noise_BTV: Tensor

    @property
    def heard_BT(self) -> Tensor:
        """Places that a kept token stands before: only there can features change anything."""
        before = self.kept_BT.cumsum(-1)
        return torch.cat([torch.zeros_like(before[:, :1]), before[:, :-1]], 1) > 0


def replay(  # noqa: PLR0913 - images and how they are replayed
    device: DeviceModel,
    captions: Sequence[str],
    tokens_BT: Tensor,
    seeds: Sequence[int],
    keeping: Keeping,
    shares: Sequence[float],
    warp: Warp,
) -> Replayed:
    """Replay images that the cloud drew from `seeds` under `warp`."""
    rows = 1 if device.config.distilled_guidance is not None or warp.guidance == 1 else 2
    config, prefix = device.base.config, int(keeping.prefix_rate * tokens_BT.shape[1])
    places_T = torch.arange(config.image_tokens)
    noise_BTV = torch.stack([gumbel(seed, range(len(places_T)), config.vocab_size) for seed in seeds])
    noise_BTV = noise_BTV.to(tokens_BT.device)
    replayed_BT = tokens_BT
    for _ in range(keeping.passes):
        hidden_RBTD = forced_hidden(device, captions, replayed_BT, rows)
        centre_BTV, radius_BTV = device.centre(hidden_RBTD, warp.guidance), device.radius(hidden_RBTD[0])
        doubt_BTV = warp_logits(centre_BTV, warp.unfiltered)
        read = zip(seeds, doubt_BTV, noise_BTV, centre_BTV, radius_BTV, strict=True)
        score = [
            GATES[keeping.gate](Evidence(seed, places_T, q, g, c, r)) for seed, q, g, c, r in read
        ]
        kept_BT = surest(torch.stack(score), shares, prefix)
        drawn_BT = (warp_logits(centre_BTV, warp) + noise_BTV).argmax(-1)
        replayed_BT = torch.where(kept_BT, drawn_BT, tokens_BT)
    summary_BTS = summarise(inter_fuse(centre_BTV, radius_BTV), doubt_BTV)
    return Replayed(replayed_BT, kept_BT, hidden_RBTD[0], summary_BTS, noise_BTV)


def surest(score_BT: Tensor, shares: Sequence[float], prefix: int) -> Tensor:
    """True at the share of places behind the prefix with the least scores: bool [B, T]."""
    kept_BT = torch.zeros_like(score_BT, dtype=torch.bool)
    for row, share in enumerate(shares):
        behind = score_BT[row, prefix:]
        count = max(1, round(share * len(behind)))
        kept_BT[row, prefix + behind.argsort(stable=True)[:count]] = True
    return kept_BT
