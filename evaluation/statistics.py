"""Figures with intervals: the bootstrap over images, keyed. Knows nothing of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidRequest
from training.data import keyed_generator

Picks = NDArray[np.int64]  # which images, with repetition
Statistic = Callable[[Picks], float]
RESAMPLES = 200
LEVEL = 0.95


@dataclass(frozen=True)
class Figure:
    """A value and the bounds of its interval; equal where there is none."""

    value: float
    low: float
    high: float


def exactly(value: float) -> Figure:
    """A figure without an interval."""
    return Figure(value, value, value)


def bootstrap(statistic: Statistic, count: int, *, seed: int = 0, resamples: int = RESAMPLES) -> Figure:
    """A statistic of `count` images and its percentile interval at LEVEL (Efron 1979).

    The resamples are a pure function of (seed, count): two statistics of the same images are resampled alike,
    which is what makes a difference of two rows a paired one. Raises InvalidRequest without an image.
    """
    if count < 1:
        raise InvalidRequest(f"{count} images", "a figure needs one")
    value = statistic(np.arange(count))
    if count == 1:
        return exactly(value)
    drawn = [statistic(keyed_generator(seed, n).integers(0, count, count)) for n in range(resamples)]
    tail = 50 * (1 - LEVEL)
    return Figure(value, float(np.percentile(drawn, tail)), float(np.percentile(drawn, 100 - tail)))
