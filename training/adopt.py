"""`ciar-train adopt`: a smaller published VAR or MAR becomes the device of a converted one, without training.

So were CoDe (VAR-d16 behind VAR-d30) and continuous speculative decoding (MAR-B before MAR-H) published.
Knows no argv.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.errors import InvalidRequest, ModelMismatch
from shared.models.by_mask import describe_masked_device, load_shape
from shared.models.by_scale import (
    Companion,
    ScaleDevice,
    describe_scale_device,
    load_scale_device,
    load_scale_shape,
)
from shared.models.checkpoint import digest, read_config
from shared.models.families.mar import MARModel
from shared.models.families.var import VARModel
from shared.models.generators import load_generator, load_kl, load_scale_vq
from training.conversion import on_meta, write_module
from training.generators import MAR_NESTS, VAR_NESTS, mar_config, var_config, var_weights
from training.scale_calibrate import play, write_thresholds
from training.sources import Tensors, read_tensors

_BASE, _HEAD = "base.", "inter_head."


@dataclass(frozen=True)
class Adoption:
    """What to adopt.

    model   model folder with `cloud/` and `vae/`; its `device/` is written
    source  weights of the smaller model: a file or a folder as published
    heads   its attention heads where its width was never published
    images  that the cloud draws to calibrate a VAR's gates on; 0: no gate is
    """

    model: Path
    source: Path
    heads: int | None = None
    images: int = 0


def adopt(order: Adoption) -> str:
    """Write `device/`; its digest.

    Raises ModelUnavailable where the folder holds no cloud or the weights do not fit, ModelMismatch where
    both do not draw the same tokens, InvalidRequest for a family whose devices are trained.
    """
    family = str(read_config(order.model / "cloud", "cloud").get("family"))
    if family not in _ADOPTERS:
        why = f"allowed: {', '.join(_ADOPTERS)}"
        raise InvalidRequest(f"a model of family {family!r} adopts no device", why, "train or cut one")
    if order.images and family != VARModel.family:
        raise InvalidRequest(f"{order.images} images for {family!r}", "allowed: 0; it has no gates")
    return _ADOPTERS[family](order)


def _adopt_var(order: Adoption) -> str:
    cloud, home = load_scale_shape(order.model / "cloud"), order.model / "device"
    weights = var_weights(tensors := read_tensors(order.source, VAR_NESTS))
    shape = var_config(tensors, order.heads)
    _same(cloud, shape, ("classes", "vocab_size", "code_dim", "scales"))
    device = on_meta(lambda: ScaleDevice(shape, Companion(digest(order.model / "cloud"))))
    config = describe_scale_device(shape, device.companion, _labels(order))
    written = write_module(home, config, device, _with_silent_head(weights, device))
    if order.images:
        _calibrate(order)
    return written


def _adopt_mar(order: Adoption) -> str:
    cloud, latent = load_shape(order.model / "cloud"), load_kl(order.model / "vae").config.latent
    tensors = read_tensors(order.source, MAR_NESTS)
    shape = mar_config(tensors, (order.heads, order.heads) if order.heads else None, latent)
    _same(cloud, shape, ("classes", "tokens", "token_dim", "patch"))
    config = describe_masked_device(shape, digest(order.model / "cloud"), _labels(order))
    return write_module(order.model / "device", config, on_meta(lambda: MARModel(shape)), tensors)


_ADOPTERS: Mapping[str, Callable[[Adoption], str]] = {
    VARModel.family: _adopt_var,
    MARModel.family: _adopt_mar,
}


def _same(cloud: Any, device: Any, fields: tuple[str, ...]) -> None:  # noqa: ANN401 - shapes of one family
    """Raise ModelMismatch where tokens or classes of the two are not the same."""
    for name in fields:
        theirs, ours = getattr(cloud, name), getattr(device, name)
        if theirs != ours:
            what = f"{name.replace('_', ' ')} {ours} in the device's weights"
            raise ModelMismatch(what, f"the cloud has {theirs}")


def _labels(order: Adoption) -> tuple[str, ...]:
    return tuple(read_config(order.model / "cloud", "cloud").get("labels", ()))


def _with_silent_head(weights: Tensors, device: ScaleDevice) -> Tensors:
    """The weights as those of a device whose Inter-Head finds every token equally unsure."""
    head = {_HEAD + name: tuple(value.shape) for name, value in device.inter_head.state_dict().items()}

    def load(name: str) -> Tensor:
        return torch.zeros(head[name]) if name in head else weights[name.removeprefix(_BASE)]

    based = {_BASE + name: shape for name, shape in weights.shapes.items()}
    return Tensors({**based, **head}, weights.dtype, load)


def _calibrate(order: Adoption) -> None:
    cloud = load_generator(order.model / "cloud")
    assert isinstance(cloud, VARModel), "its family was read"
    device, vq = load_scale_device(order.model / "device"), load_scale_vq(order.model / "vae")
    write_thresholds(order.model / "device", play(cloud, device, vq.quantize, order.images))
