"""One tiny measurement fills the whole table; the arithmetic of a line is checked by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from device_client.progress import Counters
from evaluation.cli import main
from evaluation.policies import BASE, CIAR, DEAF, DEVICE, EXACT, GATED, RIVALS
from evaluation.run import TUNING_IMAGES, Record, Schedule, settled, tuning
from evaluation.tables import HEADER, markdown, table
from tests.tiny import build_tiny_model


def test_bench_fills_every_row_and_exact_rows_are_identical(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = build_tiny_model(tmp_path / "tiny")
    flags = ["--model", str(folder), "--prompts", "2", "--warm-ups", "0", "--out", str(tmp_path / "bench")]
    assert main(["bench", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("|")[1].strip(): line.split("|") for line in lines[2:]}
    plain = (BASE, *EXACT, *RIVALS, CIAR, DEAF, DEVICE)
    names = [row.name for row in plain] + [f"ciar, {gate}" for gate in GATED]
    assert sorted(rows) == sorted(names)
    lossless = [row for row in RIVALS if row.name.startswith(("SCD", "EAGLE-2"))]
    assert len(lossless) == 5
    for row in (BASE, *EXACT, *lossless):
        assert rows[row.name][2].strip() == "2/2", row
    records = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    assert len(records) == 2 * len(rows) and all(len(record["tokens"]) == 16 for record in records)
    assert (tmp_path / "bench.md").read_text() == "\n".join(lines) + "\n"


@pytest.mark.parametrize(("budget", "tau"), [(0.3, 1.5), (0.05, 5.0), (0.45, 0.0), (0.4, 0.5), (0.9, 0.0)])
def test_a_threshold_is_settled_between_the_two_images_around_the_budget(budget: float, tau: float) -> None:
    calls = {5.0: 10, 4.0: 15, 3.0: 15, 2.0: 25, 1.0: 35, 0.0: 45}  # of a hundred tokens
    drawn: list[float] = []

    def draw(threshold: float) -> list[Record]:
        drawn.append(threshold)
        both = (calls[threshold] - 5, calls[threshold] + 5)
        return [Record("", "", 0, (), Counters(100, cloud_forwards=count)) for count in both]

    assert settled([*calls], draw, budget) == pytest.approx(tau)
    assert len(drawn) == len({*drawn}) <= 3


@pytest.mark.parametrize("count", [1, 7, 8, 10, 16, 100])
def test_thresholds_are_settled_on_eight_images_or_all(count: int) -> None:
    images = [*range(count)]
    assert min(count, TUNING_IMAGES) <= len(tuning(images)) < 2 * TUNING_IMAGES


def test_a_line_is_means_of_shares_and_a_ratio_of_medians() -> None:
    counters = Counters(4, cloud_forwards=4, total_s=2.0)
    base = [Record(BASE.name, "a cat", seed, (1, 2, 3, 4), counters) for seed in range(2)]
    cheap = replace(counters, cloud_forwards=1, kept=2, judged=2, accepted=1, bytes_up=100, total_s=0.5)
    drawn = ((1, 2, 3, 4), (1, 2, 0, 0))
    ours = [Record("ours", "a cat", seed, tokens, cheap) for seed, tokens in enumerate(drawn)]
    lines = table([*base, *ours])
    expected = ["ours", "1/2", "25.0", "25.0", "50.0", "50.0", "100", "0", "0.50", "4.00"]
    assert lines[1] == expected and len(HEADER) == len(expected)
    assert markdown(lines).splitlines()[3] == "| " + " | ".join(expected) + " |"


def test_schedule_interleaves_rows_and_warms_up_first() -> None:
    turns = list(Schedule((BASE, DEVICE), ("a cat", "a dog"), warm_ups=1))
    assert [(row.name, prompt, seed) for row, prompt, seed, counted in turns if counted] == [
        (BASE.name, "a cat", 0), (DEVICE.name, "a cat", 0), (BASE.name, "a dog", 1), (DEVICE.name, "a dog", 1)
    ]  # fmt: skip
    assert [counted for *_, counted in turns] == [False] * 2 + [True] * 4


@pytest.mark.parametrize(
    ("flags", "status", "says"),
    [(["--prompts", "99"], 2, "99"), (["--model", "dalle"], 1, "unknown model 'dalle'")],
)
def test_bad_flags(flags: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *flags]) == status
    assert says in capsys.readouterr().err


def test_bench_runs_the_rows_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build_tiny_model(tmp_path / "tiny")
    flags = ["bench", "--model", str(folder), "--prompts", "1", "--warm-ups", "0"]
    assert main([*flags, "--only", "exact; SCD, window 16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["cloud-only", "exact", "SCD, window 16"]
    assert main([*flags, "--only", "SCD, window 17"]) == 1
    assert "SCD, window 17" in capsys.readouterr().err
