"""Golden folders of MAR: transformer, diffusion head, sampling, autoencoder, and the published arithmetic of
continuous speculative decoding. Knows no argv.

Every weight file goes through the converter into a model folder and is loaded from there. Errors are relative
to the largest golden value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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
    close,
    compare,
    guarded,
    left_over,
    read_golden,
    refused,
    same,
    same_pixels,
    scaled,
    weight_files,
)
from shared.decoding.continuous import Gaussian, published_ratio, published_residual
from shared.decoding.diffusion import Schedule, cosine, respaced
from shared.decoding.masked import guidance_of, masked, reveals
from shared.models.diffloss import ChainNoise, Condition, chain
from shared.models.families.mar import MARModel, patched, unpatched
from shared.models.families.mar_run import Plan, steps
from shared.models.generators import load_generator, load_kl
from shared.models.kl_vae import KLVAE
from shared.models.vit import time_features
from training.generators import MAR_NESTS, kl_config, mar_config, write_generator, write_kl
from training.sources import Tensors, read_tensors
from training.upstream import vq_tensors

RAW = ("model",)  # where a training file keeps the weights that are not averaged


def check(folder: Path, settings: Mapping[str, Any]) -> Iterator[Check]:
    """Every file with weights, then the numbers that need none."""
    config = settings["config"]
    for file in weight_files(folder):
        yield from guarded(file.name, _file(folder, file, settings))
    yield from guarded("schedules", _schedules(read_golden(folder / "schedules.golden.safetensors"), config))
    published = read_golden(folder / "cspd_as_published.golden.safetensors")
    yield from guarded("cspd_as_published", _published(published))
    for name, run in settings.get("cases", {}).get("runs", {}).items():
        yield from guarded(name, _plan(name, run, settings["derived"]["seq_len"]))


def tolerance(name: str) -> float:
    """How far fp32 may differ from the official numbers, by tensor; tables are float64."""
    if name.startswith("resp_"):
        return 1e-12
    if name.startswith(("accept", "residual", "fixed", "vae", "head.mean", "head.pred_xstart")):
        return 1e-4
    if name.startswith("chain") or re.fullmatch(r"sample\..*\.(tokens|latent)", name):
        return 1e-3
    return 2e-6 if name.startswith("head") else 3e-6


def load(file: Path, config: Mapping[str, Any], home: Path, nests: tuple[str, ...] = MAR_NESTS) -> MARModel:
    """Convert a file below `home` and load the folder. Raises ModelUnavailable."""
    tensors, heads = read_tensors(file, nests), (config["enc_heads"], config["dec_heads"])
    with torch.device("meta"):
        model = MARModel(mar_config(tensors, heads, config["vae_embed_dim"]))
    write_generator(home / "cloud", model, tensors)
    found = load_generator(home / "cloud")
    assert isinstance(found, MARModel)
    return found


def load_vae(tensors: Tensors, home: Path) -> KLVAE:
    """The same of an autoencoder."""
    with torch.device("meta"):
        kl = KLVAE(kl_config(tensors))
    write_kl(home / "vae", kl, tensors)
    return load_kl(home / "vae")


def _file(folder: Path, file: Path, settings: Mapping[str, Any]) -> Iterator[Check]:
    with TemporaryDirectory() as home, torch.inference_mode():
        config = settings["config"]
        if BROKEN in file.name:
            yield refused(file.name, partial(_load_either, file, config, Path(home)))
            return
        model = _load_either(file, config, Path(home))
        if isinstance(model, KLVAE):
            yield from _pictures(model, file.name, read_golden(folder / "vae.golden.safetensors"))
            return
        golden = read_golden(folder / "mar.golden.safetensors")
        found = _found(model, golden, settings)
        if file.suffix != ".safetensors":
            found |= _raw(file, config, golden, Path(home) / "raw")
        yield from compare(file.name, *scaled(found, golden), tolerance)
        yield from left_over(file.name, found, golden)


def _load_either(file: Path, config: Mapping[str, Any], home: Path) -> MARModel | KLVAE:
    """A transformer, or the autoencoder."""
    tensors = read_tensors(file, (*MAR_NESTS, *RAW))
    if any(name.startswith("decoder.up.") for name in tensors):
        return load_vae(vq_tensors(tensors), home)
    return load(file, config, home)


def _pictures(vae: KLVAE, file: str, golden: Named) -> Iterator[Check]:
    found = {
        "vae.moments": vae.moments(golden["vae.image"]),
        "vae.decoded": vae.decode(golden["vae.tokens_latent"]),
    }
    yield from compare(file, *scaled(found, golden), tolerance)
    pictures = vae.pictures(golden["vae.tokens_latent"])
    yield same_pixels(f"{file} vae.decoded_u8", pictures, golden["vae.decoded_u8"].permute(0, 2, 3, 1))


def _raw(file: Path, config: Mapping[str, Any], golden: Named, home: Path) -> dict[str, Tensor]:
    """What the weights give that a loader must not take by mistake."""
    model, labels = load(file, config, home, RAW), golden["in.labels"]
    found = {}
    for key in golden:
        if at := re.fullmatch(r"raw_model\.m(\d+)\.cond\.enc", key):
            mask = masked(golden["in.orders"], int(at[1]))
            found[key] = model.encode(golden["in.tokens"], mask, model.classes(labels))
    return found


def _found(model: MARModel, golden: Named, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    config, patch = settings["config"], model.config.patch
    schedule = respaced(cosine(), config["num_sampling_steps"])
    conds = {"cond": model.classes(golden["in.labels"]), "uncond": model.nothing(len(golden["in.labels"]))}
    found = {f"class.{name}": cond for name, cond in conds.items()}
    found["patchify.tokens"] = patched(golden["patchify.latent"], patch)
    found["patchify.latent"] = unpatched(golden["patchify.tokens"], patch)
    for count in config["mask_lens"]:
        mask = masked(golden["in.orders"], count)
        found[f"encdec.m{count}.mask"] = mask.float()
        for name, cond in conds.items():
            encoded = model.encode(golden["in.tokens"], mask, cond)
            found[f"encdec.m{count}.{name}.enc"] = encoded
            found[f"encdec.m{count}.{name}.z"] = model.decode(encoded, mask)
    found |= _head(model, schedule, golden, config["cfg_scale"])
    for name, temperature, guidance in config["chains"]:
        found |= _chain(model, schedule, golden, f"chain.{name}", (temperature, guidance))
    for name, run in settings["cases"]["runs"].items():
        found |= _run(model, schedule, golden, name, run)
    return found


def _condition(golden: Named, guidance: float) -> Condition:
    guided = guidance != 1.0
    return Condition(golden["head.z"], golden["head.z_uncond"] if guided else None, guidance)


def _head(model: MARModel, schedule: Schedule, golden: Named, guidance: float) -> dict[str, Tensor]:
    t_N, x_NC, found = golden["head.t"], golden["head.x"], {}
    original_N = torch.tensor(schedule.original)[t_N]
    for suffix, cond in (("", _condition(golden, 1.0)), ("_cfg", _condition(golden, guidance))):
        of = model.diffloss.believe(schedule, t_N, x_NC, cond)
        found[f"head.net_out{suffix}"] = model.diffloss.output(x_NC, original_N, cond)
        found |= {f"head.mean{suffix}": of.mean, f"head.log_variance{suffix}": of.log_variance}
        found[f"head.pred_xstart{suffix}"] = of.image
    return {**found, "head.t_model": original_N}


def _chain(
    model: MARModel, schedule: Schedule, golden: Named, name: str, how: tuple[float, float]
) -> dict[str, Tensor]:
    temperature, guidance = how
    noise = ChainNoise(golden["chain.x_T"], golden["chain.eps"])
    walked = list(chain(model.diffloss, schedule, _condition(golden, guidance), noise, temperature))
    return {
        f"{name}.x": torch.stack([golden["chain.x_T"], *(state for state, _ in walked)], 1),
        f"{name}.mean": torch.stack([of.mean for _, of in walked], 1),
        f"{name}.log_variance": torch.stack([of.log_variance for _, of in walked], 1),
    }


def _run(
    model: MARModel, schedule: Schedule, golden: Named, name: str, run: Mapping[str, Any]
) -> dict[str, Tensor]:
    labels = golden["in.labels"]
    cond_BD = model.classes(labels) if run["labels"] else model.nothing(len(labels))
    plan = Plan(
        golden["in.orders"], golden["sample.noise_init"], golden["sample.noise_step"],
        run["num_iter"], run["cfg"], run["cfg_schedule"], run["temperature"],
    )  # fmt: skip
    drawn_at, found, name = torch.zeros_like(golden["in.orders"]), {}, f"sample.{name}"
    for index, step in enumerate(steps(model, schedule, cond_BD, plan)):
        drawn_at[step.asked_BL] = index
        found[f"{name}.z_step{index}"] = step.z_RD
        found[f"{name}.tokens"] = step.tokens_BLC
    found[f"{name}.latent"] = unpatched(found[f"{name}.tokens"], model.config.patch)
    return {**found, f"{name}.step_of_token": drawn_at}


def _plan(name: str, run: Mapping[str, Any], tokens: int) -> Iterator[Check]:
    """The steps of a run, and the guidance of each."""
    found = reveals(tokens, run["num_iter"])
    rows = [(step.before, step.after, step.count) for step in found]
    golden = [(step["masked_before"], step["mask_len"], step["n_pred"]) for step in run["steps"]]
    yield same(f"{name} steps", torch.tensor(rows), torch.tensor(golden))
    guidance = [guidance_of(step, tokens, run["cfg"], run["cfg_schedule"]) for step in found]
    expected = [step["cfg_iter"] for step in run["steps"]]
    yield close(f"{name} guidance", torch.tensor(guidance).double(), torch.tensor(expected).double(), 1e-6)


def _schedules(golden: Named, config: Mapping[str, Any]) -> Iterator[Check]:
    found = {"timestep_embedding.out": time_features(golden["timestep_embedding.t"])}
    for key in golden:
        if at := re.fullmatch(r"mask_schedule\.L(\d+)_it(\d+)", key):
            rows = [(step.before, step.after, step.count) for step in reveals(int(at[1]), int(at[2]))]
            found[key] = torch.tensor(rows)
    for name, spacing in config["respacings"].items():
        of = respaced(cosine(), spacing)
        tables = {
            "alphas_cumprod": of.kept, "betas": of.betas, "posterior_log_variance_clipped": of.log_variance,
            "posterior_mean_coef1": of.mean_of_image, "posterior_mean_coef2": of.mean_of_state,
            "posterior_variance": of.variance, "sqrt_recip_alphas_cumprod": of.recip,
            "sqrt_recipm1_alphas_cumprod": of.recip_m1,
        }  # fmt: skip
        found |= {f"resp_{name}.{key}": torch.from_numpy(table) for key, table in tables.items()}
        found[f"resp_{name}.timestep_map"] = torch.tensor(of.original)
    yield from compare("schedules", *scaled(found, golden), tolerance)


def _published(golden: Named) -> Iterator[Check]:
    p, q = (Gaussian(golden[f"{name}_mean"], golden[f"{name}_std"].log()) for name in "pq")
    fixed_N = (golden["p_sumlog"] - golden["q_sumlog"]).sum(-1).exp()
    found = {"fixed_term": fixed_N, "residual_alpha.x": published_residual(p, q, golden["x"], fixed_N)}
    for key in golden:
        if at := re.fullmatch(r"accept_T(\d+)\.(x|x_eq_qmean)", key):
            x = golden["x"] if at[2] == "x" else q.mean
            found[key] = published_ratio(p, q, x, fixed_N, float(at[1]))
    yield from compare("cspd_as_published", *scaled(found, golden), tolerance)
