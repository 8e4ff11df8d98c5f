"""Golden folders of Janus: its prompt, both guidance rows, greedy tokens and pictures. Knows no argv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from evaluation.parity.checks import Check, Named, compare, guarded, read_golden, same, skipped
from evaluation.parity.decode import Prefix, embed_all, greedy, teacher_forced, verified
from shared.decoding.warp import guide
from shared.errors import ModelUnavailable
from shared.models.checkpoint import load_model, load_vq
from shared.models.families.janus import JanusModel
from shared.models.vq import VQModel
from training.conversion import Conversion
from training.convert import convert


def check(folder: Path, settings: Mapping[str, Any]) -> Iterator[Check]:
    """Every layout of the folder."""
    golden = read_golden(folder / "golden.safetensors")
    for layout in settings["layouts"]:
        yield from guarded(layout, _layout(folder / layout, settings, golden))


def tolerance(name: str) -> float:
    """How far fp32 may differ from the official numbers, by tensor; guided logits are five times as far."""
    return 1e-4 if "cfg" in name or "vq" in name else 2e-5


def _layout(source: Path, settings: Mapping[str, Any], golden: Named) -> Iterator[Check]:
    with TemporaryDirectory() as home, torch.inference_mode():
        longest = max(len(golden[f"prompt_ids_{index}"]) for index in range(len(settings["prompts"])))
        convert(Conversion(source, Path(home), "janus", settings["image_px"], tokens=longest))
        model, vq = load_model(Path(home) / "cloud"), load_vq(Path(home) / "vq")
        assert isinstance(model, JanusModel)
        yield from _ids(source.name, model, settings, golden)
        found = {**_guided(model, golden, settings), **_pictures(vq, golden)}
        yield from compare(source.name, found, golden, tolerance)


def _ids(layout: str, model: JanusModel, settings: Mapping[str, Any], golden: Named) -> Iterator[Check]:
    for index, prompt in enumerate(settings["prompts"]):
        what = f"{layout} prompt_ids_{index}"
        try:
            found = torch.tensor(model.prompt_ids(prompt))
        except ModelUnavailable as error:
            yield skipped(what, str(error))
        else:
            yield same(what, found, golden[f"prompt_ids_{index}"])


def _guided(model: JanusModel, golden: Named, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Greedy tokens by single steps, then the logits of both rows over the official tokens, all at once and
    behind a rejected draft."""
    scale, prefixes = settings["cfg_scale"], []
    found: dict[str, Tensor] = {}
    for index in range(len(settings["prompts"])):
        rows = model.rows(golden[f"prompt_ids_{index}"].tolist())
        prefixes.append(Prefix(rows, model.starts(rows.shape[1])))
        x_ND = embed_all(model, golden["greedy_codes"][index])
        cond, uncond = (teacher_forced(model, prefixes[-1], row, x_ND) for row in range(2))
        found |= {f"cond_logits_{index}": cond, f"uncond_logits_{index}": uncond}
        found[f"cfg_logits_{index}"] = guide(cond, uncond, scale)
    found["greedy_codes"] = greedy(model, prefixes, [scale] * model.config.image_tokens).tokens_BN
    return {**found, **_verify(model, prefixes[0], golden, scale)}


def _verify(model: JanusModel, prefix: Prefix, golden: Named, scale: float) -> dict[str, Tensor]:
    tokens_1N, place = golden["greedy_codes"][:1].long(), int(golden["verify_place"])
    cond, uncond = verified(model, [prefix], tokens_1N, place, tokens_1N[:, place:-1])
    return {"verify_cfg_logits": guide(cond, uncond, scale)}


def _pictures(vq: VQModel, golden: Named) -> dict[str, Tensor]:
    side = round(golden["greedy_codes"].shape[1] ** 0.5)
    codes = golden["greedy_codes"].reshape(-1, side, side).long()
    return {"vq_pixels": vq.decode(codes), "vq_uint8": vq.pictures(codes)}
