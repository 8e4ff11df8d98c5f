"""`ciar-eval auroc`: how well every gate ranks. Knows no argv."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import BaseModel, Field

from evaluation.ranking import markdown, rank, score_gates
from evaluation.verbs.sheet import prompts_of
from shared.models.zoo import load_cloud, load_device_package


class Auroc(BaseModel):
    """How well every gate ranks, teacher-forced on images the cloud model draws; no server."""

    model: str = Field("emoji", description="model name or folder")
    models: Path = Field(Path("~/.cache/ciar/models"), description="folder of fetched weights")
    prompts: Path | None = Field(None, description="file with one prompt a line instead of the fixed ones")
    images: int = Field(100, description="images, prompts taken in turn", gt=1)
    cache: Path | None = Field(None, description="file that keeps the drawn images for the next time")
    threads: int = Field(1, description="torch threads", gt=0)
    out: Path | None = Field(None, description="write OUT.json and OUT.md (the table)")

    def run(self) -> None:
        """Draw, score, print the table, write the files."""
        torch.set_num_threads(self.threads)
        models = self.models.expanduser()
        cloud, package = load_cloud(self.model, models), load_device_package(self.model, models)
        scores, differ = score_gates(cloud, package, prompts_of(self.prompts), self.images, self.cache)
        rows = rank(scores, differ)
        text = markdown(rows, differ)
        sys.stdout.write(text)
        if self.out:
            records = json.dumps([asdict(row) for row in rows])
            self.out.with_suffix(".json").write_text(records + "\n", encoding="utf-8")
            self.out.with_suffix(".md").write_text(text, encoding="utf-8")
