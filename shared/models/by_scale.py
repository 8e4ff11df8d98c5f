"""Models that draw scale by scale, as server and device load them: VAR, its small companion with an
Inter-Head, their common codebook. Knows no sampler and no wire.

The folder holds `cloud/`, `device/` (weights and `thresholds.json`) and `vae/`. No side reads the other's
weights: the cloud needs the codebook and its filters alone, the device the digest of the cloud's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from shared.config import VQConfig, from_dict, to_dict
from shared.decoding.gates import Evidence
from shared.decoding.scales import MAX_PLACES
from shared.decoding.warp import MIN_TEMPERATURE, Warp
from shared.errors import InvalidPrompt, InvalidRequest, ModelMismatch, ModelUnavailable
from shared.models.checkpoint import WEIGHTS, digest, load_weights, read_config, save_folder, unfilled
from shared.models.families.var import VARConfig, VARModel
from shared.models.families.var_run import ScaleRun
from shared.models.families.var_vae import ScaleQuantizer, ScaleVQ, ScaleVQConfig
from shared.models.generators import describe, load_generator, load_scale_vq
from shared.models.inter_head import InterHead
from shared.models.text import split_words
from shared.models.zoo import COMMANDS, find, find_for

THRESHOLDS = "thresholds.json"
GLUE = frozenset({"a", "an", "the"})  # words of a prompt that name no class
SHARES = 20  # quantiles of a gate's scores that are kept per scale: 0, 1/20, ... 1
_CODEBOOK = "quantize."


@dataclass(frozen=True)
class Companion:
    """What a device model adds to a VAR: whose it is, and how far its Inter-Head may reach."""

    cloud_digest: str
    radius_max: float = 8.0


class ScaleDevice(nn.Module):
    """A small VAR with an Inter-Head: its own logits are the centres. It needs nothing from the cloud."""

    def __init__(self, config: VARConfig, companion: Companion) -> None:
        super().__init__()
        self.companion, self.base = companion, VARModel(config)
        self.inter_head = InterHead(config.dim, config.vocab_size, companion.radius_max)

    def radii(self, hidden_BTD: Tensor, cond_BD: Tensor) -> Tensor:
        """Radii [B, T, V] of the logits that `base.logits` makes of the same states."""
        out: Tensor = self.inter_head(self.base.head_nm(hidden_BTD, cond_BD))
        return out


@dataclass(frozen=True, eq=False)
class ScaleCloud:
    """What a server needs. `labels` are the names of the classes; none: a prompt is a class's number."""

    name: str
    digest: str
    model: VARModel
    quantizer: ScaleQuantizer
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ScalePackage:
    """What a device needs. `thresholds` are quantiles [S][SHARES + 1] of a gate's scores at every scale."""

    name: str
    digest: str
    model: ScaleDevice
    vq: ScaleVQ
    labels: tuple[str, ...] = ()
    thresholds: Mapping[str, Sequence[Sequence[float]]] | None = None

    @property
    def cloud_digest(self) -> str:
        """The cloud weights this device belongs to."""
        return self.model.companion.cloud_digest

    @property
    def config(self) -> VARConfig:
        """The shape of the device's VAR: its scales and codes are the cloud's."""
        return self.model.base.config


def evidence(device: ScaleDevice, run: ScaleRun, noise_TV: Tensor, seed: int, warp: Warp) -> Evidence:
    """What a gate reads of the scale whose `logits_1TV` the run of one image was last asked for: guided and
    untruncated logits; the radii are those of the conditional row."""
    logits_TV = run.logits_BTV[0]
    places_T = run.scale * MAX_PLACES + torch.arange(len(logits_TV))
    radius_TV = device.radii(run.hidden_RTD[:1], run.cond_RD[:1])[0]
    log_q_TV = (logits_TV / max(warp.temperature, MIN_TEMPERATURE)).log_softmax(-1)
    return Evidence(seed, places_T, log_q_TV, noise_TV, logits_TV, radius_TV)


def label_of(prompt: str, labels: Sequence[str], classes: int) -> int:
    """The class that a prompt names: "a cat" among labels, else its number. Raises InvalidPrompt."""
    said = " ".join(word for word in split_words(prompt) if word not in GLUE)
    names = [" ".join(split_words(label)) for label in labels]
    if said in names:
        return names.index(said)
    if said.isdecimal() and int(said) < classes:
        return int(said)
    allowed = ", ".join(labels[:8]) + ", ..." if labels else "a class"
    raise InvalidPrompt(f"{prompt!r} is no class of this model", f"allowed: {allowed}, or 0 to {classes - 1}")


