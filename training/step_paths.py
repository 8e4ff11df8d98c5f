"""Paths of the large DiT from noise to a latent, as its small companion sees them: what it said at each step.

On a path of the cloud's own every step is taken with its noise; on a mixed one the cloud is asked at equal
distances, and the steps between are taken with what the device guessed, so that it meets the states it leads
to. The cloud looks at every state in either case, for it is what there is to learn.

Shapes: N images, T steps, C channels, H the side of the latent, P patches, D width, F features a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from shared.decoding.denoising import Denoising, extrapolated
from shared.models.by_step import latent_shape
from shared.models.families.dit import DiTModel
from shared.models.families.dit_device import NOBODY, Anchor, StepDevice
from training.data import keyed_generator

AT_A_TIME = 8  # images
GUIDANCES = (1.5, 3.0)  # drawn between these


@dataclass(frozen=True, eq=False)
class Paths:
    """States and guided noises [N, T, C, H, H], last hidden states [N, T, P, D], all fp16; classes [N],
    guidance [N]; steps between two that the cloud was asked at [N], 1 on its own paths."""

    state: Tensor
    eps: Tensor
    hidden: Tensor
    label: Tensor
    guidance: Tensor
    gap: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def anchor(self, image_B: Tensor, step_B: Tensor, original_T: Tensor, projection_DF: Tensor) -> Anchor:
        """What the cloud said of those images at those steps; steps below 0: nothing."""
        known, place_B = step_B >= 0, step_B.clamp(min=0)
        mask = known.float()[:, None, None]
        eps = self.eps[image_B, place_B].float() * mask[..., None]
        features = self.hidden[image_B, place_B].float() @ projection_DF * mask
        original_B = torch.where(known, original_T[place_B], torch.tensor(NOBODY))
        return Anchor(original_B, eps, features)

    def asked(
        self, image_B: Tensor, place_B: Tensor, rng: np.random.Generator, furthest: int
    ) -> tuple[Tensor, Tensor]:
        """The last two steps [B] before a place that the cloud was asked at; -1: none. On its own paths those
        may be any, `furthest` steps apart at most: there it was asked at all."""
        drawn_2B = torch.from_numpy(rng.integers(1, furthest + 1, (2, len(place_B))))
        gap_B = self.gap[image_B]
        last_B = (place_B - drawn_2B[0]).clamp(min=0)
        before_B = (last_B - drawn_2B[1]).clamp(min=0)
        mixed_B = gap_B > 1
        last_B = torch.where(mixed_B, (place_B - 1) // gap_B * gap_B, last_B)
        before_B = torch.where(mixed_B, (last_B - gap_B).clamp(min=0), before_B)
        return last_B, torch.where(last_B > 0, before_B, -1)


@dataclass(frozen=True, eq=False)
class Mix:
    """A device on the way: its guesses stand but where the cloud is asked, every `max_gap` steps at the
    least."""

    device: StepDevice
    projection_DF: Tensor
    max_gap: int


@torch.no_grad()
def walk(cloud: DiTModel, process: Denoising, seeds: range, mix: Mix | None) -> Paths:
    """Paths of an image a seed, classes in turn."""
    firsts = range(seeds.start, seeds.stop, AT_A_TIME)
    chunks = [
        _chunk(cloud, process, range(first, min(first + AT_A_TIME, seeds.stop)), mix) for first in firsts
    ]
    names = [item.name for item in fields(Paths)]
    return Paths(**{name: torch.cat([getattr(chunk, name) for chunk in chunks]) for name in names})


def _chunk(cloud: DiTModel, process: Denoising, seeds: range, mix: Mix | None) -> Paths:
    """A few images at one guidance."""
    rng, shape = keyed_generator(seeds.start, 11), latent_shape(cloud.config)
    label_B = torch.tensor([seed % cloud.config.classes for seed in seeds])
    guidance = float(rng.uniform(*GUIDANCES))
    scale_B = torch.full((len(seeds),), guidance)
    gap = int(rng.integers(2, mix.max_gap + 1)) if mix else 1
    state = torch.cat([process.start(seed, shape) for seed in seeds])
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    anchor: Anchor | None = None
    known: list[tuple[int, Tensor]] = []  # steps and noises of the cloud, the last two
    for step in range(len(process)):
        step_B = torch.full((len(seeds),), process.original(step))
        out, hidden = cloud.denoised(state, step_B, label_B, guidance)
        eps = said = out[:, : shape[0]]
        seen.append((state.half(), said.half(), hidden.half()))
        if mix is not None:
            if step % gap == 0:
                anchor = Anchor(step_B, said, hidden @ mix.projection_DF)
                known = [*known[-1:], (step, said)]
            else:
                assert anchor is not None, "the first step is the cloud's"
                if len(known) == 2:
                    anchor = replace(anchor, line=extrapolated(process, step, known[1], known[0]))
                eps = mix.device(state, step_B, label_B, scale_B, anchor).eps
        state = process.back(step, state, eps, None, seeds.start)
    return Paths(*_stacked(seen), label_B, scale_B, torch.full_like(label_B, gap))


def _stacked(seen: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    states, noises, hidden = (torch.stack(values, 1) for values in zip(*seen, strict=True))
    return states, noises, hidden


def components(hidden_NTPD: Tensor, width: int) -> Tensor:
    """The first principal directions of hidden states [D, F], each of deviation 1: what a projection begins
    as."""
    rows_MD = hidden_NTPD[:, ::5].flatten(0, 2)[::7].double()
    rows_MD = rows_MD - rows_MD.mean(0)
    values, vectors = torch.linalg.eigh(rows_MD.T @ rows_MD / len(rows_MD))
    first = values.argsort(descending=True)[:width]
    found: Tensor = vectors[:, first] / values[first].clamp(min=1e-6).sqrt()
    return found.float()
