"""Model names, and where their folders are: the list that `--model` prints. Knows nothing of argv or
environment.

A model is one folder with `cloud/`, `device/` (weights and `calibration.json`) and `vq/`. Names are looked up
among the bundled models, then below the folder for fetched weights; a path to such a folder works as well.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from shared.config import DeviceConfig, from_dict
from shared.decoding.calibration import Calibration, GateTable
from shared.decoding.warp import Warp
from shared.errors import ModelMismatch, ModelUnavailable
from shared.models.checkpoint import digest, load_device, load_model, load_vq
from shared.models.family import ImageModel
from shared.models.inter_head import DeviceModel
from shared.models.vq import VQModel

BUNDLED = Path(__file__).parent / "bundled"
# Published models whose weights are not bundled: name -> what they are.
PUBLISHED = {
    "llamagen-xl-256": "LlamaGen GPT-XL text-to-image, stage I, 256 px (peizesun/llamagen_t2i)",
    "llamagen-xl-512": "LlamaGen GPT-XL text-to-image, stage II, 512 px (peizesun/llamagen_t2i)",
    "anole": "Anole 7B (GAIR/Anole-7b-v0.1)",
}
BRIDGE = "bridge.safetensors"
CALIBRATION = "calibration.json"


@dataclass(frozen=True, eq=False)
class CloudModel:
    """What the server needs: the large model and W of eq. 6, `bridge_DF` [D, d_f] (zero: features change
    nothing)."""

    name: str
    digest: str
    model: ImageModel
    bridge_DF: Tensor


@dataclass(frozen=True, eq=False)
class DevicePackage:
    """What the device needs: the small model, the VQ decoder, the calibration of its gates."""

    name: str
    digest: str
    model: DeviceModel
    vq: VQModel
    calibration: Calibration

    @property
    def cloud_digest(self) -> str:
        """The cloud weights this device belongs to."""
        return self.model.config.cloud_digest


def available(models: Path) -> list[str]:
    """Names whose weights are here, bundled ones first."""
    fetched = (
        sorted(path.name for path in models.iterdir() if (path / "cloud").is_dir()) if models.is_dir() else []
    )
    return sorted(path.name for path in BUNDLED.iterdir() if (path / "cloud").is_dir()) + fetched


def find(name: str, models: Path) -> Path:
    """The folder of a model name or path. Raises ModelUnavailable that lists what there is and where weights
    go."""
    for folder in (BUNDLED / name, models / name, Path(name)):
        if (folder / "cloud").is_dir() or (folder / "device").is_dir():
            return folder
    here = f"models with weights here: {', '.join(available(models)) or 'none'}"
    if name in PUBLISHED:
        raise ModelUnavailable(
            f"the weights of model {name!r} ({PUBLISHED[name]}) are missing",
            here,
            f"put its folders cloud/, device/ and vq/ into {models / name}, or name a folder with --model",
        )
    raise ModelUnavailable(
        f"unknown model {name!r}",
        here,
        f"known without weights: {', '.join(PUBLISHED)}; weights go into {models}",
    )


def load_cloud(name: str, models: Path) -> CloudModel:
    """Load the cloud side of a model. Raises ModelUnavailable."""
    folder = find(name, models) / "cloud"
    model = load_model(folder)
    bridge = folder.parent / "device" / BRIDGE
    width = DeviceConfig.feature_width
    bridge_DF = (
        load_file(bridge)["weight"].float() if bridge.is_file() else torch.zeros(model.config.dim, width)
    )
    return CloudModel(folder.parent.resolve().name, digest(folder), model, bridge_DF)


def load_device_package(name: str, models: Path) -> DevicePackage:
    """Load the device side of a model. Raises ModelUnavailable, or ModelMismatch on a calibration of another
    cloud."""
    folder = find(name, models)
    model, calibration = load_device(folder / "device"), read_calibration(folder / "device" / CALIBRATION)
    if calibration.cloud_digest != model.config.cloud_digest:
        raise ModelMismatch(
            f"the calibration in {folder / 'device'} belongs to cloud {calibration.cloud_digest}",
            f"the device model belongs to cloud {model.config.cloud_digest}",
            "calibrate again with ciar-train device",
        )
    return DevicePackage(
        folder.resolve().name, digest(folder / "device"), model, load_vq(folder / "vq"), calibration
    )


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration as JSON."""
    path.write_text(json.dumps(asdict(calibration)) + "\n", encoding="utf-8")


def read_calibration(path: Path) -> Calibration:
    """Read a calibration. Raises ModelUnavailable when it is missing, InvalidRequest when a key does not
    fit."""
    if not path.is_file():
        raise ModelUnavailable(f"no {path.name} in {path.parent}", "ciar-train device writes it")
    raw = json.loads(path.read_text(encoding="utf-8"))
    gates = {name: from_dict(GateTable, table) for name, table in raw["gates"].items()}
    return from_dict(Calibration, {**raw, "warp": from_dict(Warp, raw["warp"]), "gates": gates})
