"""The tables of models by scales, over real processes, and the sizes they state."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.cli import main
from evaluation.scale_tables import KV_BYTES, cache_mib
from shared.models.families.var import VARConfig
from tests.tiny_scales import build_tiny_scales


def test_the_table_measures_both_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = build_tiny_scales(tmp_path / "tiny"), tmp_path / "table"
    assert main(["scales", "--model", str(model), "--images", "2", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert text == out.with_suffix(".md").read_text() and out.with_suffix(".png").stat().st_size
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line]
    measured = {row[0]: row for row in rows if len(row) > 10}
    cached = {row[0]: row for row in rows if len(row) <= 10}
    assert measured["exact"][9] == measured["cloud alone"][9] == "100.0%"
    assert measured["device alone"][1:4] == ["0", "0", "0"]
    assert all(float(cached["exact"][place]) > 50 for place in (5, 6))
    assert main(["scales", "--model", str(model), "--critic", "nowhere"]) == 1


def test_caches_are_the_published_ones() -> None:
    """CoDe's table of memory: VAR-d30 takes 448.2 MiB an image with 6 bytes a key and value; ours has 8."""
    sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    d30 = VARConfig(30, 1920, 30, 1000, 4096, 32, sides, 7680)
    assert cache_mib(d30, 10, 1) * 6 / KV_BYTES == pytest.approx(448.2, abs=0.1)
    assert cache_mib(d30, 8, 1) * 6 / KV_BYTES == pytest.approx(168, abs=0.2)
    assert cache_mib(d30, 6, 64) == 64 * cache_mib(d30, 6, 1)
