"""Model folders: `config.json` (kind, shapes) beside `model.safetensors`, loaded strictly. Knows no model
names.

A digest identifies weights: SHA-256 over config and weights, the first 16 hexadecimal digits. Device and
cloud compare digests before the first token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.config import DeviceConfig, VQConfig, from_dict, to_dict
from shared.errors import ModelUnavailable
from shared.models.families import build
from shared.models.family import ImageModel
from shared.models.inter_head import DeviceModel
from shared.models.transformer import Transformer
from shared.models.vq import Quantizer, VQModel

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
Shape = tuple[int, ...]
ModuleT = TypeVar("ModuleT", bound=nn.Module)
_BLOCK = 2**22  # bytes hashed at a time


def save_folder(folder: Path, config: dict[str, Any], state: dict[str, Tensor], dtype: torch.dtype) -> str:
    """Write one model folder with weights cast to `dtype` and return its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file(
        {name: value.detach().to(dtype).contiguous().clone() for name, value in state.items()},
        folder / WEIGHTS,
    )
    return digest(folder)


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """The parsed `config.json`. Raises ModelUnavailable when the folder, a file or the expected kind is
    missing."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelUnavailable(f"no {name} in {folder}", f"a {kind} folder holds {CONFIG} and {WEIGHTS}")
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if config.get("kind") != kind:
        raise ModelUnavailable(f"{folder} holds kind {config.get('kind')!r}", f"expected {kind!r}")
    return config


def load_weights(folder: Path, model: nn.Module) -> None:
    """Load the weights in the module's dtype, strictly: missing, extra and mis-shaped names are listed in
    ModelUnavailable."""
    wanted = model.state_dict()
    with safe_open(folder / WEIGHTS, "pt") as file, torch.no_grad():
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        expected = {name: tuple(value.shape) for name, value in wanted.items()}
        check_names(f"{folder / WEIGHTS} does not fit its config", expected, shapes)
        for name, value in wanted.items():
            value.copy_(file.get_tensor(name))  # one tensor at a time: a large file is never held twice


def check_names(complaint: str, wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Raise ModelUnavailable with `complaint` and all missing, extra and mis-shaped names, unless there are
    none."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [
        f"{name} {found[name]} != {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]
    if missing or extra or shapes:
        why = f"missing {missing}, extra {extra}, shapes {shapes}"
        raise ModelUnavailable(complaint, why)


def digest(folder: Path) -> str:
    """16 hexadecimal digits over config and weights."""
    total = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as file:
            while block := file.read(_BLOCK):
                total.update(block)
    return total.hexdigest()[:16]


def save_vq(folder: Path, model: VQModel) -> str:
    """Write a VQ tokenizer in fp16 and return its digest."""
    return save_folder(folder, {"kind": "vq", "vq": to_dict(model.config)}, model.state_dict(), torch.float16)


def load_vq(folder: Path) -> VQModel:
    """Read a VQ tokenizer. Raises ModelUnavailable as `read_config` and `load_weights` do."""
    shape = from_dict(VQConfig, read_config(folder, "vq")["vq"])
    model = unfilled(lambda: VQModel(shape))
    load_weights(folder, model)
    return model.eval()


def load_codes(folder: Path) -> Tensor:
    """The codebook of a VQ tokenizer as it is decoded, fp32 [K, E]; nothing else of the file is read."""
    shape = from_dict(VQConfig, read_config(folder, "vq")["vq"])
    quantizer = Quantizer(shape)
    with safe_open(folder / WEIGHTS, "pt") as file, torch.no_grad():
        quantizer.embedding.weight.copy_(file.get_tensor("quantize.embedding.weight"))
    return quantizer.codes().detach()


def save_model(folder: Path, model: ImageModel, dtype: torch.dtype = torch.float16) -> str:
    """Write a cloud model and return its digest."""
    return save_folder(folder, {"kind": "cloud", **model.describe()}, model.state_dict(), dtype)


def load_model(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> ImageModel:
    """Read a cloud model straight into `dtype` and onto `device`; no wider copy of it ever exists.

    Raises ModelUnavailable as `read_config` and `load_weights` do.
    """
    config = read_config(folder, "cloud")
    model = unfilled(lambda: build(config, folder.parent), dtype, device)
    load_weights(folder, model)
    return model.eval()


def save_device(folder: Path, model: DeviceModel, dtype: torch.dtype = torch.float16) -> str:
    """Write a device model (transformer, text, Inter-Head, phi) and return its digest."""
    config = {"kind": "device", **model.base.describe(), "device": to_dict(model.config)}
    return save_folder(folder, config, model.state_dict(), dtype)


def load_device(folder: Path) -> DeviceModel:
    """Read a device model. Raises ModelUnavailable as `read_config` and `load_weights` do."""
    config = read_config(folder, "device")
    shape = from_dict(DeviceConfig, config["device"])
    model = unfilled(lambda: DeviceModel(build(config, folder.parent), shape))
    load_weights(folder, model)
    return model.eval()


def unfilled(
    make: Callable[[], ModuleT], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> ModuleT:
    """The module with memory but without initial weights, for billions of which drawing takes minutes."""
    with torch.device("meta"):
        module = make()
    module.to(dtype).to_empty(device=device)
    for part in module.modules():
        if isinstance(part, Transformer):
            part.reset_table()
    return module
