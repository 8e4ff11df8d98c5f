"""`ciar-eval`: measurements from the command line. The only file here that reads argv and environment."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, CliSubCommand, SettingsConfigDict, get_subcommand
from rich.console import Console
from rich.progress import track

from evaluation.policies import BASE, CIAR, DEVICE, EXACT, GATED, PROMPTS
from evaluation.run import Record, Schedule, cloud_server, matched, run_rows
from evaluation.sheet import make_sheet, write_sheet
from evaluation.sheet import markdown as sheet_markdown
from evaluation.tables import markdown, table
from evaluation.verbs.operations import Faults, Load, Replicas, Soak
from shared.config import wrong_values
from shared.errors import CiarError, InvalidRequest
from shared.models.critic import load_critic
from shared.models.zoo import find, load_cloud, load_device_package


class Bench(BaseModel):
    """Every mode and gate on the same prompts and seeds, interleaved, through a cloud-server process."""

    model: str = Field("emoji", description="model name or folder")
    models: Path = Field(Path("~/.cache/ciar/models"), description="folder of fetched weights")
    prompts: int = Field(len(PROMPTS), description="how many of the fixed prompts", ge=1, le=len(PROMPTS))
    budget: float = Field(0.25, description="cloud forwards per token of the gated rows", gt=0, le=1)
    warm_ups: int = Field(1, description="prompts run once before counting", ge=0)
    threads: int = Field(1, description="torch threads of the device", gt=0)
    out: Path | None = Field(None, description="write OUT.jsonl (one record a line) and OUT.md (the table)")

    def run(self) -> None:
        """Measure, print the table, write the files."""
        torch.set_num_threads(self.threads)
        models = self.models.expanduser()
        package = load_device_package(self.model, models)
        console = Console(stderr=True)
        prompts = PROMPTS[: self.prompts]
        with cloud_server(self.model, "--models", str(models)) as target:
            tuned = [
                matched(package, target, prompts, gate, self.budget)
                for gate in track(GATED, "matching", console=console)
            ]
            rows = (BASE, *EXACT, CIAR, *tuned, DEVICE)
            images = run_rows(package, target, Schedule(rows, prompts, self.warm_ups))
            records = list(track(images, "measuring", total=len(rows) * self.prompts, console=console))
        text = markdown(table(records))
        sys.stdout.write(text)
        if self.out:
            _write(self.out, records, text)


def _write(out: Path, records: Sequence[Record], text: str) -> None:
    lines = (json.dumps({**asdict(record), "counters": record.counters.as_dict()}) for record in records)
    out.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(text, encoding="utf-8")


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
        sheet = make_sheet(pair, _prompts(self.prompts), self.seeds, warp, critic)
        about = {"model": cloud.name, "cloud": cloud.digest, "warp": asdict(warp)}
        write_sheet(sheet, self.out, about)
        sys.stdout.write(sheet_markdown(sheet))


def _prompts(file: Path | None) -> Sequence[str]:
    if file is None:
        return PROMPTS
    if not file.is_file():
        raise InvalidRequest(f"no file {file}", "--prompts names a file with one prompt a line")
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


class EvalApp(BaseSettings):
    """Measure CIAR over the real wire. Example: ciar-eval bench --prompts 20 --out results/bench"""

    model_config = SettingsConfigDict(env_prefix="CIAR_EVAL_", cli_kebab_case=True, cli_prog_name="ciar-eval")
    bench: CliSubCommand[Bench]
    sheet: CliSubCommand[Sheet]
    faults: CliSubCommand[Faults]
    load: CliSubCommand[Load]
    soak: CliSubCommand[Soak]
    replicas: CliSubCommand[Replicas]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one measurement. Exit status 0, 1 for an error that says what to do, 2 for a wrong flag."""
    try:
        verb = get_subcommand(CliApp.run(EvalApp, cli_args=list(sys.argv[1:] if argv is None else argv)))
    except ValidationError as error:
        print(f"error: {wrong_values(error.errors())}", file=sys.stderr)
        return 2
    assert isinstance(verb, Bench | Sheet | Faults | Load | Soak | Replicas)
    try:
        verb.run()
    except CiarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
