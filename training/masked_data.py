"""The shapes of the small MAR, and what a step of it learns from: tokens of pictures, masks, states of the
diffusion. No trained weights.

Shapes: B images, L tokens, C token width, N masked tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.decoding.diffusion import STEPS, Schedule, at
from shared.models.families.mar import MARConfig, MARModel, TowerConfig, patched
from shared.models.kl_vae import KLVAE, KLConfig
from training.data import keyed_generator
from training.presets import FIRST

WIDTH, HEADS, HEAD_WIDTH = 96, 4, 192
CLOUD_DEPTH, CLOUD_HEAD = 3, 3
TOKENS, BUFFER = 64, 8
# Of the heads' idea of a token, whose numbers have a deviation of 1. Without it the first steps enlarge what
# a head of this size gets wrong three hundred times, and the picture is noise.
CLIP = 3.0
# Pictures of 64 px as 8 x 8 tokens of sixteen numbers.
KL = KLConfig(
    ch=16, ch_mult=(1, 2, 4), z_channels=16, latent=16, encoder_res=1, decoder_res=1, encoder_attention=(),
    patch=2, norm_groups=8, middle=False, linear_path=True,
)  # fmt: skip
_LEAST, _SPREAD = 0.7, 0.25  # share of tokens that are masked: a normal around 1, cut at both ends


def mar_shape(depth: int, head_depth: int) -> MARConfig:
    """The small MAR with so many blocks in each tower and in its head; the cloud's has CLOUD_DEPTH and
    CLOUD_HEAD."""
    tower = TowerConfig(WIDTH, depth, HEADS, 4 * WIDTH)
    return MARConfig(tower, tower, TOKENS, KL.latent, BUFFER, len(FIRST), HEAD_WIDTH, head_depth)


@dataclass(frozen=True, eq=False)
class Lesson:
    """One step: tokens and which of them are masked, and for each masked token, as often as `turns` says, a
    state [N, C] at an original step [N] of its diffusion with the noise [N, C] in it."""

    tokens_BLC: Tensor
    masked_BL: Tensor
    target_NC: Tensor
    state_NC: Tensor
    noise_NC: Tensor
    t_N: Tensor
    turns: int

    def of_masked(self, z_BLD: Tensor) -> Tensor:
        """What stands at the masked places of [B, L, D], as often as there are states of them: [N, D]."""
        return z_BLD[self.masked_BL].repeat(self.turns, 1)


@torch.no_grad()
def encoded(vae: KLVAE, image_B3HW: Tensor, seed: int, step: int) -> Tensor:
    """Tokens [B, L, C] of pictures, sampled with noise keyed by (seed, step)."""
    rng = keyed_generator(seed, step)
    side = image_B3HW.shape[-1] // vae.config.factor
    noise = rng.standard_normal((len(image_B3HW), vae.config.latent, side, side), dtype=np.float32)
    return patched(vae.encode(image_B3HW, torch.from_numpy(noise)), 1)


def lesson(tokens_BLC: Tensor, schedule: Schedule, seed: int, step: int, turns: int = 2) -> Lesson:
    """Masks of one size for all images, then states at steps drawn evenly; keyed by (seed, step)."""
    rng = keyed_generator(seed, step)
    images, tokens, _ = tokens_BLC.shape
    share = 0.0
    while not _LEAST <= share <= 1:
        share = 1 + _SPREAD * float(rng.standard_normal())
    order_BL = torch.from_numpy(rng.random((images, tokens))).argsort(1)
    masked_BL = order_BL < int(np.ceil(share * tokens))
    target_NC = tokens_BLC[masked_BL].repeat(turns, 1)
    noise_NC = torch.from_numpy(rng.standard_normal(target_NC.shape, dtype=np.float32))
    t_N = torch.from_numpy(rng.integers(0, STEPS, len(target_NC)))
    kept = at(schedule.kept, t_N, target_NC)
    state_NC = kept.sqrt() * target_NC + (1 - kept).sqrt() * noise_NC
    return Lesson(tokens_BLC, masked_BL, target_NC, state_NC, noise_NC, t_N, turns)


def conditions(model: MARModel, labels_B: Tensor) -> Tensor:
    """Conditions [B, De]; a class beyond the last one is none."""
    nothing = model.config.classes
    some_BD = model.classes(labels_B.clamp(max=nothing - 1))
    return torch.where((labels_B == nothing)[:, None], model.nothing(len(labels_B)), some_BD)
