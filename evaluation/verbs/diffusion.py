"""The verb `ciar-eval diffusion`: CIAR on DiT."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field

from device_client.step_drafter import StepRequest
from evaluation.diffusion import measure
from evaluation.diffusion_tables import markdown
from evaluation.small_pictures import Table
from shared.models.critic import load_critic


class Diffusion(Table):
    """CIAR on DiT over the real wire, beside DDIM and reuse with as many calls: costs, and how far every
    picture is from the cloud's own."""

    model: Path = Field(description="model folder of ciar-train dit-device: cloud/, device/, vae/")
    images: int = Field(20, description="images per row, classes in turn", gt=0)
    budgets: list[float] = Field([0.16, 0.24, 0.4], description="shares of the steps that are the cloud's")
    guidance: float = Field(2.0, description="guidance; 1: none")
    steps: str = Field("ddim50", description="denoising steps of the cloud's own pictures")
    critic: Path | None = Field(None, description="critic folder: how alike it finds the pictures")

    def run(self) -> None:
        """Measure, print the table, write the files."""
        torch.set_num_threads(self.threads)
        critic = load_critic(self.critic) if self.critic else None
        request = StepRequest("0", 0, self.guidance, self.steps)
        results, memory = measure(str(self.model), request, self.budgets, self.images)
        self.write(markdown(results, critic) + memory.line(), [result.pixels_NHW3 for result in results])
