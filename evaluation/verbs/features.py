"""`ciar-eval features`: what interval features are worth. Knows no argv."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from pydantic import BaseModel, Field

from evaluation.features import Asked, features_effect
from evaluation.verbs.sheet import prompts_of
from shared.models.zoo import load_cloud, load_device_package


class Features(BaseModel):
    """What interval features change: the cloud's KL to itself with and without them, where the device's kept
    tokens stand in for its own."""

    model: str = Field("emoji", description="model name or folder")
    models: Path = Field(Path("~/.cache/ciar/models"), description="folder of fetched weights")
    prompts: Path | None = Field(None, description="file with one prompt a line instead of the fixed ones")
    images: int = Field(32, description="images that the cloud draws of the prompts", gt=0)
    share: float = Field(0.5, description="share of an image's tokens that the device keeps", gt=0, le=1)
    gate: str = Field("entropy", description="gate whose least scores are kept")
    threads: int = Field(1, description="torch threads", gt=0)
    out: Path | None = Field(None, description="write OUT.json")

    def run(self) -> None:
        """Measure, print the figures as JSON."""
        torch.set_num_threads(self.threads)
        models = self.models.expanduser()
        cloud, package = load_cloud(self.model, models), load_device_package(self.model, models)
        asked = Asked(prompts_of(self.prompts), self.images, self.share, self.gate)
        about = {"model": cloud.name, "images": self.images, "share": self.share, "gate": self.gate}
        trained = bool(cloud.bridge_DF.any())
        text = json.dumps({**about, "bridge": trained, **features_effect(cloud, package, asked)._asdict()})
        sys.stdout.write(f"{text}\n")
        if self.out:
            self.out.with_suffix(".json").write_text(f"{text}\n", encoding="utf-8")
