"""How an image of a model by steps is denoised, as device and cloud agree on it: kept steps, sampler, keyed
noise; and what a step that is not the cloud's risks. Knows no model.

Steps count from 0, the noisiest, as on the wire; tables of `shared.decoding.diffusion` count the other way.
Shapes: C channels, H the side of the latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from shared.decoding.continuous import normals
from shared.decoding.diffusion import (
    STEPS,
    Schedule,
    ancestral,
    believed,
    ddim,
    linear,
    respaced,
    sensitivity,
)
from shared.decoding.noise import GATE, START, STEP, uniform
from shared.errors import InvalidRequest

SAMPLERS = ("ddim", "ddpm")
PRECISIONS = ("fp16", "fp32")
JUDGEMENT = "output"  # the acceptance of models by steps: the cloud's output stands
MAX_PLACES = 2**16  # of a latent: more would share noise with the next step
FARTHEST = 3.0  # what is known of a change is followed so many times its length


@dataclass(frozen=True, eq=False)
class Denoising:
    """A sampler on the kept steps of DiT's process. Raises InvalidRequest for an unknown sampler."""

    schedule: Schedule
    sampler: str

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            what = f"sampler {self.sampler!r} is not allowed"
            raise InvalidRequest(what, f"allowed: {', '.join(SAMPLERS)}")
        if len(self) < 2:
            raise InvalidRequest(f"{len(self)} denoising steps", "allowed: 2 and more")

    def __len__(self) -> int:
        return len(self.schedule)

    @property
    def random(self) -> bool:
        """Whether steps add noise, and so need the place of the variance."""
        return self.sampler == "ddpm"

    def original(self, step: int) -> int:
        """What the model is told of a step."""
        return self.schedule.original[self._t(step)]

    def clearness(self, step: int) -> float:
        """Half the logarithm of the signal-to-noise ratio at a step."""
        kept = float(self.schedule.kept[self._t(step)])
        return 0.5 * float(np.log(kept / (1 - kept)))

    @cached_property
    def carried(self) -> Tensor:
        """How far each step moves the latent for a unit of error of its predicted noise, fp64 [T]."""
        return torch.from_numpy(sensitivity(self.schedule)[::-1].copy())

    def start(self, seed: int, shape: tuple[int, int, int]) -> Tensor:
        """The noise [1, C, H, W] that an image begins with, keyed by (seed, place)."""
        return _noise(seed, 0, shape, START)

    def back(self, step: int, state: Tensor, eps: Tensor, spread: Tensor | None, seed: int) -> Tensor:
        """The latent [1, C, H, W] behind a step. Without a `spread` the variance is the narrowest there is;
        the noise of a random step is keyed by (seed, original step, place)."""
        t_N = torch.tensor([self._t(step)])
        if not self.random:
            return ddim(self.schedule, t_N, state, eps)[0]
        place = torch.full_like(eps, -1) if spread is None else spread
        found = believed(self.schedule, t_N, state, eps, place)
        channels, height, width = state.shape[1:]
        noise = _noise(seed, self.original(step), (channels, height, width), STEP)
        return ancestral(found, t_N, noise)

    def _t(self, step: int) -> int:
        return len(self) - 1 - step


@lru_cache(maxsize=32)
def denoising(spacing: str, sampler: str) -> Denoising:
    """The process that an order names. Raises InvalidRequest for a spacing or sampler that does not exist."""
    return Denoising(respaced(linear(), spacing), sampler)


def ddim_spacing(calls: int) -> str:
    """DDIM's own spacing of at least so many steps, as few as there is a stride for. Raises InvalidRequest
    for fewer than 2."""
    if calls < 2:
        raise InvalidRequest(f"DDIM with {calls} calls", "allowed: 2 and more")
    counts = {len(range(0, STEPS, stride)) for stride in range(1, STEPS)}
    return f"ddim{min(count for count in counts if count >= calls)}"


def carried(values: Tensor, precision: str) -> Tensor:
    """fp32 values as they arrive at the other side. Raises InvalidRequest for an unknown precision, and for
    what fp16 cannot hold."""
    if precision not in PRECISIONS:
        raise InvalidRequest(f"precision {precision!r} is not allowed", f"allowed: {', '.join(PRECISIONS)}")
    there = values.half().float() if precision == "fp16" else values
    if not there.isfinite().all():
        what = f"a latent reaches {values.abs().max().item():g}"
        raise InvalidRequest(what, f"{precision} cannot carry it", "order fp32")
    return there


