"""A safetensors file written tensor by tensor, whole or not at all. Knows no model.

The format (github.com/huggingface/safetensors): eight bytes of header length, a JSON header of dtype, shape
and byte range per name, then the values, little-endian, row by row. The library's own writer wants all
tensors at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import ModelUnavailable
from shared.models.checkpoint import Shape

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_tensors(
    path: Path, shapes: Mapping[str, Shape], dtype: torch.dtype, make: Callable[[str], Tensor]
) -> None:
    """Write `make(name)` for every name, cast to `dtype`, one of DTYPES. Raises ModelUnavailable for any
    other."""
    if dtype not in DTYPES:
        raise ModelUnavailable(f"weights of {dtype} cannot be kept", f"allowed: {list(DTYPES)}")
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("wb") as file:
            file.write(_header(shapes, dtype))
            for name in shapes:
                file.write(_bytes(make(name), dtype))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _header(shapes: Mapping[str, Shape], dtype: torch.dtype) -> bytes:
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text


def _bytes(value: Tensor, dtype: torch.dtype) -> bytes:
    return value.detach().to(dtype).contiguous().flatten().view(torch.uint8).numpy().tobytes()
