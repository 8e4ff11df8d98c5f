"""`ciar-eval sheet`: pictures to look at."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import BaseModel, Field

from evaluation.policies import PROMPTS
from evaluation.sheet import make_sheet, markdown, write_sheet
from shared.errors import InvalidRequest
from shared.models.critic import load_critic
from shared.models.zoo import find, load_cloud, load_device_package


class Sheet(BaseModel):
    """Pictures to look at: prompts by seeds, drawn by the cloud model alone, with a file for verdicts."""

    model: str = Field("emoji", description="model name or folder; its critic/ judges, where it has one")
    models: Path = Field(Path("~/.cache/ciar/models"), description="folder of fetched weights")
    prompts: Path | None = Field(None, description="file with one prompt a line instead of the fixed ones")
    seeds: int = Field(4, description="pictures per prompt, seeds counting up from 0", gt=0)
    threads: int = Field(1, description="torch threads", gt=0)
    out: Path = Field(description="write OUT.png, OUT.md and OUT.json")

    def run(self) -> None:
        """Draw, judge, write the files, print the table."""
        torch.set_num_threads(self.threads)
        models = self.models.expanduser()
        cloud, package = load_cloud(self.model, models), load_device_package(self.model, models)
        folder = find(self.model, models) / "critic"
        critic = load_critic(folder) if folder.is_dir() else None
        pair, warp = (cloud.model, package.vq), package.calibration.warp
        sheet = make_sheet(pair, prompts_of(self.prompts), self.seeds, warp, critic)
        about = {"model": cloud.name, "cloud": cloud.digest, "warp": asdict(warp)}
        write_sheet(sheet, self.out, about)
        sys.stdout.write(markdown(sheet))


def prompts_of(file: Path | None) -> Sequence[str]:
    if file is None:
        return PROMPTS
    if not file.is_file():
        raise InvalidRequest(f"no file {file}", "--prompts names a file with one prompt a line")
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
