"""Golden folders of Chameleon and Anole: one model in every layout they hold. Knows no argv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from evaluation.parity.checks import Check, Named, compare, guarded, read_golden, same, skipped
from evaluation.parity.decode import Prefix, embed_all, greedy, teacher_forced, verified
from shared.decoding.acceptance import Judged, rule
from shared.decoding.warp import Warp, guide, log_probs
from shared.errors import ModelUnavailable
from shared.models.checkpoint import load_model, load_vq
from shared.models.families.chameleon import ChameleonModel
from shared.models.kv_cache import plain_window
from shared.models.vq import VQModel
from training.conversion import Conversion
from training.convert import convert

LAYOUTS = {"hf": ".", "fair": "fair"}


def check(folder: Path, settings: Mapping[str, Any]) -> Iterator[Check]:
    """Every layout of the folder."""
    golden = read_golden(folder / "golden.safetensors")
    for layout in settings["layouts"]:
        yield from guarded(layout, _layout(folder, layout, settings, golden))


def _layout(folder: Path, layout: str, settings: Mapping[str, Any], golden: Named) -> Iterator[Check]:
    with TemporaryDirectory() as home, torch.inference_mode():
        source, pixels = folder / LAYOUTS.get(layout, layout), settings["image_px"]
        longest = max(v.shape[-1] for n, v in golden.items() if n == "random_ids" or n.startswith("cond_ids"))
        convert(Conversion(source, Path(home), "chameleon", pixels, tokens=longest))
        model, vq = load_model(Path(home) / "cloud"), load_vq(Path(home) / "vq")
        assert isinstance(model, ChameleonModel)
        yield from _ids(layout, model, settings, golden)
        found = {
            **_plain(model, golden, settings),
            **_guided(model, golden, settings),
            **(_pictures(vq, golden) if "vq_pixels" in golden else {}),
        }
        yield from compare(layout, found, _image_columns(golden, model), tolerance)
        yield from _acceptance(layout, found, golden, settings)


def tolerance(name: str) -> float:
    """How far fp32 may differ from the official numbers, by tensor."""
    if name == "random_logits":
        return 2e-5  # tight enough to see a wrong epsilon in the norms
    if "probs" in name:
        return 1e-5
    return 2e-4 if "cfg" in name else 1e-4


def _image_columns(golden: Named, model: ChameleonModel) -> dict[str, Tensor]:
    """Golden tensors, those over the whole vocabulary cut to the image codes, the only ones we have a head
    for."""
    first, count = model.config.image_start, model.config.vocab_size
    whole = {name for name in golden if name == "random_logits" or name.startswith("prompt_logits")}
    return {n: v[..., first : first + count] if n in whole else v for n, v in golden.items()}


def _ids(layout: str, model: ChameleonModel, settings: Mapping[str, Any], golden: Named) -> Iterator[Check]:
    marks, ids = model.marks, settings["ids"]
    ours = torch.tensor(
        [marks.begin, marks.turn, marks.image, model.config.image_start, model.config.vocab_size]
    )
    theirs = [ids["bos"], ids["sep"], ids["boi"], settings["image_token_start"], settings["n_codes"]]
    yield same(f"{layout} ids", ours, torch.tensor(theirs))
    for index, prompt in enumerate(settings["prompts"]):
        what = f"{layout} cond_ids_{index}"
        try:
            found = torch.tensor(model.prompt_ids(prompt))
        except ModelUnavailable as error:
            yield skipped(what, str(error))
        else:
            yield same(what, found, golden[f"cond_ids_{index}"])


def _plain(model: ChameleonModel, golden: Named, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Unguided forwards over any ids of the vocabulary."""
    found = {"random_hidden": _hidden(model, golden["random_ids"])}
    found["random_logits"] = model.gpt.logits(found["random_hidden"])
    for index in range(len(settings["prompts"])):
        hidden = _hidden(model, golden[f"cond_ids_{index}"][None])[0]
        found[f"prompt_logits_{index}"] = model.gpt.logits(hidden)
    return found


