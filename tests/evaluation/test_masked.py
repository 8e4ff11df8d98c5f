"""The table of continuous speculative decoding, over real processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evaluation.cli import main
from tests.tiny_masked import TOKENS, build_tiny_masked


def test_the_table_holds_the_fair_rival(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = build_tiny_masked(tmp_path / "tiny"), tmp_path / "table"
    words = ["masked", "--model", str(model), "--images", "2", "--head-steps", "4", "--steps", "4"]
    assert main([*words, "--tolerances", "[0, 1e9]", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert text == out.with_suffix(".md").read_text() and out.with_suffix(".png").stat().st_size
    rows = {cells[0]: cells for cells in map(split, text.splitlines()) if cells}
    passes, rounds, stand, rival, up = 1, 2, 3, 5, 6
    alone, strict, loose = (rows[f"{name}, 4 steps{rest}"] for name, rest in (
        ("cloud alone", ""), ("cspd", ", 0"), ("cspd", ", 1e+09")
    ))  # fmt: skip
    assert alone[passes] == strict[passes] == loose[passes] == "4" and strict[rounds] == "3"
    assert (strict[rival], alone[rival]) == ("0.00", "0.00")  # at no tolerance it is the rival, to the bit
    assert loose[stand] == "100.0%" and float(loose[rival]) > 0
    assert rows["hand-over, 4 steps"][passes] == "1" and rows["device alone, 4 steps"][up] == "0"
    assert rows[f"cloud alone, {TOKENS} steps"][passes] == str(TOKENS)
    sizes = [float(size) for size in re.findall(r"([0-9]+) MiB", text.splitlines()[-1])]
    assert len(sizes) == 2 and min(sizes) > 50
    assert rows["exact, clip 3"][stand].endswith("%")
    assert main(["masked", "--model", str(model), "--critic", "nowhere"]) == 1


def split(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]
