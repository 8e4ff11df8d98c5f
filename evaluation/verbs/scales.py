"""The verb `ciar-eval scales`: CoDe and CIAR on VAR."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field

from evaluation.scale_tables import markdown
from evaluation.scales import measure, rows
from evaluation.small_pictures import DistanceTable
from shared.models.by_scale import load_scale_cloud, load_scale_package
from shared.models.families.var import VARConfig


class Scales(DistanceTable):
    """CoDe and CIAR on VAR over the real wire: time, bytes, memory of both processes, quality against N."""

    model: Path = Field(description="model folder of ciar-train var-device: cloud/, device/, vae/")
    tuned: dict[int, Path] = Field({}, description="N=FOLDER of a drafter and refiner tuned for N scales")

    def run(self) -> None:
        """Measure, print both tables, write the files."""
        torch.set_num_threads(self.threads)
        self.check()
        model = str(self.model)
        tuned = [(count, str(home)) for count, home in self.tuned.items()]
        wanted = rows(load_scale_package(model, self.model), model, tuned)
        results = measure(wanted, self.images)
        pixels = [result.pixels_NHW3 for result in results]
        shapes = [_shapes(Path(result.row.model)) for result in results]
        self.write(markdown(results, shapes, self.distances(pixels)), pixels)


def _shapes(folder: Path) -> tuple[VARConfig, VARConfig]:
    cloud = load_scale_cloud(str(folder), folder)
    return cloud.model.config, load_scale_package(str(folder), folder).config
