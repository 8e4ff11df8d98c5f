"""The verb `ciar-eval scales`: CoDe and CIAR on VAR."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, Field

from evaluation.scale_tables import distances, markdown, reference
from evaluation.scales import measure, rows
from shared.errors import InvalidRequest
from shared.models.by_scale import load_scale_cloud, load_scale_package
from shared.models.critic import load_critic
from shared.models.families.var import VARConfig
from training.runs import save_grid


class Scales(BaseModel):
    """CoDe and CIAR on VAR over the real wire: time, bytes, memory of both processes, quality against N."""

    model: Path = Field(description="model folder of ciar-train var-device: cloud/, device/, vae/")
    tuned: dict[int, Path] = Field({}, description="N=FOLDER of a drafter and refiner tuned for N scales")
    images: int = Field(40, description="images per row, classes in turn", gt=1)
    critic: Path | None = Field(None, description="critic folder, with --data: FD-emoji")
    data: Path | None = Field(None, description="picture folder the model was trained on")
    threads: int = Field(1, description="torch threads", gt=0)
    out: Path | None = Field(None, description="write OUT.md, and pictures of every row to OUT.png")

    def run(self) -> None:
        """Measure, print both tables, write the files."""
        torch.set_num_threads(self.threads)
        if (self.critic is None) != (self.data is None):
            raise InvalidRequest("FD-emoji needs both", "--critic looks, --data says at what")
        model = str(self.model)
        tuned = [(count, str(home)) for count, home in self.tuned.items()]
        wanted = rows(load_scale_package(model, self.model), model, tuned)
        results = measure(wanted, self.images)
        critic = load_critic(self.critic) if self.critic else None
        fd = distances(results, critic, reference(self.data, 4 * self.images) if self.data else None)
        text = markdown(results, [_shapes(Path(result.row.model)) for result in results], fd)
        sys.stdout.write(text)
        if self.out:
            self.out.with_suffix(".md").write_text(text, encoding="utf-8")
            shown = np.concatenate([result.pixels_NHW3[:12] for result in results])
            save_grid(self.out.with_suffix(".png"), torch.from_numpy(shown), min(self.images, 12))


def _shapes(folder: Path) -> tuple[VARConfig, VARConfig]:
    cloud = load_scale_cloud(str(folder), folder)
    return cloud.model.config, load_scale_package(str(folder), folder).config
