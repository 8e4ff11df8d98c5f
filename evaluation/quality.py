"""The published measures of quality, from eyes whose weights their users fetched: FID, improved precision and
recall, CLIP score, HPSv2. Knows nothing of how pictures are drawn.

Each is shown with its difference to the base: absolute values do not compare across papers, and neither do
they across sizes of sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.metrics import Eye, Features, Reference, overlap
from evaluation.statistics import Figure, bootstrap, exactly
from shared.errors import CiarError

Measured = dict[str, Figure]
SCORES = {"clip": "CLIP score", "hpsv2": "HPSv2.1"}


class _Given(nn.Module):
    """Features that are already made, where torchmetrics expects a network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features_ND: Tensor) -> Tensor:
        """The same."""
        return features_ND


def published_distance(drawn_ND: Features, reference_MD: Features) -> float:
    """The Frechet distance by torchmetrics: with InceptionV3's features, FID. Raises CiarError without it."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise CiarError("FID needs torchmetrics", "it is not here", 'pip install "ciar[eval]"') from error
    metric = FrechetInceptionDistance(feature=_Given(drawn_ND.shape[1]))
    metric.update(torch.from_numpy(reference_MD), real=True)
    metric.update(torch.from_numpy(drawn_ND), real=False)
    return float(metric.compute())


def against_pictures(eye: Eye, pixels_BHW3: Tensor, reference: Reference) -> Measured:
    """FID and IPR. The authors of IPR use VGG-16's features; these are InceptionV3's, as FID's are."""
    drawn = eye.look(pixels_BHW3)
    shared = overlap(drawn, reference.features_MD)
    return {
        "FID": exactly(published_distance(drawn, reference.features_MD)),
        "IPR precision": bootstrap(shared.precision, len(shared.real_N)),
        "IPR recall": bootstrap(shared.recall, len(shared.covered_M)),
        "IPR F1": exactly(shared.f1),
    }


def against_captions(eye: Eye, pixels_BHW3: Tensor, captions: Sequence[str]) -> Measured:
    """The mean score of pictures with their captions."""
    scores = np.array(eye.fits(pixels_BHW3, captions))
    return {SCORES[eye.name]: bootstrap(lambda picks: float(scores[picks].mean()), len(scores))}


def markdown(rows: Mapping[str, Measured], base: str, notes: Sequence[str]) -> str:
    """A table: every figure with its interval, and how far it is from the base's."""
    titles = list(dict.fromkeys(title for measured in rows.values() for title in measured))
    lines = [["row", *titles], ["---"] + ["--:"] * len(titles)]
    for name, measured in rows.items():
        lines.append([name, *(_cell(measured[title], rows[base][title]) for title in titles)])
    table = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*table, "", *(f"- {note}" for note in notes)]) + "\n"


def _cell(figure: Figure, base: Figure) -> str:
    bounds = "" if figure.low == figure.high else f" ({figure.low:.4f} to {figure.high:.4f})"
    return f"{figure.value:.4f}{bounds}, {figure.value - base.value:+.4f}"
