"""Weights of linear maps laid out once the way the CPU's matrix kernels read them. Knows no transformer.

A plain weight is laid out anew in every call, which is most of the time of a product with a few rows: a step
or the check of a span. What is computed is the same up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.errors import InvalidRequest

_ROWS = 16  # the layout may depend on the rows it is made for; any number of rows works with it
# oneDNN keeps a kernel for every number of rows it ever saw: beyond so many they come in steps, else a server
# that batches grows by megabytes an image.
_FREE, _STEP = 64, 32


class PackedLinear(nn.Module):
    """x W^T + b with W in the layout of oneDNN's kernels, for inference on a CPU."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), _ROWS)
        self._bias = None if plain.bias is None else plain.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        shape, rows = x.shape[:-1], x.numel() // x.shape[-1]
        missing = -rows % _STEP if rows > _FREE else 0
        if missing:
            x = F.pad(x.flatten(0, -2), (0, 0, 0, missing))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return out[:rows].reshape(*shape, -1) if missing else out


def pack(module: nn.Module) -> None:
    """Replace every linear map below `module`, one at a time: at most one weight is held twice.

    Raises InvalidRequest where the weights are on no CPU, or this CPU has no kernels for their dtype.
    """
    for name, part in module.named_children():
        if type(part) is nn.Linear:
            setattr(module, name, _packed(part))
        else:
            pack(part)


def packable(module: nn.Module) -> bool:
    """Whether `pack` would take its first linear map; all have one dtype and lie in one place."""
    for part in module.modules():
        if type(part) is nn.Linear:
            try:
                _packed(part)
            except InvalidRequest:
                return False
            return True
    return False


def _packed(plain: nn.Linear) -> PackedLinear:
    weight = plain.weight
    what = f"weights in {str(weight.dtype).removeprefix('torch.')} on {weight.device.type} cannot be packed"
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        raise InvalidRequest(what, "packing needs a CPU and a torch with oneDNN", "leave out --pack-weights")
    try:
        return PackedLinear(plain)
    except RuntimeError as error:  # an ISA without such products
        next_step = "choose another --dtype, or leave out --pack-weights"
        raise InvalidRequest(what, str(error).splitlines()[0], next_step) from error
