"""Models of continuous tokens, as server and device load them: MAR, its small companion, their autoencoder.
Knows no sampler and no wire.

The folder holds `cloud/`, `device/` and `vae/`. The device reads nothing of the cloud's. The cloud reads of
the device's folder, where it has one, the diffusion head alone: the exact acceptance runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from shared.config import to_dict
from shared.errors import ModelMismatch, ModelUnavailable
from shared.models.checkpoint import WEIGHTS, digest, load_weights, read_config, save_folder, unfilled
from shared.models.diffloss import DiffLoss
from shared.models.families.mar import MARConfig, MARModel
from shared.models.generators import GENERATORS, describe, load_generator, load_kl
from shared.models.kl_vae import KLVAE
from shared.models.zoo import COMMANDS, find, find_for

_HEAD = "diffloss."


@dataclass(frozen=True, eq=False)
class MaskedCloud:
    """What a server needs. `labels` are the names of the classes; none: a prompt is a class's number.
    `proposer` is the head of the device's model."""

    name: str
    digest: str
    model: MARModel
    proposer: DiffLoss | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class MaskedPackage:
    """What a device needs. `clip` is the bound of the heads' idea of a token that the pair is made for; 0:
    none."""

    name: str
    digest: str
    cloud_digest: str
    model: MARModel
    vae: KLVAE
    labels: tuple[str, ...] = ()
    clip: float = 0.0


def load_mar(folder: Path) -> MARModel:
    """Read a MAR. Raises ModelUnavailable for a folder of another family."""
    model = load_generator(folder)
    if not isinstance(model, MARModel):
        raise ModelUnavailable(f"{folder} holds family {model.family!r}", f"allowed: {MARModel.family!r}")
    return model


def load_shape(folder: Path) -> MARConfig:
    """The shape of a cloud model; no weights are read. Raises ModelUnavailable."""
    with torch.device("meta"):
        return made(folder, read_config(folder, "cloud")).config


def save_masked_cloud(folder: Path, model: MARModel, labels: Sequence[str]) -> str:
    """Write a MAR with the names of its classes; its digest."""
    config = {**describe(model), "labels": list(labels)}
    return save_folder(folder, config, model.state_dict(), torch.float16)


def load_masked_cloud(name: str, models: Path) -> MaskedCloud:
    """The cloud side of a model. Raises ModelUnavailable."""
    folder = find(name, models)
    home, device = folder / "cloud", folder / "device"
    model, labels = load_mar(home), tuple(read_config(home, "cloud").get("labels", ()))
    proposer = load_head(device) if (device / WEIGHTS).is_file() else None
    return MaskedCloud(folder.resolve().name, digest(home), model, proposer, labels)


def save_masked_device(
    folder: Path, model: MARModel, cloud_digest: str, labels: Sequence[str], clip: float = 0.0
) -> str:
    """Write a device model; its digest."""
    config = describe_masked_device(model.config, cloud_digest, labels, clip)
    return save_folder(folder, config, model.state_dict(), torch.float16)


def describe_masked_device(
    config: MARConfig, cloud_digest: str, labels: Sequence[str], clip: float = 0.0
) -> dict[str, Any]:
    """What `load_masked_device` needs, in JSON."""
    described = {"family": MARModel.family, "model": to_dict(config), "labels": list(labels)}
    return {"kind": "device", **described, "companion": {"cloud_digest": cloud_digest, "clip": clip}}


def load_masked_device(folder: Path) -> tuple[MARModel, dict[str, Any]]:
    """A device model and its config. Raises ModelUnavailable as `read_config` and `load_weights` do, or for
    another family."""
    config = read_config(folder, "device")
    model = unfilled(lambda: made(folder, config))
    load_weights(folder, model)
    return model.eval(), config


def load_head(folder: Path) -> DiffLoss:
    """The diffusion head of a device model; nothing else of the file is read. Raises ModelUnavailable."""
    config = read_config(folder, "device")
    head: DiffLoss = unfilled(lambda: made(folder, config).diffloss)
    with safe_open(folder / WEIGHTS, "pt") as file, torch.no_grad():
        for name, value in head.state_dict().items():
            value.copy_(file.get_tensor(_HEAD + name))
    return head.eval()


def load_masked_package(name: str, models: Path) -> MaskedPackage:
    """The device side of a model. Raises ModelUnavailable, and ModelMismatch where its tokens are not made of
    the autoencoder's latents."""
    folder = find_for(COMMANDS[MARModel.family], name, models)
    home = folder / "device"
    (model, config), vae = load_masked_device(home), load_kl(folder / "vae")
    if model.config.token_dim != vae.config.latent * model.config.patch**2:
        what = f"tokens of {model.config.token_dim} numbers and latents of {vae.config.latent}"
        raise ModelMismatch(what, "both must come from the same cloud")
    companion, labels = config["companion"], tuple(config.get("labels", ()))
    named = folder.resolve().name, digest(home), str(companion["cloud_digest"])
    return MaskedPackage(*named, model, vae, labels, float(companion.get("clip", 0.0)))


def made(folder: Path, config: dict[str, Any]) -> MARModel:
    """A MAR of the shape that a config says, weights unfilled. Raises ModelUnavailable for another
    family."""
    if config.get("family") != MARModel.family:
        what = f"{folder} holds family {config.get('family')!r}"
        raise ModelUnavailable(what, f"allowed: {MARModel.family!r}")
    model = GENERATORS[MARModel.family](config["model"])
    assert isinstance(model, MARModel)
    return model
