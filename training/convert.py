"""`ciar-train convert`: official weight files to one model folder, tensor by tensor. Knows no argv.

The folder gets `cloud/`, `vq/` and, for Chameleon and Janus, `tokenizer/`. No file is written before its
names and shapes fit. Weights keep the precision they come in.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shared.config import TransformerConfig, VQConfig, to_dict
from shared.errors import InvalidRequest, ModelMismatch, ModelUnavailable
from shared.models.checkpoint import Shape, check_names
from shared.models.families.chameleon import ChameleonModel
from shared.models.families.janus import JanusModel
from shared.models.families.llamagen import LlamaGenModel
from shared.models.family import ImageModel
from shared.models.tokenizer import TOKENIZER
from shared.models.vq import VQModel
from training.conversion import Conversion, require_vq, write_folder
from training.generators import CONVERTERS
from training.sources import Join, Tensors, read_shards, read_tensors
from training.upstream import (
    Recipe,
    chameleon_config,
    gpt_name,
    image_codes,
    llamagen_config,
    marks,
    recipe,
    rotary_pairs,
    vq_config,
    vq_tensors,
)
from training.upstream_janus import janus_config, janus_marks, janus_name, janus_vq

_UNFIT, _UNFIT_VQ = "the weights do not fit the transformer", "the weights do not fit the VQ"
_JOINS: dict[re.Pattern[str], Join] = {
    re.compile(r".*(attention\.w[qkv]|feed_forward\.w[13]|output)\.weight"): "rows",
    re.compile(r".*(attention\.wo|feed_forward\.w2|tok_embeddings)\.weight"): "columns",
    re.compile(r".*_normalization\.(weight|bias)"): "table",
}
_INNER = ("model", "language_config", "text_config")  # where settings nest the transformer's
_FUSED = re.compile(r".*\.(wqkv|w13)\.weight")


@dataclass(frozen=True)
class _Layout:
    """How a family's official files are read.

    model        its model on the meta device, from an order, raw tensors and the side of the grid
    name         the name of a transformer's tensor under which `write_transformer` finds it
    vq           the tensors of the VQ under LlamaGen's names
    unit_codes   and pixel_shift: as in VQConfig; no file says them
    tokenizer    whether the folder needs one
    """

    model: Callable[[Conversion, Tensors, int], ImageModel]
    name: Callable[[str], str | None] = gpt_name
    vq: Callable[[Tensors], Tensors] = vq_tensors
    unit_codes: bool = True
    pixel_shift: float = 127.5
    tokenizer: bool = True


def convert(order: Conversion) -> tuple[str, str]:
    """Write the model folder; returns the digests of cloud and VQ.

    Raises ModelUnavailable that names missing, extra and mis-shaped tensors, ModelMismatch where VQ,
    transformer and tokenizer do not belong together.
    """
    if order.family in CONVERTERS:
        return CONVERTERS[order.family](order)
    layout = _LAYOUTS[order.family]
    raw, vq = _read_source(order.source), _read_vq(order, layout)
    shape = check_vq(vq, layout.unit_codes, layout.pixel_shift)
    model = layout.model(order, raw, _grid(order.pixels, shape.factor))
    if model.config.vocab_size != shape.codebook_size:
        what = f"the transformer has {model.config.vocab_size} codes, the VQ {shape.codebook_size}"
        raise ModelMismatch(what, "both must come from the same publication")
    cloud = write_transformer(order.target / "cloud", model, raw.renamed(layout.name))
    digests = cloud, write_vq(order.target / "vq", vq, shape)
    if layout.tokenizer:
        (order.target / TOKENIZER).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_tokenizer_file(order), order.target / TOKENIZER)
    return digests


def read_transformer(source: Path) -> Tensors:
    """The transformer's tensors under the names of the original program, from a file or a folder."""
    return _read_source(source).renamed(gpt_name)


def write_transformer(folder: Path, model: ImageModel, tensors: Tensors) -> str:
    """Write `cloud/` of a model that may live on the meta device; returns its digest.

    Raises ModelUnavailable that names missing, extra and mis-shaped tensors; then nothing is written.
    """
    wanted = {name: tuple(value.shape) for name, value in model.gpt.state_dict().items()}
    recipes = {name: _recipe(name, tensors, model.config) for name in wanted}
    used = {source for made in recipes.values() for source in made.sources}
    check_names(_UNFIT, dict.fromkeys(used, ()), dict.fromkeys(tensors, ()))
    found = {name: _like(wanted[name], made.shape(tensors.shapes)) for name, made in recipes.items()}
    check_names(_UNFIT, wanted, found)
    config = {"kind": "cloud", **model.describe()}
    ours = {f"gpt.{name}": shape for name, shape in wanted.items()}
    made_of = {f"gpt.{name}": made for name, made in recipes.items()}
    return write_folder(folder, config, ours, tensors, made_of)


def write_vq(folder: Path, tensors: Tensors, shape: VQConfig) -> str:
    """Write `vq/` of tensors that `check_vq` has seen; returns its digest."""
    config = {"kind": "vq", "vq": to_dict(shape)}
    same = {name: Recipe((name,)) for name in tensors}
    return write_folder(folder, config, tensors.shapes, tensors, same)


