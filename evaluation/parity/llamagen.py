"""Golden folders of LlamaGen: transformers, VQ, sampling, rotary tables, file layouts. Knows no argv.

Cases are told apart by what their settings hold, sizes are taken from them. Every weight file goes through
the converter into a model folder and is loaded from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from evaluation.parity.checks import BROKEN, Check, Named, close, compare, guarded, read_golden, refused, same
from evaluation.parity.decode import embed_all
from evaluation.parity.llamagen_gpt import SUFFIXES, load, tolerance, transformers
from shared.decoding.warp import Warp, warp_logits
from shared.models.checkpoint import load_vq
from shared.models.kv_cache import plain_window
from shared.models.rope import rope_2d
from shared.models.vq import VQModel, from_pixels
from training.convert import check_vq, write_vq
from training.sources import read_tensors
from training.upstream import vq_tensors


def check(folder: Path, settings: Mapping[str, Any]) -> Iterator[Check]:
    """Every case of the folder."""
    for name, case in settings["cases"].items():
        yield from guarded(name, _case(folder, name, case))


def _case(folder: Path, name: str, case: Mapping[str, Any]) -> Iterator[Check]:
    config, golden = case.get("config", {}), read_golden(folder / f"{name}.golden.safetensors")
    if "files" in case:
        return _layouts(folder, name, config, golden)
    if "model_type" in config:
        return transformers(folder, name, case, golden)
    if "codebook_size" in config:
        return _vqs(folder, name, golden)
    if "cases" in case:
        return _sampling(name, case["cases"], golden)
    return _tables(name, case, golden)


def _vqs(folder: Path, name: str, golden: Named) -> Iterator[Check]:
    for file in (folder / f"{name}{suffix}" for suffix in SUFFIXES):
        if file.is_file():
            with TemporaryDirectory() as home, torch.inference_mode():
                tensors = vq_tensors(read_tensors(file))
                write_vq(Path(home), tensors, check_vq(tensors))
                vq = load_vq(Path(home))
                for grid in sorted({key.split(".")[0] for key in golden}):
                    yield from compare(file.name, _vq_grid(vq, grid, golden), golden, tolerance)


def _vq_grid(vq: VQModel, grid: str, golden: Named) -> dict[str, Tensor]:
    """Decode, encode, reconstruct; a grid is named after its height and width, such as g2x3."""
    height, width = (int(side) for side in grid[1:].split("x"))
    tokens = golden[f"{grid}.decode.tokens"].reshape(-1, height, width)
    image = golden[f"{grid}.encode.image"]
    ids = vq.encode(image)
    return {
        f"{grid}.decode.z_q": vq.quantize.codes()[tokens].permute(0, 3, 1, 2),
        f"{grid}.decode.pixels": vq.decode(tokens),
        f"{grid}.decode.image_u8_nhwc": vq.pictures(tokens),
        f"{grid}.encode.image": from_pixels(golden[f"{grid}.encode.image_u8_nhwc"]),
        f"{grid}.encode.z_pre_quant": vq.features(image),
        f"{grid}.encode.indices": ids.flatten(1),
        f"{grid}.recon.pixels": vq.decode(ids),
    }


def _sampling(name: str, cases: list[Mapping[str, Any]], golden: Named) -> Iterator[Check]:
    for index, case in enumerate(cases):
        warp = Warp(1.0, case["temperature"], case["top_k"], case["top_p"])
        logits = golden["logits"][:, -1]
        probs = warp_logits(logits, warp).exp()
        yield same(
            f"{name} case{index}.argmax", probs.argmax(-1, keepdim=True), golden[f"case{index}.argmax"]
        )
        golden_probs = _settle_ties(logits, golden[f"case{index}.probs"])
        yield close(
            f"{name} case{index}.probs", _settle_ties(logits, probs), golden_probs, tolerance("probs")
        )
        yield same(f"{name} case{index} kept", (probs > 0).sum(-1), torch.tensor(case["n_kept"]))


def _settle_ties(logits_BV: Tensor, probs_BV: Tensor) -> Tensor:
    """Probabilities in the order of (logit, probability): upstream's sort is not stable, so it means
    nothing which of equal logits top-p keeps."""
    sorted_BV = probs_BV.sort(dim=-1, stable=True)
    order_BV = logits_BV.gather(-1, sorted_BV.indices).sort(dim=-1, stable=True).indices
    return sorted_BV.values.gather(-1, order_BV)


def _tables(name: str, case: Mapping[str, Any], golden: Named) -> Iterator[Check]:
    for key, size in case.items():
        if not isinstance(size, dict):
            continue
        table = rope_2d(size["cls_token_num"], size["grid"], size["head_dim"], size.get("rope_base", 10000))
        rows = table[golden[f"{key}.row_index"]]
        yield same(f"{name} {key} rows", torch.tensor([len(table)]), torch.tensor([size["table_rows"]]))
        yield close(f"{name} {key}", rows, golden[f"{key}.freqs_cis_rows"], tolerance("rope"))


def _layouts(folder: Path, name: str, config: Mapping[str, Any], golden: Named) -> Iterator[Check]:
    for file in sorted(path for path in folder.glob(f"{name}_*") if path.suffix in SUFFIXES):
        if ".golden" in file.name:
            continue
        with TemporaryDirectory() as home, torch.inference_mode():
            if BROKEN in file.name:
                yield refused(file.name, lambda file=file, home=home: load(file, config, Path(home)))  # type: ignore[misc]
                continue
            model = load(file, config, Path(home))
            start = model.config.prefix_len - int(golden["in.emb_masks"].sum())
            rows = model.gpt.embed_caption(golden["in.cond"][:, start:])
            x = torch.cat([rows, embed_all(model, golden["in.tokens"][0])[None]], 1)
            hidden = model.gpt(
                x, plain_window(torch.arange(start, start + x.shape[1])[None], torch.tensor([start]))
            )
            expected = golden["tf.logits_cond_all"][:, start:]
            yield close(f"{file.name} tf.logits_cond_all", model.gpt.logits(hidden), expected, 5e-5)
