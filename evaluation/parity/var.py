"""Golden folders of VAR, its multi-scale VQ and CoDe. Knows no argv.

Every weight file goes through the converter into a model folder and is loaded from there.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from evaluation.parity.checks import (
    BROKEN,
    Check,
    Named,
    compare,
    guarded,
    left_over,
    read_golden,
    refused,
    same,
    weight_files,
)
from shared.decoding.scales import draw, guidance_at, guide_scale, smoothed, truncated
from shared.models.families.var import VARModel
from shared.models.families.var_run import ScaleRun
from shared.models.families.var_vae import ScaleVQ, enlarged, filter_of, reduced
from shared.models.generators import load_generator, load_scale_vq
from training.generators import (
    VAR_NESTS,
    scale_vq,
    scale_vq_tensors,
    var_config,
    var_weights,
    write_generator,
    write_scale_vq,
)
from training.sources import read_tensors

TABLE = "phi_index_table"
VAE = "vae"  # the case, and the file, of the tokenizer that serves all others


def check(folder: Path, settings: Mapping[str, Any]) -> Iterator[Check]:
    """Every case of the folder, then every file in a layout of its own."""
    for name, case in settings.items():
        if isinstance(case, Mapping):
            yield from guarded(name, _case(folder, name, settings))


def tolerance(name: str) -> float:
    """How far fp32 may differ from the official numbers, by tensor."""
    if "logits" in name:
        return 5e-5 if name.startswith("tf.logits_") and "cfg" not in name else 2e-4
    if name.startswith("smooth"):
        return 1e-4
    if name.endswith("probs"):
        return 1e-6
    return 5e-6 if name.endswith(("image", "enc.f", "enc.recon")) else 1e-5


def _case(folder: Path, name: str, settings: Mapping[str, Any]) -> Iterator[Check]:
    case, golden = settings[name], read_golden(folder / f"{name}.golden.safetensors")
    if name == TABLE:
        return _filters(case)
    if "drafter" in case:
        return _code(folder, name, case, golden, settings)
    if "cases" in case:
        return _sampling(name, case, golden)
    if "ch_mult" in case["config"]:
        return _tokenizer(_files(folder, name, settings), case["config"], golden)
    return _model(folder, name, case, golden, settings)


def load(file: Path, config: Mapping[str, Any], home: Path) -> VARModel:
    """Convert a transformer file below `home` and load the folder. Raises ModelUnavailable."""
    tensors = read_tensors(file, VAR_NESTS)
    with torch.device("meta"):
        model = VARModel(var_config(tensors, config.get("num_heads")))
    write_generator(home / "cloud", model, var_weights(tensors))
    found = load_generator(home / "cloud")
    assert isinstance(found, VARModel)
    return found


def load_vq(file: Path, config: Mapping[str, Any], home: Path) -> ScaleVQ:
    """The same of a tokenizer."""
    tensors = scale_vq_tensors(file)
    with torch.device("meta"):
        vq = scale_vq(tensors, tuple(config["patch_nums"]), config.get("quant_resi", 0.5))
    write_scale_vq(home / "vae", vq, tensors)
    return load_scale_vq(home / "vae")


def _files(folder: Path, name: str, cases: Container[str] = ()) -> list[Path]:
    """`name` itself in any format, then `name_` in other layouts, which are no cases of their own."""
    others = [
        path for path in weight_files(folder) if path.name.startswith(f"{name}_") and path.stem not in cases
    ]
    return [path for path in weight_files(folder) if path.stem == name] + others


def _vq(folder: Path, settings: Mapping[str, Any], home: str) -> ScaleVQ:
    return load_vq(_files(folder, VAE)[0], settings[VAE]["config"], Path(home))


def _filters(table: Mapping[str, list[int]]) -> Iterator[Check]:
    for key, expected in table.items():
        scales, filters = (int(part[1:]) for part in key.split("_"))
        found = [filter_of(scale, scales, filters) for scale in range(scales)]
        yield same(f"{TABLE} {key}", torch.tensor(found), torch.tensor(expected))


def _sampling(name: str, case: Mapping[str, Any], golden: Named) -> Iterator[Check]:
    noise, found, kept = -golden["in.exp_noise"].log(), {}, {}
    for index, how in enumerate(case["cases"]):
        kept[index] = truncated(golden["in.logits"], how["top_k"], how["top_p"])
        found[f"case{index}.probs"] = kept[index].exp()
        found[f"case{index}.kept"] = (kept[index] > -torch.inf).to(torch.uint8)
        found[f"case{index}.tokens"] = draw(kept[index], noise)
    dropped = kept[case.get("more_smooth_uses_case", 0)] == -torch.inf
    masked = golden["in.logits"].masked_fill(dropped, -torch.inf)
    for key in golden:
        if key.startswith("smooth.ratio"):
            progress = float(key.removeprefix("smooth.ratio").removesuffix(".weights"))
            found[key] = smoothed(masked, noise, progress)
    yield from compare(name, found, golden, tolerance)


def _tokenizer(files: Sequence[Path], config: Mapping[str, Any], golden: Named) -> Iterator[Check]:
    for file in files:
        with TemporaryDirectory() as home, torch.inference_mode():
            if BROKEN in file.name:
                yield refused(file.name, partial(load_vq, file, config, Path(home)))
                continue
            vq = load_vq(file, config, Path(home))
            found = _tokenizer_found(vq, golden)
            yield from compare(file.name, found, golden, tolerance)
            yield from left_over(file.name, found, golden)
            for scale, index in enumerate(config.get("phi_index_per_scale", ())):
                served = filter_of(scale, len(vq.maps.scales), vq.maps.filters)
                yield same(f"{file.name} filter {scale}", torch.tensor(served), torch.tensor(index))


def _tokenizer_found(vq: ScaleVQ, golden: Named) -> dict[str, Tensor]:
    quantizer, scales = vq.quantize, vq.maps.scales
    tokens = vq.encode(golden["enc.image"])
    sums = quantizer.sums(tokens)
    larger = enlarged(golden["resample.small"], quantizer.side)
    phis = {f"phi.out_{k}": quantizer.filtered(golden["phi.in"], k) for k in range(len(scales))}
    return {
        "enc.image": golden["enc.image"],
        "enc.f": vq.features(golden["enc.image"]),
        "enc.tokens": torch.cat(tokens, 1),
        "enc.f_hat": torch.stack(sums),
        "enc.recon": vq.decode(sums[-1]),
        "phi.in": golden["phi.in"],
        **phis,
        "resample.small": golden["resample.small"],
        "resample.bicubic_up": larger,
        "resample.area_down": reduced(larger, scales[-2]),
    }


def _model(
    folder: Path, name: str, case: Mapping[str, Any], golden: Named, settings: Mapping[str, Any]
) -> Iterator[Check]:
    for file in _files(folder, name, settings):
        with TemporaryDirectory() as home, torch.inference_mode():
            if BROKEN in file.name:
                yield refused(file.name, partial(load, file, case["config"], Path(home)))
                continue
            model, vq = load(file, case["config"], Path(home)), _vq(folder, settings, home)
            found = _forced(model, vq, golden, case.get("cfgs", ()))
            for strength in case.get("cfgs", ()):
                found |= _generated(model, vq, golden["in.labels"], strength)
            yield from compare(file.name, found, golden, tolerance)
            yield from left_over(file.name, found, golden)


def _by_scale(model: VARModel, tokens_BL: Tensor) -> list[Tensor]:
    return list(torch.split(tokens_BL, [side * side for side in model.config.scales], 1))


def _forced(model: VARModel, vq: ScaleVQ, golden: Named, strengths: Sequence[float]) -> dict[str, Tensor]:
    """One pass over all scales of given tokens."""
    quantizer, count = vq.quantize, len(model.config.scales)
    sums = quantizer.sums(_by_scale(model, golden["in.tokens"]))
    maps = torch.cat([quantizer.input_map(sums[k - 1], k) for k in range(1, count)], 1)
    cond_RD = model.condition(golden["in.labels"])
    cond, uncond = model.logits(model(maps.repeat(2, 1, 1), cond_RD, 0, count), cond_RD).chunk(2)
    found = {
        "tf.logits_cond": cond, "tf.logits_uncond": uncond, "tf.x_in": maps,
        "tf.f_hat": torch.stack(sums), "tf.image": vq.picture(sums[-1]),
    }  # fmt: skip
    for strength in strengths:
        parts = zip(_by_scale(model, cond), _by_scale(model, uncond), strict=True)
        guided = [guide_scale(c, u, guidance_at(k, count, strength)) for k, (c, u) in enumerate(parts)]
        found[f"tf.logits_cfg{strength}"] = torch.cat(guided, 1)
    return found


def _greedy(run: ScaleRun, last: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Push the argmax up to a scale: tokens, their logits, the sum after each scale."""
    logits, sums, begin = [], [], run.scale
    while run.scale < last:
        logits.append(run.logits())
        run.push(logits[-1].argmax(-1))
        sums.append(run.sum_BEHH)
    return torch.cat(run.tokens[begin:], 1), torch.cat(logits, 1), sums


