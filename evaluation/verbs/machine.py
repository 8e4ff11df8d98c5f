"""The verbs `ciar-eval engine`, `device` and `memory`: how fast and how large models are on this machine."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, Field
from pydantic_settings import CliImplicitFlag

from cloud_server.memory import DTYPES, session_need, usable_bytes
from evaluation import steps
from evaluation.engine import COMPILED, EAGER, PACKED, Engines, Plan, markdown, measure
from evaluation.promptless import random_transformer
from shared.config import TransformerConfig, from_dict
from shared.errors import ModelUnavailable
from shared.models.checkpoint import read_config
from shared.models.shapes import SHAPES
from shared.models.transformer import Transformer
from shared.models.zoo import find, load_cloud, load_device_package, token_models
from shared.threads import use_threads

_MIB, _GIB = 2**20, 2**30
_MODELS = Path("~/.cache/ciar/models")


class EngineSpeed(BaseModel):
    """Milliseconds of prefills, steps and checks, beside the machine's bandwidth and its bare matmuls."""

    model: str = Field("emoji", description="model name or folder")
    models: Path = Field(_MODELS, description="folder of fetched weights")
    random_weights: CliImplicitFlag[bool] = Field(False, description="draw the weights: no files are needed")
    dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of weights and cache")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the model runs")
    compile: CliImplicitFlag[bool] = Field(False, description="measure compiled forwards as well")
    pack_weights: CliImplicitFlag[bool] = Field(False, description="measure packed weights, a second copy")
    sessions: list[int] = Field([1, 8, 32], description="images per forward", min_length=1)
    spans: list[int] = Field([4, 8, 16], description="lengths of checked spans")
    prompt: int = Field(24, description="prompt rows, no more than the model has", gt=0)
    context: int = Field(80, description="image tokens in the cache", ge=0)
    repeats: int = Field(5, description="measurements of each forward", gt=0)
    prefill: CliImplicitFlag[bool] = Field(True, description="measure prefills")
    threads: int = Field(1, description="torch threads", gt=0)
    out: Path | None = Field(None, description="write OUT.md")

    def run(self) -> None:
        """Measure, print the table as it grows, write the file."""
        torch.set_num_threads(self.threads)
        usable_bytes(1.0, self.device)  # a device that is not there is an error now
        gpt = self._transformer()
        names = [EAGER, *([PACKED] if self.pack_weights else []), *([COMPILED] if self.compile else [])]
        plan = Plan(
            self.sessions, self.spans, min(self.prompt, gpt.config.prefix_len), self.context, self.repeats,
            self.prefill,
        )  # fmt: skip
        plan.check(gpt)
        engines = Engines.make(gpt, names, max(self.sessions))
        said = [self._heading(engines)]
        sys.stdout.write(said[0])
        for line in markdown(measure(engines, plan)):
            said.append(line)
            sys.stdout.write(line)
            sys.stdout.flush()
        if self.out:
            self.out.with_suffix(".md").write_text("".join(said), encoding="utf-8")

    def _transformer(self) -> Transformer:
        models, dtype = self.models.expanduser(), DTYPES[self.dtype]
        if not self.random_weights:
            return load_cloud(self.model, models, dtype, self.device).model.gpt
        shape = SHAPES.get(self.model) or shape_of(find(self.model, models))
        return random_transformer(shape, dtype, self.device)

    def _heading(self, engines: Engines) -> str:
        chip = torch.cuda.get_device_name() if self.device == "cuda" else platform.machine()
        ready = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in engines.ready_s.items())
        weights = "random weights" if self.random_weights else "its weights"
        where = f"{self.device} ({chip}), {self.threads} thread(s), torch {torch.__version__}"
        kept = f"{self.prompt} prompt rows, {self.context} tokens of context, {self.repeats} repeats"
        return f"{self.model}, {weights}, {self.dtype}, {where}; {kept}; ready after: {ready}\n\n"


class DeviceSpeed(BaseModel):
    """Milliseconds of a device's step by each path, beside the time that reading its bytes takes."""

    model: str = Field("emoji", description="model name or folder")
    models: Path = Field(_MODELS, description="folder of fetched weights")
    gates: list[str] = Field(["agreement", "interval"], description="gates that score", min_length=1)
    images: int = Field(5, description="images drawn by each path, in turn", gt=0)

    def run(self) -> None:
        """Measure with one thread, print the table as it grows."""
        use_threads(1)
        package = load_device_package(self.model, self.models.expanduser())
        head = [steps.HEADER, ["---", "---"] + ["--:"] * (len(steps.HEADER) - 2)]
        cells = chain(head, *(steps.Steps(package, gate, self.images).lines() for gate in self.gates))
        for line in cells:
            sys.stdout.write("| " + " | ".join(line) + " |\n")
            sys.stdout.flush()


class Memory(BaseModel):
    """What models take: weights, and one session with guidance, computed from their shapes."""

    models: Path = Field(_MODELS, description="folder of fetched weights")

    def run(self) -> None:
        """Print a table: every model that is published or here, in both widths."""
        head = ["model", "parameters", *(f"{name} weights" for name in ("fp32", "bf16"))]
        head += [f"{name} per session" for name in ("fp32", "bf16")]
        lines = [head, ["---"] + ["--:"] * (len(head) - 1)]
        lines += [memory_cells(name, shape) for name, shape in self._shapes()]
        sys.stdout.write("".join("| " + " | ".join(line) + " |\n" for line in lines))

    def _shapes(self) -> Iterator[tuple[str, TransformerConfig]]:
        models = self.models.expanduser()
        here = {name: shape_of(find(name, models)) for name in token_models(models)}
        yield from {**here, **SHAPES}.items()


def shape_of(folder: Path) -> TransformerConfig:
    """The shape of a model folder's cloud. Raises ModelUnavailable where it has none."""
    description = read_config(folder / "cloud", "cloud")
    if "transformer" not in description:
        raise ModelUnavailable(f"{folder / 'cloud'} describes no transformer", f"keys: {sorted(description)}")
    return from_dict(TransformerConfig, description["transformer"])


def memory_cells(name: str, shape: TransformerConfig) -> list[str]:
    """Name, parameters, weights and bytes per session in fp32 and bf16."""
    with torch.device("meta"):
        count = sum(value.numel() for value in Transformer(shape).parameters())
    dtypes = (torch.float32, torch.bfloat16)
    weights = [f"{count * dtype.itemsize / _GIB:.2f} GiB" for dtype in dtypes]
    sessions = [f"{sum(session_need(shape, dtype)) / _MIB:,.0f} MiB" for dtype in dtypes]
    return [name, f"{count / 1e6:,.0f} M", *weights, *sessions]
