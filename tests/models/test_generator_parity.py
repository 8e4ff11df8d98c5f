"""The official programs' numbers of VAR, CoDe, MAR and DiT, through the converters and the shipped classes,
by the command users run. A wrong number, a wrong nest or a missing tensor must not pass."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation.parity.cli import main

GOLDEN = Path(__file__).parent / "golden"
torch.set_num_threads(1)
# Some comparisons that must be among those made.
MADE = {
    "var": (
        "vae.safetensors enc.tokens", "vae.safetensors enc.recon", "vae.safetensors phi.out_3",
        "var_saln.safetensors gen.cfg1.5.tokens", "var_plain.safetensors tf.logits_cond",
        "var_plain.safetensors gen.cfg3.0.image", "layout_trainer.pth tf.logits_cond", "sampling case3.kept",
        "phi_index_table S10_K4", "code code.N1.tokens", "code code.N3.refine.logits",
        "layout_BROKEN_missing_key.pth", "blocks.0.attn.q_bias",
    ),
    "mar": (
        "mar.safetensors sample.it8_const3_t0p95.tokens", "mar.safetensors chain.cfg3.x",
        "mar.safetensors encdec.m11.uncond.z", "mar.safetensors head.net_out_cfg", "kl_tiny.ckpt vae.moments",
        "schedules resp_full.betas", "cspd_as_published accept_T42.x_eq_qmean", "it8_lin3 guidance",
    ),
    "dit": (
        "dit_a.safetensors ddpm5.x", "dit_a.safetensors ddim5.x", "dit_a.safetensors cfg.scale4.0.out",
        "dit_a.safetensors pmv.variance", "respacing_maps ddim12",
    ),
}  # fmt: skip
# A number of each folder: where it stands, and by how much it is changed.
WRONG = {
    "var": ("code", "code.N2.refine.tokens", 1),
    "mar": ("mar", "head.net_out", 1e-4),
    "dit": ("dit_a", "pmv.log_variance", 3e-5),
}


def copied(name: str, tmp_path: Path) -> Path:
    """A copy; MAR's without its sampling, which takes seconds."""
    folder = Path(shutil.copytree(GOLDEN / name, tmp_path / name))
    if name == "mar":
        settings = json.loads((folder / "golden.json").read_text())
        settings["cases"]["runs"], settings["config"]["chains"] = {}, []
        (folder / "golden.json").write_text(json.dumps(settings))
    return folder


def missed(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines of what is missed; the exit status agrees."""
    status = main([str(folder)])
    lines = [line for line in capsys.readouterr().out.splitlines() if " MISS" in line]
    assert status == bool(lines)
    return lines


@pytest.mark.parametrize("name", MADE)
def test_ours_compute_what_theirs_do(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(GOLDEN / name)]) == 0
    lines = capsys.readouterr().out
    assert [part for part in MADE[name] if part not in lines] == []
    assert lines.splitlines()[-1].endswith(" 0 missed")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_number_is_a_miss(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(name, tmp_path)
    case, tensor, change = WRONG[name]
    numbers = load_file(folder / f"{case}.golden.safetensors")
    numbers[tensor].view(-1)[3] += change
    save_file(numbers, folder / f"{case}.golden.safetensors")
    assert [tensor in line for line in missed(folder, capsys)] == [True]


def test_a_broken_var_that_loads_is_a_miss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied("var", tmp_path)
    shutil.copy(folder / "layout_trainer.pth", folder / "layout_BROKEN_missing_key.pth")
    assert ["was not refused" in line for line in missed(folder, capsys)] == [True]


def test_averaged_weights_of_mar_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A training file with other weights beside them, flags and an optimiser. Exchanged, everything that
    depends on weights is missed."""
    folder = copied("mar", tmp_path)
    good = load_file(folder / "mar.safetensors")
    (folder / "mar.safetensors").unlink()
    other = {name: value + 0.1 for name, value in good.items()}
    flags = {"optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=1e-4)}
    torch.save({"model": other, "model_ema": good, **flags}, folder / "mar.pth")
    assert ["raw_model" in line for line in missed(folder, capsys)] == [True]  # of weights we do not have
    torch.save({"model": good, "model_ema": other, **flags}, folder / "mar.pth")
    assert len(missed(folder, capsys)) > 20


def test_averaged_weights_of_dit_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a file with a name of its own, which is held against the case of its shape."""
    folder = copied("dit", tmp_path)
    good = load_file(folder / "dit_a.safetensors")
    other = {name: value + 0.1 for name, value in good.items()}
    flags = {"opt": {"state": {}}, "args": argparse.Namespace(model="DiT-XL/2")}
    torch.save({"model": other, "ema": good, **flags}, folder / "training.pt")
    assert main([str(folder)]) == 0
    assert "training.pt dit_a out.raw" in capsys.readouterr().out
    torch.save({"model": good, "ema": other, **flags}, folder / "training.pt")
    assert ["training.pt" in line for line in missed(folder, capsys)] == [True]
    del good["pos_embed"]
    torch.save(good, folder / "training.pt")
    assert ["pos_embed" in line for line in missed(folder, capsys)] == [True]


def test_a_broken_dit_and_autoencoder_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dit, mar = copied("dit", tmp_path), copied("mar", tmp_path)
    weights = load_file(dit / "dit_a.safetensors")
    del weights["blocks.1.mlp.fc2.bias"]
    torch.save(weights, dit / "layout_BROKEN.pt")
    vae = torch.load(mar / "kl_tiny.ckpt", weights_only=True)["model"]
    del vae["decoder.mid.attn_1.k.weight"]
    torch.save({"model": vae}, mar / "kl_BROKEN.ckpt")
    assert main([str(dit), str(mar)]) == 0
    lines = capsys.readouterr().out
    assert "blocks.1.mlp.fc2.bias" in lines and "decoder.mid.1.k.weight" in lines