def _generated(model: VARModel, vq: ScaleVQ, labels_B: Tensor, strength: float) -> dict[str, Tensor]:
    run, name = ScaleRun(model, vq.quantize, labels_B, strength), f"gen.cfg{strength}"
    tokens, logits, sums = _greedy(run, len(model.config.scales))
    inputs = {
        f"{name}.next_in_{k}": maps.transpose(1, 2).reshape(len(maps), -1, side, side)
        for k, (maps, side) in enumerate(zip(run.inputs, model.config.scales[1:], strict=True), 1)
    }
    whole = {"tokens": tokens, "logits": logits, "f_hat": torch.stack(sums), "image": vq.picture(sums[-1])}
    return {**inputs, **{f"{name}.{key}": value for key, value in whole.items()}}


def _code(
    folder: Path, name: str, case: Mapping[str, Any], golden: Named, settings: Mapping[str, Any]
) -> Iterator[Check]:
    with TemporaryDirectory() as home, torch.inference_mode():
        vq = _vq(folder, settings, home)
        drafter, refiner = (
            load(_files(folder, f"{name}_{role}")[0], case[role], Path(home) / role)
            for role in ("drafter", "refiner")
        )
        found: dict[str, Tensor] = {}
        for handed in case["N"]:
            draft = ScaleRun(drafter, vq.quantize, golden["in.labels"], case["cfg"])
            refine = ScaleRun(refiner, vq.quantize, golden["in.labels"], case["cfg"])
            found |= _handed_over(draft, refine, vq, f"{name}.N{handed}")
        yield from compare(name, found, golden, tolerance)
        yield from left_over(name, found, golden)


def _handed_over(draft: ScaleRun, refine: ScaleRun, vq: ScaleVQ, name: str) -> dict[str, Tensor]:
    """CoDe: the refiner is given the drafter's tokens and nothing else."""
    scales = int(name.rpartition("N")[2])
    tokens, logits, sums = _greedy(draft, scales)
    for tokens_BT in draft.tokens:
        refine.push(tokens_BT)
    refined, refined_logits, refined_sums = _greedy(refine, len(refine.model.config.scales))
    return {
        f"{name}.draft.tokens": tokens, f"{name}.draft.logits": logits, f"{name}.draft.f_hat": sums[-1],
        f"{name}.draft.next_inputs": torch.cat(draft.inputs[:scales], 1),
        f"{name}.refine.tokens": refined, f"{name}.refine.logits": refined_logits,
        f"{name}.refine.f_hat": torch.stack(refined_sums), f"{name}.tokens": torch.cat([tokens, refined], 1),
        f"{name}.image": vq.picture(refined_sums[-1]),
    }  # fmt: skip
