"""The official programs' numbers, through the converter and the shipped classes, by the command users run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation.parity.cli import main
from tests.published import VQ, taming_state

GOLDEN = Path(__file__).parent / "golden"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def llamagen(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "llamagen", tmp_path / "llamagen"))


@pytest.fixture
def anole(tmp_path: Path) -> Path:
    """The golden language model beside a VQ of random weights, as published: models/7b and tokenizer/."""
    folder = tmp_path / "anole"
    fair, weights = folder / "fair", folder / "fair" / "models" / "7b"
    weights.mkdir(parents=True)
    for name in ("consolidated.pth", "params.json"):
        shutil.copy(GOLDEN / "anole" / "fair" / name, weights / name)
    for name in ("golden.json", "golden.safetensors"):
        shutil.copy(GOLDEN / "anole" / name, folder / name)
    settings = json.loads((folder / "golden.json").read_text())
    (fair / "tokenizer").mkdir()
    shutil.copy(GOLDEN / "anole" / "fair" / "text_tokenizer.json", fair / "tokenizer")
    vq = replace(VQ, ch_mult=(1, 1, 2), codebook_size=settings["n_codes"])
    torch.save({"state_dict": taming_state(vq)}, fair / "tokenizer" / "vqgan.ckpt")
    return folder


def test_llamagen_computes_what_upstream_does(llamagen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(llamagen)]) == 0
    lines = capsys.readouterr().out
    assert "c2i_gpt.safetensors gen.cfg.tokens " in lines and "rope_official xl_512" in lines
    assert "layout_BROKEN_missing_key.pt" in lines and "refused" in lines and "wo.weight" in lines
    assert lines.splitlines()[-1].endswith(" 0 missed")


def test_chameleon_computes_what_upstream_does(anole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(anole)]) == 0
    lines = capsys.readouterr().out
    for name in ("random_hidden", "greedy_codes", "verify_cfg_logits", "interval_cfg_logits", "probs_topk"):
        assert f"fair {name}" in lines
    assert "fair accepted, correction" in lines


def test_janus_computes_what_upstream_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(GOLDEN / "janus")]) == 0
    lines = capsys.readouterr().out
    for name in ("prompt_ids_1", "cond_logits_0", "uncond_logits_1", "greedy_codes", "vq_pixels", "vq_uint8"):
        assert f"official {name}" in lines
    assert lines.splitlines()[-1] == "12 comparisons, 0 not made, 0 missed"


def test_a_wrong_number_is_a_miss(llamagen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = llamagen / "c2i_gpt.golden.safetensors"
    numbers = load_file(file)
    numbers["tf.logits_cond"][0, 3, 5] += 1e-4
    numbers["gen.cfg.tokens"][1, 2] += 1
    save_file(numbers, file)
    assert main([str(llamagen)]) == 1
    missed = [line for line in capsys.readouterr().out.splitlines() if "MISS" in line]
    assert ["tf.logits_cond" in missed[1], "gen.cfg.tokens" in missed[0], len(missed)] == [True, True, 2]


def test_a_broken_file_that_loads_is_a_miss(llamagen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(llamagen / "layout_model.pt", llamagen / "layout_BROKEN_missing_key.pt")
    assert main([str(llamagen)]) == 1
    assert "was not refused" in capsys.readouterr().out


def test_an_incomplete_file_is_a_miss_and_the_rest_goes_on(
    llamagen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(llamagen / "c2i_gpt.safetensors")
    del weights["norm.weight"]
    save_file(weights, llamagen / "c2i_gpt.safetensors")
    assert main([str(llamagen)]) == 1
    lines = capsys.readouterr().out
    assert "norm.weight" in lines and "layout_model.pt tf.logits_cond_all" in lines


def test_a_case_without_files_is_a_miss(llamagen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (llamagen / "c2i_gpt.safetensors").unlink()
    assert main([str(llamagen)]) == 1
    assert "nothing was compared" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "status"), [([], 2), (["--help"], 2), (["nowhere"], 1)])
def test_a_wrong_call_says_so(argv: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == status
    assert capsys.readouterr().err
