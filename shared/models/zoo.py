"""Model names, and where their folders are: the list that `--model` prints. Knows nothing of argv or
environment.

A model is one folder with `cloud/`, `device/` (weights and `calibration.json`) and `vq/`. Names are looked up
among the bundled models, then below the folder for fetched weights; a path to such a folder works as well.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from shared.config import DeviceConfig, from_dict
from shared.decoding.acceptance import nearest_neighbours
from shared.decoding.agreement import Learned
from shared.decoding.calibration import Calibration, GateTable
from shared.decoding.warp import Warp
from shared.errors import ModelMismatch, ModelUnavailable
from shared.models.checkpoint import digest, load_codes, load_device, load_model, load_vq
from shared.models.family import ImageModel
from shared.models.gate_file import GATE_FILE, read_learned
from shared.models.inter_head import DeviceModel
from shared.models.lean import Lean, lean
from shared.models.vq import VQModel

BUNDLED = Path(__file__).parent / "bundled"
TOKEN_COMMAND = "device-client"  # draws models that go token by token; the others have commands of their own
COMMANDS = {"var": "ciar-scales", "mar": "ciar-masked", "dit": "ciar-diffusion"}
BRIDGE = "bridge.safetensors"
CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Published:
    """A model whose weights are not bundled: what it is, and how its official files become a folder.

    repository  on huggingface.co
    source      what of it `ciar-train convert` is given
    options     the other arguments of that command
    beside      files of other repositories that the folder needs as well
    """

    what: str
    repository: str
    source: str
    options: str
    beside: str = ""

    def directions(self, folder: Path) -> str:
        """How to get it into `folder`, in a sentence."""
        command = f"ciar-train convert {self.source} {folder} {self.options}"
        text = f"download huggingface.co/{self.repository}, then run: {command}"
        return f"{text}; put huggingface.co/{self.beside} into {folder / 't5'}" if self.beside else text


def _llamagen(stage: str, file: str, pixels: int) -> Published:
    options = f"--family llamagen --pixels {pixels} --vq vq_ds16_t2i.pt"
    what = f"LlamaGen GPT-XL text-to-image, stage {stage}, {pixels} px"
    return Published(what, "peizesun/llamagen_t2i", file, options, "google/flan-t5-xl")


def _janus(size: str) -> Published:
    name = f"Janus-Pro-{size}"
    return Published(f"Janus-Pro {size}", f"deepseek-ai/{name}", name, "--family janus --pixels 384")


PUBLISHED = {
    "llamagen-xl-256": _llamagen("I", "t2i_XL_stage1_256.pt", 256),
    "llamagen-xl-512": _llamagen("II", "t2i_XL_stage2_512.pt", 512),
    "anole": Published("Anole 7B", "GAIR/Anole-7b-v0.1", "Anole-7b-v0.1", "--family chameleon --pixels 512"),
    "janus-pro-1b": _janus("1B"),
    "janus-pro-7b": _janus("7B"),
}


@dataclass(frozen=True, eq=False)
class CloudModel:
    """What the server needs: the large model, W of eq. 6, `bridge_DF` [D, d_f] (zero: features change
    nothing), and the nearest codes of every code, int32 [V, N] (None: no codebook, no `relaxed`)."""

    name: str
    digest: str
    model: ImageModel
    bridge_DF: Tensor
    neighbours_VN: Tensor | None = None


@dataclass(frozen=True, eq=False)
class DevicePackage:
    """What the device needs: the small model, the VQ decoder, the calibration of its gates, and what was
    fitted for them (None: nothing was)."""

    name: str
    digest: str
    model: DeviceModel
    vq: VQModel
    calibration: Calibration
    learned: Learned | None = None

    @cached_property
    def lean(self) -> Lean | None:
        """The small transformer for one row and token at a time, where there is such a form of it."""
        return lean(self.model.base.gpt)

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


def token_models(models: Path) -> list[str]:
    """Those of them that go token by token."""
    return [name for name in available(models) if family_of(name, models) not in COMMANDS]


def find(name: str, models: Path) -> Path:
    """The folder of a model name or path. Raises ModelUnavailable that lists what there is and where weights
    go."""
    for folder in (BUNDLED / name, models / name, Path(name)):
        if (folder / "cloud").is_dir() or (folder / "device").is_dir():
            return folder
    here = f"models with weights here: {', '.join(available(models)) or 'none'}"
    if name in PUBLISHED:
        what = f"the weights of model {name!r} ({PUBLISHED[name].what}) are missing"
        raise ModelUnavailable(what, here, PUBLISHED[name].directions(models / name))
    raise ModelUnavailable(
        f"unknown model {name!r}",
        here,
        f"known without weights: {', '.join(PUBLISHED)}; weights go into {models}",
    )


def family_of(name: str, models: Path, side: str = "cloud") -> str:
    """The family of a model, as the config of one side (of the other, if it has that alone) says; "" where it
    says none. Raises ModelUnavailable for an unknown model."""
    folder = find(name, models)
    home = next(home for home in (folder / side, folder / "cloud", folder / "device") if home.is_dir())
    file = home / "config.json"
    return str(json.loads(file.read_text(encoding="utf-8")).get("family", "")) if file.is_file() else ""


def find_for(command: str, name: str, models: Path) -> Path:
    """The folder of a model that this command draws. Raises ModelUnavailable for an unknown model, and for
    one that another command draws."""
    family = family_of(name, models, "device")
    right = COMMANDS.get(family, TOKEN_COMMAND)
    if family and right != command:
        what = f"{command} cannot draw model {name!r}, of family {family!r}"
        raise ModelUnavailable(what, "", f"use {right} --model {name}")
    return find(name, models)


def load_cloud(
    name: str, models: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> CloudModel:
    """Load the cloud side of a model, its weights in `dtype` on `device`. Raises ModelUnavailable."""
    folder = find(name, models) / "cloud"
    model = load_model(folder, dtype, device)
    bridge = folder.parent / "device" / BRIDGE
    width = DeviceConfig.feature_width
    bridge_DF = (
        load_file(bridge)["weight"].float() if bridge.is_file() else torch.zeros(model.config.dim, width)
    )
    vq = folder.parent / "vq"
    neighbours_VN = nearest_neighbours(load_codes(vq)) if vq.is_dir() else None
    name = folder.parent.resolve().name
    return CloudModel(name, digest(folder), model, bridge_DF.to(device), neighbours_VN)


def load_device_package(name: str, models: Path) -> DevicePackage:
    """Load the device side of a model. Raises ModelUnavailable, or ModelMismatch on a calibration of another
    cloud."""
    folder = find_for(TOKEN_COMMAND, name, models)
    if not (folder / "device").is_dir():
        what = f"there is no device model in {folder}"
        raise ModelUnavailable(what, "it holds a cloud alone", f"make one with: ciar-train cut {folder}")
    home = folder / "device"
    model, weights, calibration = load_device(home), digest(home), read_calibration(home / CALIBRATION)
    _check_owner(home, calibration, model.config.cloud_digest, weights)
    learned = read_learned(home / GATE_FILE, model.config.cloud_digest)
    return DevicePackage(folder.resolve().name, weights, model, load_vq(folder / "vq"), calibration, learned)


def _check_owner(home: Path, calibration: Calibration, cloud_digest: str, device_digest: str) -> None:
    """Raise ModelMismatch for a calibration of another cloud, or of other device weights."""
    again = "calibrate again with ciar-train gate"
    if calibration.cloud_digest != cloud_digest:
        what = f"the calibration in {home} belongs to cloud {calibration.cloud_digest}"
        raise ModelMismatch(what, f"the device model belongs to cloud {cloud_digest}", again)
    if calibration.device_digest not in ("", device_digest):
        what = f"the calibration in {home} belongs to device weights {calibration.device_digest}"
        raise ModelMismatch(what, f"these are {device_digest}", again)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration as JSON."""
    path.write_text(json.dumps(asdict(calibration)) + "\n", encoding="utf-8")


def read_calibration(path: Path) -> Calibration:
    """Read a calibration. Raises ModelUnavailable when it is missing, InvalidRequest when a key does not
    fit."""
    if not path.is_file():
        raise ModelUnavailable(f"no {path.name} in {path.parent}", "ciar-train gate writes it")
    raw = json.loads(path.read_text(encoding="utf-8"))
    gates = {name: from_dict(GateTable, table) for name, table in raw["gates"].items()}
    return from_dict(Calibration, {**raw, "warp": from_dict(Warp, raw["warp"]), "gates": gates})
