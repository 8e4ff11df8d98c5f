"""What the critic makes of pictures: retrieval of the true caption, scores, a Frechet distance. Knows nothing
of how pictures are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import InvalidRequest
from shared.models.critic import Critic
from shared.models.text import GLUE, split_words
from training.data import keyed_generator

OTHERS = 99  # captions that the true one is retrieved among


@torch.no_grad()
def scores(critic: Critic, pixels_BHW3: Tensor, captions: Sequence[str]) -> list[float]:
    """The cosine of each picture with its caption, -1 .. 1."""
    cosines_B = (critic.embed_images(pixels_BHW3) * critic.embed_captions(captions)).sum(-1)
    return [float(cosine) for cosine in cosines_B]


@torch.no_grad()
def retrieval_ranks(
    critic: Critic, pixels_BHW3: Tensor, captions: Sequence[str], others: int = OTHERS
) -> list[int]:
    """How many of `others` other captions fit each picture better than its own: 0 is best.

    The others come with the critic; a caption that says less or more of the same is never among them, and the
    choice depends on the place in the list alone. Raises InvalidRequest when the critic has too few.
    """
    images_BD, own_BD = critic.embed_images(pixels_BHW3), critic.embed_captions(captions)
    ranks = []
    for place, (image_D, own_D) in enumerate(zip(images_BD, own_BD, strict=True)):
        chosen = other_captions(critic.captions, captions[place], others, place)
        better = critic.embed_captions(chosen) @ image_D > own_D @ image_D
        ranks.append(int(better.sum()))
    return ranks


def other_captions(pool: Sequence[str], caption: str, count: int, place: int) -> list[str]:
    """`count` captions of the pool that contradict `caption`, keyed by `place`."""
    said = _content(caption)
    different = [text for text in pool if not (_content(text) <= said or said <= _content(text))]
    if len(different) < count:
        raise InvalidRequest(f"{len(different)} captions differ from {caption!r}", f"{count} are needed")
    order = keyed_generator(0, place).permutation(len(different))
    return [different[index] for index in order[:count]]


def _content(caption: str) -> set[str]:
    return {*split_words(caption)} - GLUE


def top_k(ranks: Sequence[int], k: int) -> float:
    """The share of pictures whose own caption is among the best `k`."""
    return float(np.mean([rank < k for rank in ranks]))


@torch.no_grad()
def features(critic: Critic, pixels_BHW3: Tensor) -> NDArray[np.float64]:
    """Features [B, D] for `frechet_distance`."""
    return critic.image_features(pixels_BHW3).double().numpy()


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A set of features as its mean [D] and covariance [D, D]. Raises InvalidRequest of fewer than two."""

    features_ND: InitVar[NDArray[np.float64]]
    mean_D: NDArray[np.float64] = field(init=False)
    cov_DD: NDArray[np.float64] = field(init=False)

    def __post_init__(self, features_ND: NDArray[np.float64]) -> None:
        if len(features_ND) < 2:
            raise InvalidRequest(f"{len(features_ND)} pictures", "a covariance needs two")
        object.__setattr__(self, "mean_D", features_ND.mean(0))
        object.__setattr__(self, "cov_DD", np.cov(features_ND, rowvar=False))

    @cached_property
    def root_DD(self) -> NDArray[np.float64]:
        """The symmetric square root of the covariance."""
        return _root(self.cov_DD)


def frechet(a: Gaussian, b: Gaussian) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 (AB)^1/2) (Heusel et al. 2017, eq. 6)."""
    # tr (AB)^1/2 = tr (A^1/2 B A^1/2)^1/2, and the latter is symmetric.
    values = np.linalg.eigvalsh(a.root_DD @ b.cov_DD @ a.root_DD)
    between = np.sqrt(values.clip(min=0)).sum()
    shift = a.mean_D - b.mean_D
    return float(shift @ shift + np.trace(a.cov_DD) + np.trace(b.cov_DD) - 2 * between)


def frechet_distance(a_ND: NDArray[np.float64], b_ND: NDArray[np.float64]) -> float:
    """The Frechet distance of two sets of features.

    Comparable only between sets of the same size, at least twice as many as there are dimensions. Raises
    InvalidRequest on fewer than two pictures a side.
    """
    return frechet(Gaussian(a_ND), Gaussian(b_ND))


def _root(matrix_DD: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(matrix_DD)
    root: NDArray[np.float64] = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    return root
