"""The verb `ciar-eval masked`: continuous speculative decoding on MAR."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, Field

from device_client.masked_policy import Drawing
from evaluation.masked import TOLERANCES, measure, rows
from evaluation.masked_tables import distances, markdown
from evaluation.scale_tables import reference
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest
from shared.models.by_mask import load_masked_package
from shared.models.critic import load_critic
from training.runs import save_grid


class Masked(BaseModel):
    """Continuous speculative decoding on MAR over the real wire, beside the cloud alone in as few steps."""

    model: Path = Field(description="model folder of ciar-train mar-device: cloud/, device/, vae/")
    images: int = Field(20, description="images per row, classes in turn", gt=1)
    steps: list[int] = Field([], description="of the cloud; unset: a quarter and an eighth of the tokens")
    tolerances: list[float] = Field(list(TOLERANCES), description="of cspd")
    head_steps: int = Field(100, description="diffusion steps of a token", gt=1)
    clip: float | None = Field(None, description="bound of the heads' idea of a token; 0: none", ge=0)
    guidance: float = Field(2.0, description="strength of guidance")
    critic: Path | None = Field(None, description="critic folder, with --data: FD-emoji")
    data: Path | None = Field(None, description="picture folder the model was trained on")
    threads: int = Field(1, description="torch threads", gt=0)
    out: Path | None = Field(None, description="write OUT.md, and pictures of every row to OUT.png")

    def run(self) -> None:
        """Measure, print the table, write the files."""
        torch.set_num_threads(self.threads)
        if (self.critic is None) != (self.data is None):
            raise InvalidRequest("FD-emoji needs both", "--critic looks, --data says at what")
        model = str(self.model)
        package = load_masked_package(model, self.model)
        tokens = package.model.config.tokens
        steps = self.steps or [tokens // 4, tokens // 8]
        drawing = Drawing(self.head_steps, clip=package.clip if self.clip is None else self.clip)
        wanted = rows(tokens, steps, drawing, self.tolerances)
        results, memory = measure(model, wanted, self.images, Warp(self.guidance))
        critic = load_critic(self.critic) if self.critic else None
        fd = distances(results, critic, reference(self.data, 4 * self.images) if self.data else None)
        text = markdown(results, fd) + memory.line()
        sys.stdout.write(text)
        if self.out:
            self.out.with_suffix(".md").write_text(text, encoding="utf-8")
            shown = np.concatenate([result.pixels_NHW3[:12] for result in results])
            save_grid(self.out.with_suffix(".png"), torch.from_numpy(shown), min(self.images, 12))
