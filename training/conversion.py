"""What is converted, and how a folder of a model is written tensor by tensor. Knows no layout and no argv."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared.errors import InvalidRequest, ModelUnavailable
from shared.models.checkpoint import CONFIG, WEIGHTS, ModuleT, Shape, check_names, digest
from training.sources import Tensors
from training.stream import write_tensors
from training.upstream import Recipe

CONVERTED = ("llamagen", "chameleon", "janus", "var", "mar", "dit")


@dataclass(frozen=True)
class Conversion:
    """What to convert. Raises InvalidRequest for a family that has no official files.

    source     weights of the transformer: a file or a folder
    vq         weights of the VQ or VAE; None: those inside `source`
    pixels     side of the images
    heads      attention heads of a model whose width was never published
    tokens     longest prompt of a Chameleon or Janus, with what stands around it
    tokenizer  tokenizer.json of a Chameleon or Janus; None: the one inside `source`
    """

    source: Path
    target: Path
    family: str
    pixels: int
    vq: Path | None = None
    heads: int | None = None
    tokens: int = 128
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        if self.family not in CONVERTED:
            raise InvalidRequest(
                f"no converter for family {self.family!r}", f"allowed: {', '.join(CONVERTED)}"
            )


def require_vq(tensors: Tensors, file: Path) -> Tensors:
    """The tensors. Raises ModelUnavailable where there is no codebook among them."""
    if "quantize.embedding.weight" not in tensors:
        raise ModelUnavailable(f"there is no VQ in {file}", "", "name the file that holds it with --vq")
    return tensors


def write_folder(
    folder: Path,
    config: dict[str, Any],
    shapes: Mapping[str, Shape],
    tensors: Tensors,
    recipes: Mapping[str, Recipe],
) -> str:
    """Write `config` and every tensor as its recipe says; returns the digest."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, shapes, tensors.dtype, lambda name: recipes[name].make(tensors))
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return digest(folder)


def on_meta(make: Callable[[], ModuleT]) -> ModuleT:
    """A module without memory for its weights."""
    with torch.device("meta"):
        return make()


def write_module(
    folder: Path,
    config: dict[str, Any],
    module: nn.Module,
    tensors: Tensors,
    recipe: Callable[[str], Recipe] = lambda name: Recipe((name,)),
) -> str:
    """Write a folder for a module that may live on the meta device; returns its digest.

    Raises ModelUnavailable that names missing, extra and mis-shaped tensors; then nothing is written.
    """
    complaint = f"the weights do not fit a {config.get('family') or config['kind']}"
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    recipes = {name: recipe(name) for name in wanted}
    used = {source for made in recipes.values() for source in made.sources}
    check_names(complaint, dict.fromkeys(used, ()), dict.fromkeys(tensors, ()))
    check_names(complaint, wanted, {name: made.shape(tensors.shapes) for name, made in recipes.items()})
    return write_folder(folder, config, wanted, tensors, recipes)
