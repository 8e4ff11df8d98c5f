"""The table of models by steps, over real processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evaluation.cli import main
from evaluation.diffusion_tables import HEAD, psnr_db
from tests.tiny_steps import SPACING, STEPS, build_tiny_steps


def test_the_table_shows_ciar_beside_its_rivals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = build_tiny_steps(tmp_path / "tiny"), tmp_path / "table"
    words = ["diffusion", "--model", str(model), "--images", "2", "--steps", SPACING, "--budgets", "0.4"]
    assert main([*words, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert text == out.with_suffix(".md").read_text() and out.with_suffix(".png").stat().st_size
    sizes = [float(size) for size in re.findall(r"([0-9]+) MiB", text.splitlines()[-1])]
    assert len(sizes) == 2 and min(sizes) > 50
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    rows = {line[0].split(",")[0]: dict(zip(HEAD, line, strict=True)) for line in cells[2:]}
    assert list(rows) == [
        "cloud-only", "exact", "device-only", "ciar", "DDIM", "reuse", "extrapolate",
        "extrapolate in hindsight", "device evenly", "device without hindsight",
    ]  # fmt: skip
    for name in ("cloud-only", "exact"):
        assert (rows[name]["calls"], rows[name]["pixel error"]) == (f"{STEPS}.0", "0.00")
    assert rows["device-only"]["bytes up"] == "0" and float(rows["device-only"]["latent error"]) > 0.1
    calls = round(float(rows["ciar"]["calls"]))
    assert 3 <= calls < STEPS
    for name in list(rows)[5:]:
        assert rows[name]["calls"] == f"{calls}.0" and float(rows[name]["latent error"]) > 0
    assert float(rows["DDIM"]["calls"]) >= calls and rows["DDIM"]["rounds"] == "0.0"
    assert main([*words[:-1], "0.2", "--steps", "ddim20"]) == 1
    assert "not calibrated" in capsys.readouterr().err


def test_equal_pictures_have_the_largest_ratio() -> None:
    assert psnr_db(0.0) == 99.0 and psnr_db(25.5) == pytest.approx(20.0)
