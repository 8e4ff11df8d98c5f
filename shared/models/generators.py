"""Models that do not draw token after token: VAR, MAR, DiT, and what turns their output into images. Knows no
layout but ours.

A folder holds `cloud/`, `config.json` with the family and shape beside the weights, and `vae/`, unless the
latents are those of another publisher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shared.config import VQConfig, from_dict, to_dict
from shared.errors import ModelUnavailable
from shared.models.checkpoint import ModuleT, load_weights, read_config, unfilled
from shared.models.families.dit import DiTConfig, DiTModel
from shared.models.families.mar import MARConfig, MARModel, TowerConfig
from shared.models.families.var import VARConfig, VARModel
from shared.models.families.var_vae import ScaleVQ, ScaleVQConfig
from shared.models.kl_vae import KLVAE, KLConfig

KL = "kl"  # the kind of a folder that holds an autoencoder with a Gaussian bottleneck
Generator = VARModel | MARModel | DiTModel


def _mar(values: dict[str, Any]) -> MARModel:
    towers = {name: from_dict(TowerConfig, values[name]) for name in ("encoder", "decoder")}
    return MARModel(from_dict(MARConfig, {**values, **towers}))


GENERATORS: Mapping[str, Callable[[dict[str, Any]], Generator]] = {
    VARModel.family: lambda values: VARModel(from_dict(VARConfig, values)),
    MARModel.family: _mar,
    DiTModel.family: lambda values: DiTModel(from_dict(DiTConfig, values)),
}


def describe(model: Generator) -> dict[str, Any]:
    """What `load_generator` needs, in JSON."""
    return {"kind": "cloud", "family": model.family, "model": to_dict(model.config)}


def load_generator(folder: Path) -> Generator:
    """Read a model, its weights as fp32. Raises ModelUnavailable as `read_config` and `load_weights` do, or
    for another family."""
    config = read_config(folder, "cloud")
    make = GENERATORS.get(str(config.get("family")))
    if make is None:
        what = f"{folder} holds family {config.get('family')!r}"
        raise ModelUnavailable(what, f"allowed here: {sorted(GENERATORS)}")
    return _filled(folder, lambda: make(config["model"]))


def describe_scale_vq(config: VQConfig, maps: ScaleVQConfig) -> dict[str, Any]:
    """What `load_scale_vq` needs, in JSON."""
    return {"kind": "scale-vq", "vq": to_dict(config), "maps": to_dict(maps)}


def load_scale_vq(folder: Path) -> ScaleVQ:
    """Read VAR's tokenizer. Raises ModelUnavailable as `read_config` and `load_weights` do."""
    config = read_config(folder, "scale-vq")
    shape, maps = from_dict(VQConfig, config["vq"]), from_dict(ScaleVQConfig, config["maps"])
    return _filled(folder, lambda: ScaleVQ(shape, maps))


def describe_kl(config: KLConfig) -> dict[str, Any]:
    """What `load_kl` needs, in JSON."""
    return {"kind": KL, "kl": to_dict(config)}


def load_kl(folder: Path) -> KLVAE:
    """Read an autoencoder of MAR's kind. Raises ModelUnavailable as `read_config` and `load_weights` do."""
    shape = from_dict(KLConfig, read_config(folder, KL)["kl"])
    return _filled(folder, lambda: KLVAE(shape))


def _filled(folder: Path, make: Callable[[], ModuleT]) -> ModuleT:
    module = unfilled(make)
    load_weights(folder, module)
    return module.eval()
