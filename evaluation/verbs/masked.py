"""The verb `ciar-eval masked`: continuous speculative decoding on MAR."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field

from device_client.masked_policy import Drawing
from evaluation.masked import TOLERANCES, measure, rows
from evaluation.masked_tables import markdown
from evaluation.small_pictures import DistanceTable
from shared.decoding.warp import Warp
from shared.models.by_mask import load_masked_package


class Masked(DistanceTable):
    """Continuous speculative decoding on MAR over the real wire, beside the cloud alone in as few steps."""

    model: Path = Field(description="model folder of ciar-train mar-device: cloud/, device/, vae/")
    steps: list[int] = Field([], description="of the cloud; unset: a quarter and an eighth of the tokens")
    tolerances: list[float] = Field(list(TOLERANCES), description="of cspd")
    head_steps: int = Field(100, description="diffusion steps of a token", gt=1)
    clip: float | None = Field(None, description="bound of a head's token; 0: none, unset: the model's", ge=0)
    guidance: float = Field(2.0, description="strength of guidance")

    def run(self) -> None:
        """Measure, print the table, write the files."""
        torch.set_num_threads(self.threads)
        self.check()
        model = str(self.model)
        package = load_masked_package(model, self.model)
        tokens = package.model.config.tokens
        steps = self.steps or [tokens // 4, tokens // 8]
        drawing = Drawing(self.head_steps, clip=package.clip if self.clip is None else self.clip)
        wanted = rows(tokens, steps, drawing, self.tolerances)
        results, memory = measure(model, wanted, self.images, Warp(self.guidance))
        pixels = [result.pixels_NHW3 for result in results]
        self.write(markdown(results, self.distances(pixels)) + memory.line(), pixels)