@dataclass(frozen=True, eq=False)
class Guess:
    """What a device predicts of a step: centre and radius of the noise [1, C, H, W], the cloud's noise it
    began from (zeros: none), and the place of the variance where it is needed."""

    eps: Tensor
    radius: Tensor
    since: Tensor
    spread: Tensor | None = None

    def holds(self, eps: Tensor, share: float = 0.9) -> bool:
        """Whether the cloud's noise lies inside the interval at that share of all places."""
        return bool(((eps - self.eps).abs() <= self.radius).float().mean() >= share)


def _product(guess: Guess, seed: int, step: int) -> float:
    """The root of mean times deviation of the widths: U of CIAR in units of the noise, whatever the size."""
    width = 2 * guess.radius
    return float((width.mean() * width.std()).sqrt())


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


Score = Callable[[Guess, int, int], float]
SCORES: Mapping[str, Score] = {
    "interval": _product,
    "radius": lambda guess, seed, step: _rms(guess.radius),
    "change": lambda guess, seed, step: _rms(guess.eps - guess.since),
    "schedule": lambda guess, seed, step: 1.0,
    "random": lambda guess, seed, step: 2 * float(uniform(seed, [step], 1, GATE)[0, 0]),
    "never": lambda guess, seed, step: 0.0,
    "always": lambda guess, seed, step: float("inf"),
}


def risk(process: Denoising, gate: str, guess: Guess, seed: int, step: int) -> float:
    """What keeping a guess may do to the latent: the gate's estimate of its error in units of the noise,
    times how far the step carries such an error. Raises InvalidRequest for an unknown gate.

    "schedule" takes every guess for equally wrong, so that it asks most where errors carry farthest.
    """
    if gate not in SCORES:
        raise InvalidRequest(f"gate {gate!r} is not allowed", f"allowed: {', '.join(SCORES)}")
    return SCORES[gate](guess, seed, step) * float(process.carried[step])


def due(gap: int, max_gap: int, owed: float, threshold: float) -> bool:
    """Whether the cloud is asked: `gap` steps behind its last one, if keeping a guess would owe that much."""
    return gap > max_gap or owed > threshold


def extrapolated(
    process: Denoising, step: int, last: tuple[int, Tensor], before: tuple[int, Tensor]
) -> Tensor:
    """The noise at a step on the straight line, in clearness, through two known ones: what multi-step solvers
    do for nothing (Lu et al., "DPM-Solver++", 2022). The line is followed FARTHEST times its known part."""
    (place, eps), (earlier, eps_earlier) = last, before
    here, there, further = (process.clearness(at) for at in (step, place, earlier))
    return eps + (eps - eps_earlier) * min((here - there) / (there - further), FARTHEST)


class Hindsight:
    """What a guess was off by when the cloud last spoke, carried into the guesses that follow.

    A small model errs the same way for long, and the more the farther it is from the cloud's last word. So
    what it was off by after so many steps is what it will be off by after as many; half of it after half, and
    FARTHEST times as much at most.
    """

    def __init__(self) -> None:
        self._last, self._gap = 0, 1  # the cloud's last step, and how far behind the one before
        self._off: Tensor | None = None

    def heard(self, step: int, eps: Tensor, guess: Tensor | None) -> None:
        """The cloud's noise at a step, and what the guess was there before it was mended; None: no guess."""
        if guess is not None:
            self._off, self._gap = eps - guess, step - self._last
        self._last = step

    def mended(self, step: int, guess: Tensor) -> Tensor:
        """The guess of a step with what is known of its error."""
        if self._off is None:
            return guess
        return guess + self._off * min((step - self._last) / self._gap, FARTHEST)


def _noise(seed: int, key: int, shape: tuple[int, int, int], stream: int) -> Tensor:
    channels, height, width = shape
    if height * width > MAX_PLACES:
        raise InvalidRequest(f"a latent of {height} x {width}", f"allowed: {MAX_PLACES} places")
    places = range(key * MAX_PLACES, key * MAX_PLACES + height * width)
    return normals(seed, places, channels, stream).T.reshape(1, channels, height, width).contiguous()
