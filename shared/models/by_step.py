"""Models that denoise step by step, as server and device load them: DiT, its small companion, what turns a
latent into a picture. Knows no sampler and no wire.

The folder holds `cloud/`, `device/` (weights, `projection.safetensors`, `thresholds.json`) and `vae/`. The
device reads nothing of the cloud's; the cloud reads of the device's folder the projection alone, by which it
shortens its hidden states to what the device was trained to be shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.config import from_dict, to_dict
from shared.errors import ModelUnavailable
from shared.models.checkpoint import digest, load_weights, read_config, save_folder, unfilled
from shared.models.families.dit import DiTConfig, DiTModel
from shared.models.families.dit_device import StepCompanion, StepDevice
from shared.models.generators import KL, describe, load_generator, load_kl
from shared.models.latent_decoder import load_latent_decoder
from shared.models.zoo import COMMANDS, find, find_for

PROJECTION = "projection.safetensors"
THRESHOLDS = "thresholds.json"
_CONFIG = "config.json"


class Pictures(Protocol):
    """What turns latents into pictures."""

    def pictures(self, latent: Tensor, /) -> Tensor:
        """Latents [B, C, H, H] to uint8 [B, height, width, 3]."""


@dataclass(frozen=True, eq=False)
class Projection:
    """From the cloud's last hidden state to features: [D, F], and its digest."""

    weight_DF: Tensor
    digest: str


@dataclass(frozen=True, eq=False)
class StepCloud:
    """What a server needs. `labels` are the names of the classes; none: a prompt is a class's number. Without
    a projection it gives no features."""

    name: str
    digest: str
    model: DiTModel
    projection: Projection | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class BudgetTable:
    """Of one gate on one process: the share of steps at the cloud that each threshold led to, measured on
    whole images; thresholds ascend, shares fall."""

    spacing: str
    sampler: str
    guidance: float
    max_gap: int
    prefix: int
    thresholds: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class StepPackage:
    """What a device needs. `tables` are calibrated thresholds by gate; `projection` the digest of the one it
    was trained with ("": it wants no features)."""

    name: str
    digest: str
    model: StepDevice
    vae: Pictures
    projection: str = ""
    labels: tuple[str, ...] = ()
    tables: Mapping[str, Sequence[BudgetTable]] | None = None

    @property
    def cloud_digest(self) -> str:
        """The cloud weights this device belongs to."""
        return self.model.companion.cloud_digest

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W of a latent."""
        return latent_shape(self.model.config)


def latent_shape(config: DiTConfig) -> tuple[int, int, int]:
    """C, H, W."""
    return config.channels, config.side, config.side


def save_step_cloud(folder: Path, model: DiTModel, labels: Sequence[str]) -> str:
    """Write a DiT with the names of its classes; its digest."""
    config = {**describe(model), "labels": list(labels)}
    return save_folder(folder, config, model.state_dict(), torch.float16)


def load_dit(folder: Path) -> DiTModel:
    """Read a DiT. Raises ModelUnavailable for a folder of another family."""
    model = load_generator(folder)
    if not isinstance(model, DiTModel):
        raise ModelUnavailable(f"{folder} holds family {model.family!r}", f"allowed: {DiTModel.family!r}")
    return model


def load_step_cloud(name: str, models: Path) -> StepCloud:
    """The cloud side of a model. Raises ModelUnavailable."""
    folder = find(name, models)
    home, file = folder / "cloud", folder / "device" / PROJECTION
    model, labels = load_dit(home), tuple(read_config(home, "cloud").get("labels", ()))
    projection = read_projection(file) if file.is_file() else None
    if projection is not None and len(projection.weight_DF) != model.config.dim:
        what = f"{file} is for hidden states of width {len(projection.weight_DF)}"
        raise ModelUnavailable(what, f"the cloud's have {model.config.dim}")
    return StepCloud(folder.resolve().name, digest(home), model, projection, labels)


def save_step_device(folder: Path, model: StepDevice, projection_DF: Tensor, labels: Sequence[str]) -> str:
    """Write a device model and the projection it was trained with; its digest."""
    described = {"family": DiTModel.family, "model": to_dict(model.config), "labels": list(labels)}
    config: dict[str, Any] = {"kind": "device", **described, "companion": to_dict(model.companion)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weight": projection_DF.detach().float().contiguous().clone()}, folder / PROJECTION)
    return save_folder(folder, config, model.state_dict(), torch.float16)


def read_projection(file: Path) -> Projection:
    """The projection in a file."""
    return Projection(load_file(file)["weight"], hashlib.sha256(file.read_bytes()).hexdigest()[:16])


def load_step_device(folder: Path) -> StepDevice:
    """Read a device model. Raises ModelUnavailable as `read_config` and `load_weights` do."""
    config = read_config(folder, "device")
    shape, companion = from_dict(DiTConfig, config["model"]), from_dict(StepCompanion, config["companion"])
    model = unfilled(lambda: StepDevice(shape, companion))
    load_weights(folder, model)
    return model.eval()


def load_step_package(name: str, models: Path) -> StepPackage:
    """The device side of a model. Raises ModelUnavailable."""
    folder = find_for(COMMANDS[DiTModel.family], name, models)
    home = folder / "device"
    model, file = load_step_device(home), home / PROJECTION
    projection = read_projection(file).digest if file.is_file() else ""
    labels = tuple(read_config(home, "device").get("labels", ()))
    named = folder.resolve().name, digest(home)
    return StepPackage(*named, model, load_pictures(folder / "vae"), projection, labels, read_tables(home))


def load_pictures(folder: Path) -> Pictures:
    """Whatever decoder the folder holds: the autoencoder of MAR's kind, or diffusers'. Raises
    ModelUnavailable."""
    file = folder / _CONFIG
    ours = file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("kind") == KL
    return load_kl(folder) if ours else load_latent_decoder(folder)


def write_tables(home: Path, tables: Mapping[str, Sequence[BudgetTable]]) -> None:
    """Write calibrated thresholds beside a device's weights."""
    values = {name: [to_dict(table) for table in of] for name, of in tables.items()}
    (home / THRESHOLDS).write_text(json.dumps(values) + "\n", encoding="utf-8")


def read_tables(home: Path) -> Mapping[str, Sequence[BudgetTable]] | None:
    """Calibrated thresholds beside a device's weights; None where there are none."""
    file = home / THRESHOLDS
    if not file.is_file():
        return None
    values = json.loads(file.read_text(encoding="utf-8"))
    return {name: [from_dict(BudgetTable, table) for table in of] for name, of in values.items()}
