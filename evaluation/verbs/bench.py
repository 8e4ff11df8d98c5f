"""`ciar-eval bench`: every mode and gate in one table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from rich.console import Console
from rich.progress import track

from evaluation.policies import BASE, CIAR, DEAF, DEVICE, EXACT, GATED, PROMPTS, RIVALS, Row
from evaluation.records import Record
from evaluation.run import Schedule, cloud_server, matched, run_rows
from evaluation.tables import markdown, table
from shared.errors import InvalidRequest
from shared.models.zoo import load_device_package


class Bench(BaseModel):
    """Every mode and gate on the same prompts and seeds, interleaved, through a cloud-server process."""

    model: str = Field("emoji", description="model name or folder")
    models: Path = Field(Path("~/.cache/ciar/models"), description="folder of fetched weights")
    prompts: int = Field(len(PROMPTS), description="how many of the fixed prompts", ge=1, le=len(PROMPTS))
    budget: float = Field(0.25, description="cloud forwards per token of the gated rows", gt=0, le=1)
    warm_ups: int = Field(1, description="prompts run once before counting", ge=0)
    threads: int = Field(1, description="torch threads of the device", gt=0)
    only: str | None = Field(
        None, description='rows to run beside the base, "exact; SCD, window 16"; else all'
    )
    out: Path | None = Field(None, description="write OUT.jsonl (one record a line) and OUT.md (the table)")

    def run(self) -> None:
        """Measure, print the table, write the files."""
        torch.set_num_threads(self.threads)
        models = self.models.expanduser()
        package = load_device_package(self.model, models)
        console = Console(stderr=True)
        prompts = PROMPTS[: self.prompts]
        calibrated = [gate for gate in GATED if gate in package.calibration.gates]
        with cloud_server(self.model, "--models", str(models)) as target:
            tuned = [
                matched(package, target, prompts, gate, self.budget)
                for gate in track(calibrated if self.only is None else (), "matching", console=console)
            ]
            rows = self._rows((*EXACT, *RIVALS, CIAR, DEAF, *tuned, DEVICE))
            images = run_rows(package, target, Schedule(rows, prompts, self.warm_ups))
            records = list(track(images, "measuring", total=len(rows) * self.prompts, console=console))
        text = markdown(table(records))
        sys.stdout.write(text)
        if self.out:
            _write(self.out, records, text)

    def _rows(self, rows: Sequence[Row]) -> tuple[Row, ...]:
        known = {row.name: row for row in rows}
        names = list(known) if self.only is None else [name.strip() for name in self.only.split(";")]
        if unknown := [name for name in names if name not in known]:
            raise InvalidRequest(f"no row {unknown[0]!r}", f"allowed: {'; '.join(known)}")
        return BASE, *(known[name] for name in names)


def _write(out: Path, records: Sequence[Record], text: str) -> None:
    lines = (json.dumps(record.as_dict()) for record in records)
    out.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(text, encoding="utf-8")
