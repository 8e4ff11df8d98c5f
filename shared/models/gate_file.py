"""`gate.safetensors`: what `ciar-train gate` fitted for a device, with the digest of its cloud.

Three kilobytes beside the device's weights and not part of their digest: a gate changes what a picture costs,
never what a verified token is. Knows no names of models.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shared.decoding.agreement import LEARNED_SHAPES, Learned
from shared.errors import ModelMismatch, ModelUnavailable
from shared.models.checkpoint import check_names

GATE_FILE = "gate.safetensors"
_AGAIN = "fit it again: ciar-train gate"


def write_learned(path: Path, learned: Learned, cloud_digest: str) -> None:
    """Write a fitted gate for the pair whose cloud has that digest."""
    tensors = {name: getattr(learned, name).detach().float().contiguous() for name in LEARNED_SHAPES}
    save_file(tensors, path, {"cloud_digest": cloud_digest})


def read_learned(path: Path, cloud_digest: str) -> Learned | None:
    """The fitted gate, or None where there is no file.

    Raises ModelMismatch where it was fitted for another cloud; ModelUnavailable where the file is damaged or
    names and shapes are not exactly those expected.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            owner = (file.metadata() or {}).get("cloud_digest", "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelUnavailable(f"{path} cannot be read", str(error), _AGAIN) from error
    check_names(f"{path} is no fitted gate", LEARNED_SHAPES, {n: tuple(v.shape) for n, v in tensors.items()})
    if owner != cloud_digest:
        what = f"the gate in {path} was fitted for cloud {owner or 'unnamed'}"
        raise ModelMismatch(what, f"the device model belongs to cloud {cloud_digest}", _AGAIN)
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise ModelUnavailable(f"{path} holds numbers that are not finite", "", _AGAIN)
    return Learned(**{name: value.to(torch.float32) for name, value in tensors.items()})
