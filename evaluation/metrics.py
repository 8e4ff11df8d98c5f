"""How good a set of pictures is, from features: distances, precision, recall, scores. Knows nothing of where
the features come from.

Features of the bundled critic make `FD-emoji`, `P-emoji`, `R-emoji`, `F1-emoji` and `score-emoji`; only
InceptionV3's make FID, only CLIP's a CLIP score. Shapes: N pictures drawn, M of the reference, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evaluation.critic import Gaussian, features, frechet, scores
from evaluation.statistics import Picks
from shared.errors import InvalidRequest
from shared.models.critic import Critic

Features = NDArray[np.float64]
NEIGHBOURS = 3  # k of improved precision and recall, as its authors use it
BATCH = 32


@dataclass(frozen=True, eq=False)
class Overlap:
    """Improved precision and recall: which drawn pictures lie among the reference's, and the other way."""

    real_N: NDArray[np.bool_]
    covered_M: NDArray[np.bool_]

    def precision(self, picks: Picks) -> float:
        """The share of these drawn pictures that lie among the reference's."""
        return float(self.real_N[picks].mean())

    def recall(self, picks: Picks) -> float:
        """The share of these reference pictures that lie among the drawn ones."""
        return float(self.covered_M[picks].mean())

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 where both are."""
        precision, recall = float(self.real_N.mean()), float(self.covered_M.mean())
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def overlap(drawn_ND: Features, reference_MD: Features, neighbours: int = NEIGHBOURS) -> Overlap:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eqs. 1 and 2).

    A picture lies among a set if it is no further from one of them than that one's `neighbours`-th nearest of
    its own set. Raises InvalidRequest where a set has no more pictures than neighbours.
    """
    if min(len(drawn_ND), len(reference_MD)) <= neighbours:
        raise InvalidRequest(
            f"{len(drawn_ND)} and {len(reference_MD)} pictures", f"more than {neighbours} of each are needed"
        )
    between_NM = _distances(drawn_ND, reference_MD)
    near_reference_NM = between_NM <= _radii(reference_MD, neighbours)
    near_drawn_NM = between_NM <= _radii(drawn_ND, neighbours)[:, None]
    return Overlap(np.logical_or.reduce(near_reference_NM, 1), np.logical_or.reduce(near_drawn_NM, 0))


def _distances(a_ND: Features, b_MD: Features) -> Features:
    squares = (a_ND**2).sum(1)[:, None] + (b_MD**2).sum(1) - 2 * a_ND @ b_MD.T
    distances: Features = np.sqrt(squares.clip(min=0))
    return distances


def _radii(features_ND: Features, neighbours: int) -> Features:
    """From each picture to its k-th nearest other one."""
    own_NN = _distances(features_ND, features_ND)
    np.fill_diagonal(own_NN, -1)  # itself comes first, whatever rounding says
    radii: Features = np.partition(own_NN, neighbours, axis=1)[:, neighbours]
    return radii


class Eye(Protocol):
    """What looks at pictures: features of a set, and how well each fits its caption."""

    @property
    def name(self) -> str:
        """What its figures are called after."""

    def look(self, pixels_BHW3: Tensor) -> Features:
        """Features [B, D] of uint8 pictures."""

    def fits(self, pixels_BHW3: Tensor, captions: Sequence[str]) -> list[float]:
        """One score a picture; empty where this eye reads no captions."""


@dataclass(frozen=True, eq=False)
class CriticEye:
    """The bundled critic. Its figures compare with its own alone: neither FID nor CLIP."""

    critic: Critic
    name: str = "emoji"

    def look(self, pixels_BHW3: Tensor) -> Features:
        """Features before normalisation."""
        return np.concatenate([features(self.critic, part) for part in _parts(pixels_BHW3)])

    def fits(self, pixels_BHW3: Tensor, captions: Sequence[str]) -> list[float]:
        """Cosines, -1 .. 1."""
        parts = zip(_parts(pixels_BHW3), _batches(captions), strict=True)
        return [score for pixels, said in parts for score in scores(self.critic, pixels, said)]


def _parts(pixels_BHW3: Tensor) -> list[Tensor]:
    return [pixels_BHW3[first : first + BATCH] for first in range(0, len(pixels_BHW3), BATCH)]


def _batches(captions: Sequence[str]) -> list[Sequence[str]]:
    return [captions[first : first + BATCH] for first in range(0, len(captions), BATCH)]


@dataclass(frozen=True, eq=False)
class Reference:
    """The features of the pictures that drawn ones are held against."""

    features_MD: Features

    @cached_property
    def gaussian(self) -> Gaussian:
        """Their mean and covariance."""
        return Gaussian(self.features_MD)


@dataclass(frozen=True, eq=False)
class Looks:
    """What an eye makes of one row's pictures; `fits_N` is empty where it reads no captions."""

    drawn_ND: Features
    fits_N: NDArray[np.float64]
    reference: Reference

    def distance(self, picks: Picks) -> float:
        """The Frechet distance of these pictures to the reference."""
        return frechet(self.reference.gaussian, Gaussian(self.drawn_ND[picks]))

    def fit(self, picks: Picks) -> float:
        """The mean score of these pictures."""
        return float(self.fits_N[picks].mean())

    def overlap(self) -> Overlap:
        """Precision and recall against the reference."""
        return overlap(self.drawn_ND, self.reference.features_MD)

    @property
    def fewest(self) -> int:
        """Pictures in the smaller of the two sets."""
        return min(len(self.drawn_ND), len(self.reference.features_MD))

    @property
    def biased(self) -> bool:
        """Whether there are fewer pictures than twice the features: then only differences say something."""
        return self.fewest < 2 * int(self.drawn_ND.shape[1])
