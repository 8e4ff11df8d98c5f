"""Warp, scores and draw of ONE place, in NumPy: what `warp`, `gates` and a coupled draw compute for T = 1, at
a fraction of what torch takes to start as many small operations.

A test holds each of them to the function it stands in for. Knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.decoding.agreement import LEAST_LOG_Q, Learned
from shared.decoding.intervals import LEAST_UPPER, MOST_LOWER
from shared.decoding.warp import MIN_TEMPERATURE, Warp

Floats = NDArray[np.float32]
_SQRT_HALF = math.sqrt(0.5)
_STEEPEST = np.float32(80.0)  # e^80 is finite in fp32, and sigmoid(-80) is 0


class Place(NamedTuple):
    """The device's distribution under `Warp.unfiltered`, and the noise it is drawn with; fp32 [V] each."""

    log_q_V: Floats
    q_V: Floats
    noise_V: Floats

    @classmethod
    def of(cls, logits_V: Floats, temperature: float, noise_V: Floats) -> Place:
        """The place behind guided logits."""
        log_q_V = logits_V / np.float32(max(temperature, MIN_TEMPERATURE))
        log_q_V -= log_q_V.max()
        q_V = np.exp(log_q_V)
        total = float(q_V.sum())
        log_q_V -= np.float32(math.log(total))
        q_V *= np.float32(1.0 / total)
        return cls(log_q_V, q_V, noise_V)


def draw(place: Place, warp: Warp) -> int:
    """argmax(log q + g) over the ids that top-k and top-p keep.

    A filter takes the same constant from every id it keeps, so the best id of all is tried first, then the
    next best, until one is kept: nothing is sorted.
    """
    perturbed_V = place.log_q_V + place.noise_V
    token = int(perturbed_V.argmax())
    while not _kept(place, token, warp):
        perturbed_V[token] = -np.inf
        token = int(perturbed_V.argmax())
    return token


def _kept(place: Place, token: int, warp: Warp) -> bool:
    """Whether neither filter drops an id: fewer than k are likelier, and their mass is no more than p."""
    limited = 0 < warp.top_k < len(place.q_V)
    if not limited and warp.top_p >= 1.0:
        return True
    log_q_V, mass = place.log_q_V, 1.0
    likelier_V = log_q_V > log_q_V[token]
    if limited:
        if np.count_nonzero(likelier_V) >= warp.top_k:
            return False
        mass = float(place.q_V[log_q_V >= np.partition(log_q_V, -warp.top_k)[-warp.top_k]].sum())
    likelier_V[:token] |= log_q_V[:token] == log_q_V[token]  # equals are kept in their order
    return float(place.q_V.dot(likelier_V)) <= warp.top_p * mass


def _entropy(place: Place, _: Learned | None) -> float:
    return -float(place.q_V.dot(place.log_q_V))


def _softmax(place: Place, _: Learned | None) -> float:
    return 1.0 - float(place.q_V.max())


def _two_best(place: Place) -> tuple[int, int, float]:
    """The two best ids by log q + g, and the gap between them."""
    perturbed_V = place.log_q_V + place.noise_V
    first = int(perturbed_V.argmax())
    best = float(perturbed_V[first])
    perturbed_V[first] = -np.inf
    second = int(perturbed_V.argmax())
    return first, second, best - float(perturbed_V[second])


def _margin(place: Place, _: Learned | None) -> float:
    return -_two_best(place)[2]


def _agreement(place: Place, learned: Learned | None) -> float:
    assert learned is not None
    first, second, gap = _two_best(place)
    log_q_V, size = place.log_q_V, len(place.q_V)
    top = sorted(np.partition(place.q_V, -min(3, size))[-3:].tolist(), reverse=True)
    drawn = (max(float(log_q_V[token]), LEAST_LOG_Q) for token in (first, second))
    is_mode = float(log_q_V.argmax() == first)
    read = (_entropy(place, None), *(*top, 0.0)[:3], min(gap, -LEAST_LOG_Q), *drawn, is_mode)
    hidden_H = learned.w1_HS.numpy() @ np.array(read, dtype=np.float32)
    hidden_H += learned.b1_H.numpy()
    erf_H = np.fromiter(map(math.erf, (hidden_H * _SQRT_HALF).tolist()), np.float32, len(hidden_H))
    return float((0.5 * hidden_H * (1.0 + erf_H)) @ learned.w2_H.numpy() + learned.b2.numpy())


def interval(centre_V: Floats, radius_V: Floats) -> float:
    """The gate of that name: U sqrt(V) of the midpoint bounds (eq. 4), from a logit interval [V]."""
    shifted_V = centre_V - centre_V.max()
    mass_V, top = np.exp(shifted_V), int(shifted_V.argmax())
    others_V = mass_V.sum() - mass_V
    mass_V[top] = 0.0
    others_V[top] = max(float(mass_V.sum()), 1e-30)  # a difference would have nothing left of it
    odds_V = shifted_V - np.log(others_V)
    lower_V, upper_V = _sigmoid(odds_V - radius_V), _sigmoid(odds_V + radius_V)
    lower_V *= np.float32(min(1.0, MOST_LOWER / max(float(lower_V.sum()), 1e-30)))
    upper_V *= np.float32(max(1.0, LEAST_UPPER / float(upper_V.sum())))
    width_V = np.minimum(upper_V, 1.0, out=upper_V) - lower_V
    return float(width_V.sum()) * float(width_V.std()) * math.sqrt(len(width_V))


def _sigmoid(x_V: Floats) -> Floats:
    raised_V: Floats = np.exp(np.minimum(-x_V, _STEEPEST))
    raised_V += np.float32(1.0)
    return np.reciprocal(raised_V, out=raised_V)


# Of the gates in `gates.GATES` those that read one place without its interval.
SCORES: Mapping[str, Callable[[Place, Learned | None], float]] = MappingProxyType(
    {
        "agreement": _agreement,
        "entropy": _entropy,
        "margin": _margin,
        "softmax": _softmax,
        "never": lambda *_: -math.inf,
        "always": lambda *_: math.inf,
    }
)
