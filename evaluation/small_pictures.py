"""What the tables of the generators of 64 px share: FD-emoji, the files they write. Knows no generator."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch.nn import functional as F

from evaluation.critic import features, frechet_distance
from shared.errors import InvalidRequest
from shared.models.critic import load_critic
from training.runs import save_grid
from training.scale_data import Pictures, eighth

SHOWN = 12  # pictures of a row
REFERENCE = 4  # pictures of the data for each that is drawn
_CRITIC_PIXELS = 128
Pixels = NDArray[np.uint8]


def for_critic(pixels_NHW3: Pixels) -> torch.Tensor:
    """Enlarged to the size the critic looks at, each pixel repeated or blended."""
    image = torch.from_numpy(pixels_NHW3).permute(0, 3, 1, 2).float()
    large = F.interpolate(image, size=(_CRITIC_PIXELS, _CRITIC_PIXELS), mode="bilinear")
    return large.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


class Table(BaseModel):
    """Options of every such table."""

    threads: int = Field(1, description="torch threads", gt=0)
    out: Path | None = Field(None, description="write OUT.md, and pictures of every row to OUT.png")

    def write(self, text: str, rows: Sequence[Pixels]) -> None:
        """Print the tables; write them, and the first pictures of every row."""
        sys.stdout.write(text)
        if self.out:
            self.out.with_suffix(".md").write_text(text, encoding="utf-8")
            shown = np.concatenate([pixels_NHW3[:SHOWN] for pixels_NHW3 in rows])
            save_grid(self.out.with_suffix(".png"), torch.from_numpy(shown), min(len(rows[0]), SHOWN))


class DistanceTable(Table):
    """And of those with a Frechet distance from the pictures that were learnt."""

    images: int = Field(20, description="images per row, classes in turn", gt=1)
    critic: Path | None = Field(None, description="critic folder, with --data: FD-emoji")
    data: Path | None = Field(None, description="picture folder the model was trained on")

    def check(self) -> None:
        """Raise InvalidRequest where half of what a distance needs is missing."""
        if (self.critic is None) != (self.data is None):
            raise InvalidRequest("FD-emoji needs both", "--critic looks, --data says at what")

    def distances(self, rows: Sequence[Pixels]) -> list[str]:
        """FD-emoji of each row; "-" without a critic."""
        if self.critic is None or self.data is None:
            return ["-"] * len(rows)
        critic = load_critic(self.critic)
        learnt = Pictures(self.data, 0).batch(0, REFERENCE * self.images).image_B3HW
        aim = features(critic, for_critic(eighth((learnt + 1) / 2).numpy()))
        found = [features(critic, for_critic(pixels_NHW3)) for pixels_NHW3 in rows]
        return [f"{frechet_distance(drawn, aim):.2f}" for drawn in found]
