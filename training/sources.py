"""Tensors of other people's weight files by name, read one at a time. Knows no model.

Pickled files are read with `weights_only`: nothing in them is ever executed. Beside tensors they may
hold one class, argparse's Namespace, in which training programs keep their flags; it is read as `_Flags`.
"""

from __future__ import annotations

import functools
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from shared.errors import ModelUnavailable
from shared.models.checkpoint import Shape

# How the parts of a tensor in several files become one: along an axis, as a table with a row per file; or
# each file has all of it.
Join = Literal["rows", "columns", "table", "copy"]
# Plain, DeepSpeed, Lightning; in this order, then the top level. A dot leads into a nest of a nest.
NESTS = ("model", "module", "state_dict")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_KINDS = {"BF16": torch.bfloat16, "F16": torch.float16}
_INDEX = ("*.safetensors.index.json", "*.bin.index.json")


class _Flags:
    """Flags of somebody's training program; nobody reads them here."""


class Tensors(Mapping[str, Tensor]):
    """Named tensors that are loaded when asked for; their shapes are known before, and one `dtype` that holds
    all of them without loss."""

    def __init__(
        self, shapes: Mapping[str, Shape], dtype: torch.dtype, load: Callable[[str], Tensor]
    ) -> None:
        self.shapes, self.dtype, self._load = shapes, dtype, load

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def shape(self, name: str) -> Shape:
        """Its shape. Raises ModelUnavailable that names what is missing."""
        if name not in self.shapes:
            raise ModelUnavailable("the weights are incomplete", f"missing {[name]}")
        return self.shapes[name]

    def matrix(self, name: str) -> tuple[int, int]:
        """The two numbers of its shape. Raises ModelUnavailable that names what is missing or no matrix."""
        shape = self.shape(name)
        if len(shape) != 2:
            raise ModelUnavailable(f"{name} has the shape {shape}", "allowed: two dimensions")
        return shape[0], shape[1]

    def renamed(self, rename: Callable[[str], str | None]) -> Tensors:
        """The same under other names; None leaves a tensor out. Raises ModelUnavailable where two names
        meet."""
        old: dict[str, str] = {}
        for name in self.shapes:
            new = rename(name)
            if new in old:
                why = f"{old[new]} and {name} are the same tensor"
                raise ModelUnavailable("the weights are ambiguous", why)
            if new is not None:
                old[new] = name
        shapes = {new: self.shapes[name] for new, name in old.items()}
        return Tensors(shapes, self.dtype, lambda new: self[old[new]])


def read_tensors(path: Path, nests: Sequence[str] = NESTS) -> Tensors:
    """The tensors of a .safetensors file, of a pickled file (the first of its `nests` that is there), or of a
    Hugging Face folder of either kind.

    Raises ModelUnavailable where there are none, or where a pickle holds more than tensors.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ModelUnavailable(f"there is no file {path}")
    return _safetensors(path) if path.suffix == ".safetensors" else _pickled(path, nests)


def read_shards(paths: Sequence[Path], join: Callable[[str], Join]) -> Tensors:
    """Tensors that are cut over several files, put together as `join(name)` says.

    Raises ModelUnavailable where the files do not have the same tensors.
    """
    parts = [read_tensors(path) for path in paths]
    everything = {name for part in parts for name in part}
    if uneven := sorted(name for name in everything if any(name not in part for part in parts)):
        raise ModelUnavailable(f"the shards in {paths[0].parent} do not belong together", f"uneven: {uneven}")

    def load(name: str) -> Tensor:
        how = join(name)
        if how == "copy":
            return parts[0][name]
        pieces = [part[name] for part in parts]
        return torch.stack(pieces) if how == "table" else torch.cat(pieces, 0 if how == "rows" else 1)

    shapes = {name: _joined([part.shape(name) for part in parts], join(name)) for name in parts[0]}
    return Tensors(shapes, _widest(part.dtype for part in parts), load)


def _joined(shapes: Sequence[Shape], how: Join) -> Shape:
    if how == "copy":
        return shapes[0]
    if how == "table":
        return (len(shapes), *shapes[0])
    axis = 0 if how == "rows" else 1
    return tuple(sum(s[i] for s in shapes) if i == axis else size for i, size in enumerate(shapes[0]))


def _folder(folder: Path) -> Tensors:
    for pattern in _INDEX:
        for index in sorted(folder.glob(pattern)):
            return _indexed(index)
    for name in _SINGLE:
        if (folder / name).is_file():
            return read_tensors(folder / name)
    looked_for = ", ".join((*_INDEX, *_SINGLE))
    raise ModelUnavailable(f"there are no weights in {folder}", f"looked for {looked_for}")


def _indexed(index: Path) -> Tensors:
    where: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    parts = {name: read_tensors(index.parent / Path(name).name) for name in sorted(set(where.values()))}
    missing = sorted(name for name, file in where.items() if name not in parts[file])
    extra = sorted(name for part in parts.values() for name in part if name not in where)
    if missing or extra:
        raise ModelUnavailable(f"{index} does not fit its files", f"missing {missing}, extra {extra}")
    shapes = {name: parts[file].shape(name) for name, file in where.items()}
    return Tensors(
        shapes, _widest(part.dtype for part in parts.values()), lambda name: parts[where[name]][name]
    )


def _safetensors(path: Path) -> Tensors:
    file: Any = safe_open(path, "pt")  # stays open: tensors are read when they are asked for
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    kinds = {_KINDS.get(kind, torch.float32) for part in slices.values() if "F" in (kind := part.get_dtype())}
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    return Tensors(shapes, _widest(kinds), file.get_tensor)


def _pickled(path: Path, nests: Sequence[str]) -> Tensors:
    found = _unnested(_unpickled(path), nests)
    strange = sorted(name for name, value in found.items() if not isinstance(value, Tensor | None))
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if strange or not tensors:
        allowed = f"allowed: a dict of tensors, or one under {', '.join(nests)}"
        raise ModelUnavailable(f"{path} holds no weights", f"strange entries {strange[:8]}; {allowed}")
    kinds = {value.dtype for value in tensors.values() if value.is_floating_point()}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return Tensors(shapes, _widest(kinds), tensors.__getitem__)


def _widest(kinds: Iterable[torch.dtype]) -> torch.dtype:
    return functools.reduce(torch.promote_types, set(kinds) or {torch.float32})


def _unnested(content: Any, nests: Sequence[str]) -> dict[str, Any]:  # noqa: ANN401 - whatever the file holds
    for nest in nests:
        inner = content
        for name in nest.split("."):
            inner = inner.get(name) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            return dict(inner)
    return dict(content) if isinstance(content, dict) else {}


def _unpickled(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        with torch.serialization.safe_globals([(_Flags, "argparse.Namespace")]):
            # A file in the format of torch < 1.6 cannot be mapped, only read.
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        next_step = "it must hold tensors alone"
        raise ModelUnavailable(f"{path} cannot be read as weights", reason, next_step) from error