def cut_scales(cloud: VARModel, layers: int, companion: Companion) -> ScaleDevice:
    """The cloud without its later blocks, with an untrained Inter-Head. Raises InvalidRequest."""
    if not 1 <= layers <= cloud.config.depth:
        what = f"{layers} layers of {cloud.config.depth}"
        raise InvalidRequest(what, f"allowed: 1 to {cloud.config.depth}")
    device = ScaleDevice(replace(cloud.config, depth=layers), companion)
    known = cloud.state_dict()
    device.base.load_state_dict({name: known[name] for name in device.base.state_dict()})
    return device


def save_scale_cloud(folder: Path, model: VARModel, labels: Sequence[str]) -> str:
    """Write a VAR with the names of its classes; its digest."""
    config = {**describe(model), "labels": list(labels)}
    return save_folder(folder, config, model.state_dict(), torch.float16)


def load_scale_cloud(name: str, models: Path) -> ScaleCloud:
    """The cloud side of a model. Raises ModelUnavailable."""
    folder = find(name, models)
    home = folder / "cloud"
    model = load_generator(home)
    if not isinstance(model, VARModel):
        raise ModelUnavailable(f"{home} holds family {model.family!r}", f"allowed here: {VARModel.family!r}")
    quantizer = load_quantizer(folder / "vae")
    return ScaleCloud(folder.resolve().name, digest(home), model, quantizer, _labels(home, "cloud"))


def load_scale_shape(folder: Path) -> VARConfig:
    """The shape of a cloud model; no weights are read. Raises ModelUnavailable."""
    return from_dict(VARConfig, read_config(folder, "cloud")["model"])


def load_quantizer(folder: Path) -> ScaleQuantizer:
    """Codebook and filters of VAR's tokenizer; nothing else of the file is read."""
    config = read_config(folder, "scale-vq")
    shape, maps = from_dict(VQConfig, config["vq"]), from_dict(ScaleVQConfig, config["maps"])
    quantizer = ScaleQuantizer(shape, maps)
    with safe_open(folder / WEIGHTS, "pt") as file, torch.no_grad():
        for name, value in quantizer.state_dict().items():
            value.copy_(file.get_tensor(_CODEBOOK + name))
    return quantizer.eval()


def save_scale_device(folder: Path, model: ScaleDevice, labels: Sequence[str]) -> str:
    """Write a device model; its digest."""
    config = describe_scale_device(model.base.config, model.companion, labels)
    return save_folder(folder, config, model.state_dict(), torch.float16)


def describe_scale_device(config: VARConfig, companion: Companion, labels: Sequence[str]) -> dict[str, Any]:
    """What `load_scale_device` needs, in JSON."""
    described = {"family": VARModel.family, "model": to_dict(config), "labels": list(labels)}
    return {"kind": "device", **described, "companion": to_dict(companion)}


def load_scale_device(folder: Path) -> ScaleDevice:
    """Read a device model. Raises ModelUnavailable as `read_config` and `load_weights` do."""
    config = read_config(folder, "device")
    shape, companion = from_dict(VARConfig, config["model"]), from_dict(Companion, config["companion"])
    model = unfilled(lambda: ScaleDevice(shape, companion))
    load_weights(folder, model)
    return model.eval()


def load_scale_package(name: str, models: Path) -> ScalePackage:
    """The device side of a model. Raises ModelUnavailable, and ModelMismatch where its tokenizer has other
    scales."""
    folder = find_for(COMMANDS[VARModel.family], name, models)
    home = folder / "device"
    model, vq = load_scale_device(home), load_scale_vq(folder / "vae")
    if model.base.config.scales != vq.maps.scales:
        what = f"the device has scales {model.base.config.scales}, its tokenizer {vq.maps.scales}"
        raise ModelMismatch(what, "both must come from the same cloud")
    file = home / THRESHOLDS
    thresholds = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    named = folder.resolve().name, digest(home)
    return ScalePackage(*named, model, vq, _labels(home, "device"), thresholds)


def _labels(home: Path, kind: str) -> tuple[str, ...]:
    return tuple(read_config(home, kind).get("labels", ()))
