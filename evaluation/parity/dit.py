"""Golden folders of DiT. Knows no argv.

Every weight file goes through the converter into a model folder and is loaded from there. States grow to
thousands, so errors are relative to the largest golden value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from evaluation.parity.checks import (
    BROKEN,
    Check,
    Named,
    compare,
    guarded,
    left_over,
    read_golden,
    refused,
    same,
    scaled,
    weight_files,
)
from shared.decoding.diffusion import STEPS, Schedule, ancestral, believed, ddim, linear, respaced, spaced
from shared.models.families.dit import DiTConfig, DiTModel, position_table
from shared.models.generators import load_generator
from shared.models.vit import time_features
from training.generators import DIT_NESTS, dit_config, write_generator
from training.sources import read_tensors

MAPS = "respacing_maps"


def check(folder: Path, settings: Mapping[str, Any]) -> Iterator[Check]:
    """Every case of the folder, then the files of other layouts, each with the case it holds."""
    cases = {name: case["config"] for name, case in settings.items() if "config" in case}
    for name, config in cases.items():
        yield from guarded(name, _case(folder, name, config))
    for file in weight_files(folder):
        if file.stem not in cases:
            yield from guarded(file.name, _layout(folder, file, cases))
    for spacing, steps in settings.get(MAPS, {}).items():
        found = torch.tensor(spaced(STEPS, spacing))
        yield same(f"{MAPS} {spacing}", found, torch.tensor(steps))


def tolerance(name: str) -> float:
    """How far fp32 may differ from the official numbers, by tensor; tables are float64."""
    if name.startswith("sched"):
        return 1e-12
    return 1e-6 if name.startswith("pmv") else 1e-5


def load(file: Path, heads: int, home: Path) -> DiTModel:
    """Convert a file below `home` and load the folder. Raises ModelUnavailable."""
    tensors = read_tensors(file, DIT_NESTS)
    with torch.device("meta"):
        model = DiTModel(dit_config(tensors, heads))
    write_generator(home / "cloud", model, tensors)
    found = load_generator(home / "cloud")
    assert isinstance(found, DiTModel)
    return found


def _case(folder: Path, name: str, config: Mapping[str, Any]) -> Iterator[Check]:
    golden = read_golden(folder / f"{name}.golden.safetensors")
    for file in weight_files(folder):
        if file.stem == name:
            with TemporaryDirectory() as home, torch.inference_mode():
                model = load(file, config["num_heads"], Path(home))
                found = _found(model, golden)
                yield from compare(file.name, *scaled(found, golden), tolerance)
                yield from left_over(file.name, found, golden)


def _layout(folder: Path, file: Path, cases: Mapping[str, Mapping[str, Any]]) -> Iterator[Check]:
    """The model of the case with that shape, in another layout."""
    with TemporaryDirectory() as home, torch.inference_mode():
        if BROKEN in file.name:
            yield refused(file.name, lambda: load(file, 1, Path(home)))
            return
        shape = dit_config(read_tensors(file, DIT_NESTS), 1)
        for name, config in cases.items():
            if _fits(shape, config):
                golden = read_golden(folder / f"{name}.golden.safetensors")
                found = {"out.raw": _raw(load(file, config["num_heads"], Path(home)), golden)}
                yield from compare(f"{file.name} {name}", *scaled(found, golden), tolerance)


def _fits(shape: DiTConfig, config: Mapping[str, Any]) -> bool:
    names = {"depth": "depth", "dim": "hidden_size", "patch": "patch_size", "side": "input_size"}
    names |= {"classes": "num_classes", "channels": "in_channels"}
    return all(getattr(shape, ours) == config[theirs] for ours, theirs in names.items())


def _raw(model: DiTModel, golden: Named) -> Tensor:
    out: Tensor = model(golden["in.x"], golden["in.t"], golden["in.y"])
    return out


def _found(model: DiTModel, golden: Named) -> dict[str, Tensor]:
    raw, count = _raw(model, golden), model.config.side // model.config.patch
    found = {
        "out.raw": raw,
        "out.t_freq": time_features(golden["in.t"]),
        "out.pos_embed_fp32": position_table(model.config.dim, count),
    }
    if model.config.learned_spread:
        of = believed(linear(), golden["in.t"], golden["in.x"], *raw.chunk(2, dim=1))
        found |= {"pmv.mean": of.mean, "pmv.log_variance": of.log_variance, "pmv.pred_xstart": of.image}
        found["pmv.variance"] = of.log_variance.exp()
    for key in golden:
        if at := re.fullmatch(r"sched\.(.+)\.betas", key):
            found |= _tables(respaced(linear(), at[1]), f"sched.{at[1]}")
    rows = len(golden["cfg.z"])
    scales = [float(at[1]) for key in golden if (at := re.fullmatch(r"cfg\.scale(.+)\.out", key))]
    for scale in scales:
        out = model.guided(golden["cfg.z"], golden["cfg.t"][:rows], golden["cfg.y"][:rows], scale)
        found[f"cfg.scale{scale}.out"] = out
    for key in golden:
        if at := re.fullmatch(r"(ddim|ddpm)(\d+)\.x", key):
            found |= _sampled(model, golden, at[1], at[2], min(scales))
    return found


def _tables(schedule: Schedule, name: str) -> dict[str, Tensor]:
    tables = {"betas": schedule.betas, "alphas_cumprod": schedule.kept}
    found = {f"{name}.{key}": torch.from_numpy(table) for key, table in tables.items()}
    return {**found, f"{name}.timestep_map": torch.tensor(schedule.original)}


def _sampled(model: DiTModel, golden: Named, kind: str, count: str, scale: float) -> dict[str, Tensor]:
    """States of both halves after each step; the model reads the first half alone."""
    schedule = respaced(linear(), f"ddim{count}" if kind == "ddim" else count)
    rows, name = len(golden["cfg.z"]), f"{kind}{count}"
    x, states, images = golden["cfg.z"].repeat(2, 1, 1, 1), [], []
    for index, t in enumerate(reversed(range(len(schedule)))):
        t_N, step_B = torch.full((2 * rows,), t), torch.full((rows,), schedule.original[t])
        out = model.guided(x[:rows], step_B, golden["cfg.y"][:rows], scale)
        eps, spread = out[:, : model.config.channels], out[:, model.config.channels :]
        if kind == "ddim":
            x, image = ddim(schedule, t_N, x, eps)
            images.append(image)
        else:
            x = ancestral(believed(schedule, t_N, x, eps, spread), t_N, golden[f"{name}.noise"][index])
        states.append(x)
    found = {f"{name}.x": torch.stack(states)}
    return {**found, f"{name}.pred_xstart": torch.stack(images)} if images else found
