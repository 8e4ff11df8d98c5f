"""The transformer cases of LlamaGen's golden folders. Knows no argv.

Every weight file goes through the converter into a model folder and is loaded from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.parity.checks import Check, Named, compare, left_over
from evaluation.parity.decode import Prefix, embed_all, fill, greedy, teacher_forced, verified
from shared.decoding.warp import guide
from shared.models.checkpoint import load_model
from shared.models.families.llamagen import LlamaGenModel
from shared.models.kv_cache import KVCache, plain_window
from training.convert import llamagen_on_meta, read_transformer, write_transformer
from training.upstream import llamagen_config

SUFFIXES = (".pt", ".safetensors")


def tolerance(name: str) -> float:
    """How far fp32 may differ from the official numbers, by tensor."""
    if name.endswith(("logits_cfg", "step_logits")) and "nocfg" not in name:
        return 5e-4
    if "rope" in name or "freqs" in name:
        return 5e-6
    if name.endswith("z_q") or "probs" in name or name.endswith("encode.image"):
        return 1e-6
    return 1e-4 if name.endswith(("pixels", "z_pre_quant")) else 5e-5


def load(file: Path, config: Mapping[str, Any], home: Path) -> LlamaGenModel:
    """Convert a transformer file below `home` and load the folder. Raises ModelUnavailable."""
    tensors, side = read_transformer(file), round(config["block_size"] ** 0.5)
    shape = llamagen_config(tensors, side, config["n_head"])
    shape = replace(shape, **{name: config[name] for name in ("norm_eps", "rope_base") if name in config})
    write_transformer(home / "cloud", llamagen_on_meta(shape, home), tensors)
    model = load_model(home / "cloud")
    assert isinstance(model, LlamaGenModel)
    return model


def transformers(folder: Path, name: str, case: Mapping[str, Any], golden: Named) -> Iterator[Check]:
    """A case in each of its weight files."""
    for file in (folder / f"{name}{suffix}" for suffix in SUFFIXES):
        if file.is_file():
            with TemporaryDirectory() as home, torch.inference_mode():
                model = load(file, case["config"], Path(home))
                found = (
                    _captioned(model, case, golden) if "in.cond" in golden else _classes(model, case, golden)
                )
                yield from compare(file.name, found, golden, tolerance)
                yield from left_over(file.name, found, golden)


def _classes(model: LlamaGenModel, case: Mapping[str, Any], golden: Named) -> dict[str, Tensor]:
    rows = [model.prompt_rows(str(label)) for label in golden["in.labels"].tolist()]
    prefixes = [Prefix(row, model.starts(row.shape[1])) for row in rows]
    count, scale = model.config.image_tokens, case.get("cfg_scale", 1.0)
    found = _forced(model, prefixes, golden["in.tokens"], scale)
    found["rope.freqs_cis"] = model.gpt.rope
    for run, guidance in (("cfg", scale), ("nocfg", 1.0)):
        drawn = greedy(model, prefixes, [guidance] * count)
        found |= {f"gen.{run}.tokens": drawn.tokens_BN, f"gen.{run}.step_logits": drawn.logits_BNV}
    return found


class _Captions:
    """Stands where T5 stands: gives the features of the golden prompt of that number."""

    def __init__(self, features: list[Tensor]) -> None:
        self._features = features

    def features(self, prompt: str) -> Tensor:
        """[n, C]."""
        return self._features[int(prompt)]


def _captioned(model: LlamaGenModel, case: Mapping[str, Any], golden: Named) -> dict[str, Tensor]:
    counts = golden["in.emb_masks"].sum(1).tolist()
    model.captions = _Captions(_features(golden, counts))  # type: ignore[assignment]
    prefixes = [_prefix(model, model.prompt_rows(str(index))) for index in range(len(counts))]
    whole = [model.gpt.embed_caption(rows) for rows in (golden["in.cond"], golden["in.uncond"])]
    unmasked = [_prefix(model, torch.stack(pair)) for pair in zip(*whole, strict=True)]
    found = {"cap_proj.cond": whole[0], "cap_proj.uncond": whole[1], "rope.freqs_cis": model.gpt.rope}
    tokens = golden["in.tokens"]
    found |= _forced(model, prefixes, tokens, case.get("tf_cfg_scale", 1.0))
    plain = [teacher_forced(model, p, 0, embed_all(model, t)) for p, t in zip(unmasked, tokens, strict=True)]
    found["tf.logits_cond_nomask"] = torch.stack(plain)
    for run, how in case.get("runs", {}).items():
        found |= _run(model, prefixes if how["emb_masks"] else unmasked, f"gen.{run}", how)
    found |= _visible(model, prefixes, tokens, golden)
    if "verify" in case:
        first = case["verify"]["first_token_index"]
        fed = tokens[:, first : first + case["verify"]["n_tokens"]]
        found["verify.chunk_logits"] = verified(model, prefixes, tokens, first, fed)
    return found


def _features(golden: Named, counts: list[int]) -> list[Tensor]:
    """What T5 gave for each prompt: its valid rows lie in front of the padding, or behind it in `in.cond`."""
    if "in.t5_embs_right_padded" in golden:
        return [rows[:n] for rows, n in zip(golden["in.t5_embs_right_padded"], counts, strict=True)]
    return [rows[len(rows) - n :] for rows, n in zip(golden["in.cond"], counts, strict=True)]


def _prefix(model: LlamaGenModel, rows_2ND: Tensor) -> Prefix:
    return Prefix(rows_2ND, model.starts(rows_2ND.shape[1]))


def _forced(
    model: LlamaGenModel, prefixes: list[Prefix], tokens_BN: Tensor, scale: float
) -> dict[str, Tensor]:
    cond, uncond = (
        torch.stack(
            [
                teacher_forced(model, p, row, embed_all(model, t))
                for p, t in zip(prefixes, tokens_BN, strict=True)
            ]
        )
        for row in range(2)
    )
    guided = guide(cond, uncond, scale)
    return {"tf.logits_cond": cond, "tf.logits_uncond": uncond, "tf.logits_cfg": guided}


def _run(
    model: LlamaGenModel, prefixes: list[Prefix], name: str, how: Mapping[str, Any]
) -> dict[str, Tensor]:
    """A greedy run; an interval k guides the prefill and decode steps 0 .. k: tokens 0 .. k + 1."""
    last = how["cfg_interval"] + 1 if how["cfg_interval"] >= 0 else model.config.image_tokens
    scales = [how["cfg_scale"] if place <= last else 1.0 for place in range(model.config.image_tokens)]
    drawn = greedy(model, prefixes, scales)
    return {
        f"{name}.tokens": drawn.tokens_BN,
        f"{name}.step_logits": drawn.logits_BNV,
        f"{name}.step_logits_cond_uncond": drawn.raw_2BNV,
    }


def _visible(
    model: LlamaGenModel, prefixes: list[Prefix], tokens_BN: Tensor, golden: Named
) -> dict[str, Tensor]:
    """Inner tensors whose padded entries are whatever upstream left there: golden ones, overwritten where it
    matters."""
    names = ("hidden.cond", "tf.logits_cond_all", "kv.prefill_k", "kv.prefill_v", "attn_mask")
    prefill = [name for name in golden if name.endswith("prefill_logits")]
    found = {name: golden[name].clone() for name in (*names, *prefill) if name in golden}
    cache, end = KVCache(model.config, 2 * len(prefixes)), model.config.prefix_len
    fill(model, prefixes, cache)
    for b, prefix in enumerate(prefixes):
        start = prefix.starts[0]
        if "attn_mask" in found:
            positions = torch.arange(start, end + model.config.image_tokens)[None]
            mask = plain_window(positions, torch.tensor([start])).mask_BTS
            assert mask is not None
            found["attn_mask"][b, start:] = 0
            found["attn_mask"][b, start:, start:] = mask[0].byte()
        layers_LSD = _layer_outputs(model, prefix, tokens_BN[b])
        if "hidden.cond" in found:
            found["hidden.cond"][:, b, start:] = layers_LSD
        if "tf.logits_cond_all" in found:
            found["tf.logits_cond_all"][b, start:] = model.gpt.logits(layers_LSD[-1])
        for row, slot in enumerate((b, len(prefixes) + b)):
            for name, part in (("kv.prefill_k", "keys"), ("kv.prefill_v", "values")):
                if name in found:
                    stores = torch.stack([getattr(layer, part)[slot, start:end] for layer in cache.layers])
                    found[name][:, slot, :, start:] = stores.transpose(1, 2)
            for name in prefill:
                window = plain_window(torch.arange(start, end)[None], torch.tensor([start]))
                hidden = model.gpt(prefix.rows_2ND[row : row + 1], window)
                found[name][slot, start:] = model.gpt.logits(hidden[0])
    return found


def _layer_outputs(model: LlamaGenModel, prefix: Prefix, tokens_N: Tensor) -> Tensor:
    """Outputs [L + 1, S, D] of every block and of the last norm, from one forward over prefix and tokens."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        seen.append(output[0])

    hooks = [part.register_forward_hook(note) for part in (*model.gpt.layers, model.gpt.norm)]
    x_SD = torch.cat([prefix.rows_2ND[0], embed_all(model, tokens_N)])
    start = prefix.starts[0]
    model.gpt(x_SD[None], plain_window(torch.arange(start, start + len(x_SD))[None], torch.tensor([start])))
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)
