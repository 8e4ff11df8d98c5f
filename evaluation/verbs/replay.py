"""`ciar-eval trace` and `ciar-eval replay`: decisions of a pair that is here, at the shapes of another."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from pydantic import BaseModel, Field
from pydantic_settings import CliImplicitFlag

from cloud_server.memory import DTYPES
from evaluation.campaign import Campaign, Source, Turn
from evaluation.policies import BASE, CIAR_ONCE, EXACT, LANTERN
from evaluation.records import Book, machine
from evaluation.replay import HEADER, Pair, Replayed, Trace, read_traces, replay, trace_of, write_traces
from shared.errors import InvalidRequest
from shared.models.shapes import SHAPES
from shared.models.zoo import load_device_package

ROWS = (BASE, LANTERN, EXACT[2], CIAR_ONCE)  # what the cloud draws onward cannot be replayed
_MODELS = Path("~/.cache/ciar/models")
_PROMPT = "prompt"  # a row of its own: the prompt and one token


class Record(BaseModel):
    """Draw one image by base, LANTERN, exact and ciar, and write down what was kept, asked and accepted."""

    model: str = Field("emoji", description="model name or folder")
    models: Path = Field(_MODELS, description="folder of fetched weights")
    prompt: str = Field("a cat", description="what to draw")
    seed: int = Field(0, description="of the image", ge=0)
    out: Path = Field(Path("results/trace.json"), description="file of the decisions")

    def run(self) -> None:
        """Draw over the real wire, write the file."""
        traces: dict[str, Trace] = {}
        source = Source(self.model, self.models.expanduser())
        with Campaign(source, Book(self.out.parent / "records.jsonl"), smoke=True) as campaign:
            for row in ROWS:
                policy = row.policy(campaign.calibration())
                *_, last = campaign.watch(Turn(row), (self.prompt, self.seed))
                traces[row.name] = trace_of(last, policy.gate, features=policy.features)
        write_traces(self.out, traces)


class Replay(BaseModel):
    """Time recorded decisions at full-size shapes, over the real wire. Needs --random-weights."""

    model: str = Field("llamagen-xl-256", description=f"one of {', '.join(SHAPES)}")
    random_weights: CliImplicitFlag[bool] = Field(
        False, description="draw the weights: the only way there is"
    )
    trace: Path = Field(description="file of ciar-eval trace")
    fitted: str = Field("emoji", description="the pair whose fitted gate is used")
    models: Path = Field(_MODELS, description="folder of fetched weights")
    dtype: Literal["fp32", "bf16", "fp16"] = Field("bf16", description="of the cloud's weights and cache")
    tokens: int = Field(32, description="tokens an image is cut to", gt=1)
    prompt: int = Field(24, description="prompt rows", gt=0)
    repeats: int = Field(1, description="images a row; medians are shown", gt=0)
    threads: int = Field(1, description="torch threads", gt=0)
    out: Path = Field(Path("results"), description="folder of replay.md")

    def run(self) -> None:
        """Replay every row in turn, print and write the table."""
        if not self.random_weights or self.model not in SHAPES:
            allowed = f"--random-weights and one of {', '.join(SHAPES)}"
            raise InvalidRequest(f"{self.model!r} cannot be replayed so", f"allowed: {allowed}")
        torch.set_num_threads(self.threads)
        whole, shape = read_traces(self.trace), SHAPES[self.model]
        tokens = min(self.tokens, shape.grid**2)
        traces = {name: trace.first(tokens) for name, trace in whole.items()}
        traces[_PROMPT] = Trace(1, 1, "never", features=False)
        fitted = load_device_package(self.fitted, self.models.expanduser())
        drawn = Pair.random(self.model, shape, DTYPES[self.dtype], fitted)
        pair = replace(drawn, prompt=self.prompt)
        found = asyncio.run(replay(pair, traces, self.repeats))
        text = self._table(found)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "replay.md").write_text(text, encoding="utf-8")
        sys.stdout.write(text)

    def _table(self, found: Mapping[str, Sequence[Replayed]]) -> str:
        prompt_s = _median(found, _PROMPT, "total_s")
        names = [name for name in found if name != _PROMPT]
        base_s = _median(found, names[0], "total_s") - prompt_s
        lines = ["| " + " | ".join(HEADER) + " |", "| --- |" + " --: |" * (len(HEADER) - 1)]
        for name in names:
            last, total_s = found[name][-1], _median(found, name, "total_s")
            times = [total_s, total_s - prompt_s, base_s / (total_s - prompt_s)]
            times += [_median(found, name, part) for part in ("cloud_s", "device_s")]
            cells = [name, str(last.tokens), str(last.forwards), *(f"{value:.2f}" for value in times)]
            lines.append(f"| {' | '.join(cells)} |")
        flags = f"--tokens {self.tokens} --prompt {self.prompt} --repeats {self.repeats} --dtype {self.dtype}"
        told = f"ciar-eval replay --model {self.model} --random-weights --trace trace.json {flags}"
        where = f"{machine()}; {self.threads} thread(s); loopback; the prompt and one token: {prompt_s:.2f} s"
        return "\n".join([f"## {self.model}, decisions replayed", "", f"`{told}`", "", *lines, "", where, ""])


def _median(found: Mapping[str, Sequence[Replayed]], name: str, part: str) -> float:
    return median(float(getattr(image, part)) for image in found[name])
