"""Speculative decoding of continuous tokens: who keeps a drafted token, and what replaces a refused one.

Device and cloud build the same noise from (seed, place, step), so their chains run along the same trajectory
and end near each other. Two rules use that: `tolerant` keeps a draft near the target's own result, and
`trajectory_ratio` is exact: it judges the whole path of the draft by the target's densities.

Knows no model. Log-densities, not densities: products of sixteen standard deviations leave the range of half
precision. Shapes: N tokens, T steps, C numbers of a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.decoding.noise import ACCEPT, ORDER, PATHS, PICK, START, STEP, Positions, uniform
from shared.errors import InvalidRequest

TOLERANCE = 0.265  # in latent units: where the published test stands
TRANSPORT = math.exp(-0.5)  # of the tolerance: how far `tolerant` moves a token on average, at most
RESIDUAL_BATCHES = (32, 256, 2048)
FLATTENING = 42.0  # by how much the published test widens the last step's Gaussians
ACCEPTANCES = ("aligned", "trajectory", "published")
_ATTEMPTS = 2**12  # replacements of one token, at most, that have noise of their own


def normals(seed: int, places: Positions, size: int, stream: int) -> Tensor:
    """Gaussian noise [N, size] keyed by (seed, place, stream, index), fp32 of fp64 arithmetic. Raises
    InvalidRequest for a seed out of range."""
    u_NS = torch.from_numpy(uniform(seed, places, size, stream))
    z_NS: Tensor = torch.special.ndtri(u_NS)
    return z_NS.float()


def start_noise(seed: int, places: Positions, width: int) -> Tensor:
    """What the tokens at these places begin with [N, C]."""
    return normals(seed, places, width, START)


def step_noise(seed: int, places: Positions, steps: int, width: int) -> Tensor:
    """What their denoising steps add [N, T, C], by kept step."""
    return normals(seed, places, steps * width, STEP).reshape(-1, steps, width)


def log_uniforms(seed: int, places: Positions) -> Tensor:
    """Logarithms [N] of the uniforms that decide over the drafts at these places, fp64."""
    return torch.from_numpy(uniform(seed, places, 1, ACCEPT))[:, 0].log()


def attempts(seed: int, place: int, begin: int, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Gaussian noise [n, size], and logarithms of uniforms [n], fp64, for the replacements `begin`, ... of a
    refused token. Raises InvalidRequest for more than there is noise for."""
    if begin + count > _ATTEMPTS:
        raise InvalidRequest(f"replacement {begin + count} of a token", f"allowed: up to {_ATTEMPTS}")
    keys = range(place * _ATTEMPTS + begin, place * _ATTEMPTS + begin + count)
    return normals(seed, keys, size, PATHS), torch.from_numpy(uniform(seed, keys, 1, PICK))[:, 0].log()


def order_of(seed: int, tokens: int) -> Tensor:
    """A random order [L] of the places of an image, keyed by its seed."""
    return torch.from_numpy(uniform(seed, range(tokens), 1, ORDER))[:, 0].argsort(stable=True)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Independent normals: mean and logarithm of the standard deviation, both [..., C]."""

    mean: Tensor
    log_std: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """[...], up to the constant that is the same for all Gaussians of this width."""
        return -(((x - self.mean) * (-self.log_std).exp()).square() / 2 + self.log_std).sum(-1)

    def moved(self, noise: Tensor) -> Tensor:
        """A sample: mean + std * noise."""
        return self.mean + self.log_std.exp() * noise


def tolerant(drafted_NC: Tensor, own_NC: Tensor, log_u_N: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Which drafts to keep [N], bool: with probability exp(-distance^2 / (2 tolerance^2)), the distance
    from the target's own result along the same noise, which replaces the others.

    Not exact: kept tokens lie `TRANSPORT * tolerance` from the target's on average at most. Tolerance 0 keeps
    equal ones alone. Raises InvalidRequest for a negative tolerance.
    """
    if not tolerance >= 0:
        raise InvalidRequest(f"tolerance {tolerance}", "allowed: 0 and above")
    distance2_N = (drafted_NC.double() - own_NC.double()).square().sum(-1)
    return 2 * tolerance**2 * log_u_N <= -distance2_N


def trajectory_ratio(p: Gaussian, q: Gaussian, states_NTC: Tensor) -> Tensor:
    """log p - log q [N], fp64, of the draft's path: `states_NTC[:, t]` is what step t led to, and p and q are
    what target and draft believe at the state before it. Every step adds noise, the last one too.

    A draft is accepted where log u <= this; else `residual` gives a path in its place. The law of the path,
    so of its end, is then the target's.
    """
    wide_p, wide_q = (Gaussian(of.mean.double(), of.log_std.double()) for of in (p, q))
    steps_NT = wide_p.log_density(states_NTC.double()) - wide_q.log_density(states_NTC.double())
    return steps_NT.sum(-1)


@dataclass(frozen=True, eq=False)
class Replacement:
    """A path in place of a refused one; `spent` paths of the target were drawn for it. `fallback`: none of
    them was kept, so it is a plain sample of the target, which shifts the law by 1 / (e spent) at most."""

    path: Tensor
    spent: int
    fallback: bool


def residual(
    draw: Callable[[int], tuple[Tensor, Tensor]],
    log_u: Callable[[int], Tensor],
    batches: tuple[int, ...] = RESIDUAL_BATCHES,
) -> Replacement:
    """A sample of the residual law (p - q)+: the first path of the target that is kept, each with probability
    1 - min(1, q / p).

    draw   so many further paths [n, ...] of the target, and log p - log q [n] of each
    log_u  as many logarithms of uniforms; neither repeats itself
    """
    spent = 0
    for count in batches:
        paths, ratio_n = draw(count)
        keep_n = log_u(count).exp() < -torch.expm1((-ratio_n).clamp_max(0))
        if keep_n.any():
            first = int(keep_n.int().argmax())
            return Replacement(paths[first], spent + first + 1, False)
        spent += count
    return Replacement(paths[-1], spent, True)


def published_ratio(
    p: Gaussian, q: Gaussian, x_NC: Tensor, fixed_N: Tensor, flattening: float = FLATTENING
) -> Tensor:
    """The published acceptance ratio [N] of target p and draft q, for comparison only: it keeps no law.

    The Gaussians are those of the last step, which adds no noise, so x is q's mean and the ratio a test of
    distance; `fixed_N` is exp(sum log std of p - the same of q) over all steps before.
    """
    wide = torch.tensor(flattening).log()
    wide_p, wide_q = (Gaussian(of.mean, of.log_std + wide) for of in (p, q))
    return (wide_p.log_density(x_NC) - wide_q.log_density(x_NC)).exp() * fixed_N


def published_residual(p: Gaussian, q: Gaussian, x_NC: Tensor, fixed_N: Tensor) -> Tensor:
    """The published probability [N] of keeping a proposal from p after a refusal: (p - q / fixed)+ / p."""
    return (1 - (q.log_density(x_NC) - p.log_density(x_NC)).exp() / fixed_N).clamp_min(0)
