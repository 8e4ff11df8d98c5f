"""The ranking table: its arithmetic by hand, and one tiny run that fills it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.cli import main
from evaluation.ranking import HEADER, rank, wrong_when_asked
from tests.tiny import build_tiny_model
from training.calibrate import SCORED


def test_wrong_tokens_are_those_that_differ_and_are_kept() -> None:
    score = np.arange(10, dtype=np.float32)[None]
    differ = np.zeros((1, 10), bool)
    differ[0, [9, 8, 2]] = True
    assert [wrong_when_asked(score, differ, share) for share in (0, 0.1, 0.2, 0.8, 1)] == [
        0.3,
        0.2,
        0.1,
        0,
        0,
    ]


def test_intervals_hold_the_figure_and_gains_are_paired() -> None:
    rng = np.random.default_rng(0)
    differ = rng.random((40, 50)) < 0.3
    blunt = (differ + rng.normal(0, 1, differ.shape)).astype(np.float32)
    scores = {"entropy": blunt, "agreement": blunt + 0.2 * differ, "random": rng.random(differ.shape)}
    best, middle, worst = rank(scores, differ)
    assert [row.gate for row in (best, middle, worst)] == ["agreement", "entropy", "random"]
    assert middle.gain.value == middle.gain.low == middle.gain.high == 0
    assert worst.auroc.low < 0.5 < worst.auroc.high and worst.gain.high < 0
    assert best.auroc.low < best.auroc.value < best.auroc.high
    assert best.auroc.low < middle.auroc.high  # they overlap, and yet the paired gain is certain
    assert 0 < best.gain.low < best.gain.value < best.gain.high


def test_every_gate_gets_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build_tiny_model(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("a red cat\na dog\n")
    flags = ["auroc", "--model", str(folder), "--prompts", str(tmp_path / "prompts.txt"), "--images"]
    assert main([*flags, "6", "--out", str(tmp_path / "table")]) == 0
    text = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in text.splitlines()[2:-2]]
    assert sorted(rows) == sorted(SCORED) and "6 images of 16 tokens" in text
    assert text == (tmp_path / "table.md").read_text() and text.splitlines()[0].count("|") == len(HEADER) + 1
    assert {row["gate"] for row in json.loads((tmp_path / "table.json").read_text())} == set(SCORED)
    (folder / "device" / "gate.safetensors").unlink()
    calibration = folder / "device" / "calibration.json"
    assert '"default_gate": "entropy"' in calibration.read_text()
    assert main([*flags, "2"]) == 0
    assert "agreement" not in capsys.readouterr().out
    assert main(["auroc", "--model", "dalle"]) == 1 and "'dalle'" in capsys.readouterr().err
