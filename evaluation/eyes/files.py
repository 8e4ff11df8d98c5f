"""Weights from files of other programs: tensors alone, never code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.errors import ModelUnavailable


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a pickled state dict, also one under the key `state_dict`.

    Raises ModelUnavailable where there is no such file or it holds anything else.
    """
    if not file.is_file():
        raise ModelUnavailable(f"no file {file}", "weights are read from a path; nothing is downloaded")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        held = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelUnavailable(f"{file} holds no plain tensors", str(error).splitlines()[0]) from error
    held = held.get("state_dict", held) if isinstance(held, Mapping) else held
    if not isinstance(held, Mapping) or not all(isinstance(value, Tensor) for value in held.values()):
        raise ModelUnavailable(f"{file} holds no state dict", f"found a {type(held).__name__}")
    return dict(held)


def fill(model: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Load tensors strictly. Raises ModelUnavailable naming what does not fit."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelUnavailable(f"{file} does not fit {type(model).__name__}", str(error)[:400]) from error
