"""The verb `ciar-eval diffusion`: CIAR on DiT."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, Field

from device_client.step_drafter import StepRequest
from evaluation.diffusion import measure
from evaluation.diffusion_tables import markdown
from shared.models.critic import load_critic
from training.runs import save_grid

SHOWN = 12  # pictures of a row


class Diffusion(BaseModel):
    """CIAR on DiT over the real wire, beside DDIM and reuse with as many calls: costs, and how far every
    picture is from the cloud's own."""

    model: Path = Field(description="model folder of ciar-train dit-device: cloud/, device/, vae/")
    images: int = Field(20, description="images per row, classes in turn", gt=0)
    budgets: list[float] = Field([0.16, 0.24, 0.4], description="shares of the steps that are the cloud's")
    guidance: float = Field(2.0, description="guidance; 1: none")
    steps: str = Field("ddim50", description="denoising steps of the cloud's own pictures")
    critic: Path | None = Field(None, description="critic folder: how alike it finds the pictures")
    threads: int = Field(1, description="torch threads", gt=0)
    out: Path | None = Field(None, description="write OUT.md, and pictures of every row to OUT.png")

    def run(self) -> None:
        """Measure, print the table, write the files."""
        torch.set_num_threads(self.threads)
        critic = load_critic(self.critic) if self.critic else None
        request = StepRequest("0", 0, self.guidance, self.steps)
        results, memory = measure(str(self.model), request, self.budgets, self.images)
        text = markdown(results, critic) + memory.line()
        sys.stdout.write(text)
        if self.out:
            self.out.with_suffix(".md").write_text(text, encoding="utf-8")
            shown = np.concatenate([result.pixels_NHW3[:SHOWN] for result in results])
            save_grid(self.out.with_suffix(".png"), torch.from_numpy(shown), min(self.images, SHOWN))