def _hidden(model: ChameleonModel, ids_BS: Tensor) -> Tensor:
    window = plain_window(torch.arange(ids_BS.shape[1])[None], torch.zeros(1, dtype=torch.int64))
    hidden: Tensor = model.gpt(model.gpt.embed_text(ids_BS), window)
    return hidden


def _guided(model: ChameleonModel, golden: Named, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    scale, count = settings["cfg_scale"], len(settings["prompts"])
    prefixes = []
    for index in range(count):
        rows = model.rows(golden[f"cond_ids_{index}"].tolist())
        prefixes.append(Prefix(rows, model.starts(rows.shape[1])))
    drawn = greedy(model, prefixes, [scale] * model.config.image_tokens)
    cond, uncond = drawn.raw_2BNV.chunk(2)
    found = {
        "greedy_codes": drawn.tokens_BN,
        "greedy_bpe": drawn.tokens_BN + model.config.image_start,
        "cond_img_logits": cond,
        "uncond_img_logits": uncond,
        "cfg_img_logits": drawn.logits_BNV,
    }
    steps = golden["sample_steps"]
    for name, how in settings["sampling"].items():
        warp = Warp(scale, how["temperature"], how.get("top_k", 0), how.get("top_p", 1.0))
        found[f"probs_{name}"] = log_probs(cond[0, steps], uncond[0, steps], warp).exp()
    found["interval_cfg_logits"] = _with_features(model, prefixes[0], golden, scale)
    return {**found, **_verify(model, prefixes[0], golden, settings)}


def _with_features(model: ChameleonModel, prefix: Prefix, golden: Named, scale: float) -> Tensor:
    """Guided logits where a vector is added to the embedding of every image token, on both rows (eq. 6)."""
    x_ND = embed_all(model, golden["greedy_codes"][0])
    x_ND[: len(golden["interval_delta"])] += golden["interval_delta"]
    cond, uncond = (teacher_forced(model, prefix, row, x_ND) for row in range(2))
    return guide(cond, uncond, scale)


def _verify(
    model: ChameleonModel, prefix: Prefix, golden: Named, settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    known, place = settings["verify"]["image"], settings["verify"]["committed"]
    tokens_1N = golden["greedy_codes"][known : known + 1]
    drafts = golden["verify_drafts"] - model.config.image_start
    fed_1K = torch.cat([tokens_1N[:, place - 1 : place], drafts[None]], 1)
    logits = verified(model, [prefix], tokens_1N, place - 1, fed_1K)
    guided = guide(logits[0], logits[1], settings["cfg_scale"])
    return {"verify_cfg_logits": guided, "verify_greedy": guided.argmax(-1) + model.config.image_start}


def _acceptance(layout: str, found: Named, golden: Named, settings: Mapping[str, Any]) -> Iterator[Check]:
    """The shipped greedy rule on that forward: how much stands, and what follows it."""
    start, verify = settings["image_token_start"], settings["verify"]
    log_p = found["verify_cfg_logits"].log_softmax(-1)
    judged = rule("greedy")(Judged(log_p, golden["verify_drafts"] - start, 0, verify["committed"]))
    assert judged.token is not None  # there is a row behind the span
    expected = torch.tensor([verify["n_accept"], verify["correction"]])
    yield same(
        f"{layout} accepted, correction", torch.tensor([judged.accepted, judged.token + start]), expected
    )


def _pictures(vq: VQModel, golden: Named) -> dict[str, Tensor]:
    side = round(golden["greedy_codes"].shape[1] ** 0.5)
    codes = golden["greedy_codes"].reshape(-1, side, side)
    encoded = vq.encode(golden["vq_encode_pixels"]).flatten(1)
    return {"vq_pixels": vq.decode(codes), "vq_uint8": vq.pictures(codes), "vq_encode_codes": encoded}