def check_vq(tensors: Tensors, unit_codes: bool = True, pixel_shift: float = 128.0) -> VQConfig:
    """The shape of a VQ under LlamaGen's names; the defaults are LlamaGen's.

    Raises ModelUnavailable that names missing, extra and mis-shaped tensors.
    """
    shape = vq_config(tensors, unit_codes, pixel_shift)
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in VQModel(shape).state_dict().items()}
    check_names(_UNFIT_VQ, wanted, tensors.shapes)
    return shape


def llamagen_on_meta(shape: TransformerConfig, home: Path) -> LlamaGenModel:
    """A LlamaGen without memory for its weights."""
    with torch.device("meta"):
        return LlamaGenModel(shape, home)


def read_vocabulary(tokenizer: Path) -> dict[str, int]:
    """Token -> id of a tokenizer.json, special tokens included. Raises ModelUnavailable where it is none."""
    if not tokenizer.is_file():
        raise ModelUnavailable(f"there is no tokenizer {tokenizer}", "", "name one with --tokenizer")
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    return {**content["model"]["vocab"], **added}


def _grid(pixels: int, factor: int) -> int:
    """Image tokens per side. Raises InvalidRequest where the VQ cannot cut images of that size."""
    if pixels % factor:
        raise InvalidRequest(
            f"images of {pixels} pixels fit no VQ of {factor} pixels a token", "", "mend --pixels"
        )
    return pixels // factor


def _read_vq(order: Conversion, layout: _Layout) -> Tensors:
    file = order.vq or _vq_file(order.source)
    return require_vq(layout.vq(read_tensors(file)), file)


def _llamagen(order: Conversion, raw: Tensors, grid: int) -> LlamaGenModel:
    return llamagen_on_meta(llamagen_config(raw.renamed(gpt_name), grid, order.heads), order.target)


def _chameleon(order: Conversion, raw: Tensors, grid: int) -> ChameleonModel:
    words, settings = read_vocabulary(_tokenizer_file(order)), _settings(order.source)
    shape = chameleon_config(raw.renamed(gpt_name), settings, image_codes(words), grid, order.tokens)
    with torch.device("meta"):
        return ChameleonModel(replace(shape, rope_pairs=rotary_pairs(raw)), marks(words), order.target)


def _janus(order: Conversion, raw: Tensors, grid: int) -> JanusModel:
    words, settings = read_vocabulary(_tokenizer_file(order)), _settings(order.source)
    shape = janus_config(raw.renamed(janus_name), settings, grid, order.tokens)
    with torch.device("meta"):
        return JanusModel(shape, janus_marks(words, shape.token_rows), order.target)


_LAYOUTS = {
    LlamaGenModel.family: _Layout(_llamagen, pixel_shift=128.0, tokenizer=False),
    ChameleonModel.family: _Layout(_chameleon, unit_codes=False),
    JanusModel.family: _Layout(_janus, janus_name, janus_vq),
}


def _recipe(name: str, tensors: Tensors, shape: TransformerConfig) -> Recipe:
    if name == "output.weight" and shape.token_rows:  # only image ids are ever drawn
        return Recipe((name,), (shape.image_start, shape.image_start + shape.vocab_size))
    return recipe(name, tensors)


def _like(wanted: Shape, found: Shape) -> Shape:
    """One row shared by all heads is stored without its dimension in some layouts."""
    return wanted if wanted == (1, *found) else found


def _fair_folder(source: Path) -> Path:
    """Where a folder in the layout of the original Chameleon keeps the transformer."""
    inner = sorted(path.parent for path in source.glob("models/*/consolidated*.pth"))
    if len(set(inner)) > 1:
        raise InvalidRequest(
            f"{source} holds several models", "", f"name one: {sorted(set(map(str, inner)))}"
        )
    return inner[0] if inner else source


def _read_source(source: Path) -> Tensors:
    """The tensors under the names they come with."""
    files = sorted(_fair_folder(source).glob("consolidated*.pth")) if source.is_dir() else []
    if len(files) < 2:
        return read_tensors(files[0] if files else source)
    shards = read_shards(files, _join)
    if fused := sorted(name for name in shards if _FUSED.fullmatch(name)):
        why = f"their parts lie interleaved: {fused[:2]}"
        raise ModelUnavailable(f"fused tensors in several files of {source} cannot be joined", why)
    return shards


def _join(name: str) -> Join:
    """How the original Chameleon cuts a tensor over its files: each has some heads and their norms."""
    for pattern, how in _JOINS.items():
        if pattern.fullmatch(name):
            return how
    return "copy"


def _vq_file(source: Path) -> Path:
    inside = source / "tokenizer" / "vqgan.ckpt"
    return inside if inside.is_file() else source


def _tokenizer_file(order: Conversion) -> Path:
    inside = order.source / "tokenizer" / "text_tokenizer.json"
    return order.tokenizer or (inside if inside.is_file() else order.source / "tokenizer.json")


def _settings(source: Path) -> Mapping[str, Any]:
    """What `config.json` or `params.json` beside the weights says of the transformer; nothing where there is
    neither."""
    folder = _fair_folder(source) if source.is_dir() else source.parent
    for name in ("params.json", "config.json"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            inner: dict[str, Any] = next((content[key] for key in _INNER if content.get(key)), {})
            parts = (content.get("rope_parameters") or {}, content, inner.get("rope_parameters") or {}, inner)
            return {key: value for part in parts for key, value in part.items()}
    return {}
