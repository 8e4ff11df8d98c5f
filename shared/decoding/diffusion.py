"""Diffusion as arithmetic: schedules, what a prediction of the noise says of the state, the steps back.

Sources: Ho et al. (2020), Nichol and Dhariwal (2021), Song et al., "Denoising diffusion implicit models"
(2021). Knows no model and draws nothing: noise is an argument.

Tables are float64 and used as float32. `t` counts the steps that are kept; the network is told the original
step, `Schedule.original[t]`. Shapes: N states, ... their shape; `t_N` int64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import InvalidRequest

Table = NDArray[np.float64]
STEPS = 1000  # of the process every published model is trained on


@dataclass(frozen=True, eq=False)
class Schedule:
    """A process of T kept steps: `betas` [T] and the steps [T] of the original process they stand for.

    clip  how far from 0 the image may be believed to be, at every step; 0: anywhere
    """

    betas: Table
    original: tuple[int, ...]
    clip: float = 0.0

    def __len__(self) -> int:
        return len(self.original)

    @cached_property
    def kept(self) -> Table:
        """Share of the image's variance left after each step: the cumulative product of 1 - beta."""
        return np.asarray(np.cumprod(1 - self.betas), dtype=np.float64)

    @cached_property
    def kept_before(self) -> Table:
        """The same, one step earlier."""
        return np.append(1.0, self.kept[:-1])

    @cached_property
    def variance(self) -> Table:
        """Of the state before a step, where the image is known."""
        return np.asarray(self.betas * (1 - self.kept_before) / (1 - self.kept))

    @cached_property
    def log_variance(self) -> Table:
        """Its logarithm; at step 0, where it is zero, that of step 1."""
        return np.log(np.append(self.variance[1], self.variance[1:]) if len(self) > 1 else self.betas)

    @cached_property
    def mean_of_image(self) -> Table:
        """Weight of the image in the mean of the state before."""
        return np.asarray(self.betas * np.sqrt(self.kept_before) / (1 - self.kept))

    @cached_property
    def mean_of_state(self) -> Table:
        """Weight of the state in that mean."""
        return np.asarray((1 - self.kept_before) * np.sqrt(1 - self.betas) / (1 - self.kept))

    @cached_property
    def recip(self) -> Table:
        """1 / sqrt(kept)."""
        return np.sqrt(1 / self.kept)

    @cached_property
    def recip_m1(self) -> Table:
        """sqrt(1 / kept - 1): how much an error of the predicted noise is enlarged in the image."""
        return np.sqrt(1 / self.kept - 1)


@dataclass(frozen=True, eq=False)
class Believed:
    """What a network's output says of one step: the image, and the Gaussian of the state before."""

    image: Tensor
    mean: Tensor
    log_variance: Tensor


def linear(steps: int = STEPS) -> Schedule:
    """DiT's process."""
    scale = 1000 / steps
    return Schedule(np.linspace(scale * 1e-4, scale * 0.02, steps), tuple(range(steps)))


def cosine(steps: int = STEPS) -> Schedule:
    """MAR's process."""

    def kept(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - kept((step + 1) / steps) / kept(step / steps), 0.999) for step in range(steps)]
    return Schedule(np.array(betas), tuple(range(steps)))


def respaced(schedule: Schedule, spacing: str) -> Schedule:
    """The process on fewer of its steps, named as `spaced` takes it; "" keeps all."""
    steps = spaced(len(schedule), spacing) if spacing else tuple(range(len(schedule)))
    kept = schedule.kept[list(steps)]
    original = tuple(schedule.original[step] for step in steps)
    return Schedule(1 - kept / np.append(1.0, kept[:-1]), original, schedule.clip)


def spaced(steps: int, spacing: str) -> tuple[int, ...]:
    """Which steps are kept. "ddim50": every k-th from 0 on, so the last one never; "50": evenly from first to
    last; "10,20": so many of each part. Raises InvalidRequest for anything else."""
    if spacing.startswith("ddim"):
        count = _count(spacing.removeprefix("ddim"), spacing)
        for stride in range(1, steps):
            if len(range(0, steps, stride)) == count:
                return tuple(range(0, steps, stride))
        raise InvalidRequest(f"no stride gives the {count} steps of {spacing!r}", f"there are {steps} steps")
    counts = [_count(part, spacing) for part in spacing.split(",")]
    return tuple(step for part in _parts(steps, counts, spacing) for step in part)


def _count(text: str, spacing: str) -> int:
    if not (text.strip().isdecimal() and int(text) > 0):
        raise InvalidRequest(f"spacing {spacing!r} has no sense", "allowed: 'ddim50', '50', '10,20'")
    return int(text)


def _parts(steps: int, counts: Sequence[int], spacing: str) -> list[list[int]]:
    parts, start = [], 0
    for index, count in enumerate(counts):
        size = steps // len(counts) + (index < steps % len(counts))
        if size < count:
            raise InvalidRequest(f"spacing {spacing!r} wants {count} of {size} steps", "ask for fewer")
        stride, at, part = (size - 1) / (count - 1) if count > 1 else 1.0, 0.0, []
        for _ in range(count):
            part.append(start + round(at))
            at += stride  # summed, not multiplied: so the rounding is upstream's
        parts.append(part)
        start += size
    return parts


def at(table: Table, t_N: Tensor, like: Tensor) -> Tensor:
    """Entries of a table as float32, shaped to multiply `like`, whose first axis is N."""
    values = torch.from_numpy(table).to(like.device)[t_N].float()
    return values.reshape(-1, *[1] * (like.ndim - 1))


def believed(schedule: Schedule, t_N: Tensor, state: Tensor, eps: Tensor, v: Tensor) -> Believed:
    """The image and the Gaussian before, of predicted noise and of v in about [-1, 1], the place of the
    variance between its two bounds. The image is clipped as the schedule says."""
    image = at(schedule.recip, t_N, state) * state - at(schedule.recip_m1, t_N, state) * eps
    if schedule.clip:
        image = image.clamp(-schedule.clip, schedule.clip)
    mean = at(schedule.mean_of_image, t_N, state) * image + at(schedule.mean_of_state, t_N, state) * state
    share = (v + 1) / 2
    widest, narrowest = np.log(schedule.betas), schedule.log_variance
    log_variance = share * at(widest, t_N, state) + (1 - share) * at(narrowest, t_N, state)
    return Believed(image, mean, log_variance)


def ancestral(found: Believed, t_N: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
    """A sample of the state before; the last step, t = 0, adds no noise."""
    moving = (t_N > 0).reshape(-1, *[1] * (noise.ndim - 1))
    return found.mean + moving * (found.log_variance / 2).exp() * noise * temperature


def ddim(schedule: Schedule, t_N: Tensor, state: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """The state before without any noise (eta 0), and the image."""
    image = at(schedule.recip, t_N, state) * state - at(schedule.recip_m1, t_N, state) * eps
    before = at(np.sqrt(schedule.kept_before), t_N, state) * image
    return before + at(np.sqrt(1 - schedule.kept_before), t_N, state) * eps, image


def sensitivity(schedule: Schedule) -> Table:
    """How far a DDIM step moves the state for each unit of error of the predicted noise [T]: the risk of a
    step that is not the cloud's."""
    before = np.sqrt(1 - schedule.kept_before)
    carried = np.sqrt(schedule.kept_before / schedule.kept) * np.sqrt(1 - schedule.kept)
    return np.asarray(np.abs(before - carried))


def guided_eps(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """u + s (c - u); s is one number, or [N, 1]."""
    return uncond + scale * (cond - uncond)
