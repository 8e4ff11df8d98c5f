"""The measurement of the engine: every line, honest floors; the table of memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cloud_server.engine import ROWS, Engine
from cloud_server.memory import session_need
from cloud_server.session import Job
from evaluation import steps
from evaluation.cli import main
from evaluation.engine import HEADER, Floors, Line, markdown
from evaluation.promptless import promptless_cloud, random_transformer
from shared.errors import InvalidPrompt
from shared.models.shapes import SHAPES
from shared.models.zoo import load_cloud
from tests.cloud_server.rig import draw_all, order
from tests.published import CHAMELEON, LLAMAGEN
from tests.tiny import build_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, T = 16."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("weights", [[], ["--random-weights", "--dtype", "bf16"]])
def test_every_forward_of_every_engine_has_a_line(
    folder: Path, weights: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--sessions", "1", "--sessions", "3", "--spans", "4", "--prompt", "5", "--context", "3"]
    flags += ["--repeats", "2", "--pack-weights", "--out", str(tmp_path / "table"), *weights]
    assert main(["engine", "--model", str(folder), *flags]) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == said
    table = [line for line in said.splitlines() if line[:1] == "|"]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert lines[0] == list(HEADER)
    kinds = [(forward, count, engine) for forward, count, engine, *_ in lines[2:]]
    assert kinds == [
        (forward, count, engine)
        for count in ("1", "3")
        for forward in ("prefill", "step", "verify 4")
        for engine in ("eager", "packed")
    ]
    assert all(float(cell) >= 0 for line in lines[2:] for cell in line[3:])


def test_ratios_are_of_the_time_that_counts() -> None:
    line = Line("step", 2, "eager", wall_ms=9.0, ms=6.0, bandwidth_ms=3.0, matmuls_ms=4.0)
    assert line.cells() == ["step", "2", "eager", "9.0", "6.0", "3.0", "4.0", "2.00", "1.50"]
    assert list(markdown([line]))[2].rstrip() == f"| {' | '.join(line.cells())} |"


@pytest.mark.parametrize("shape", [LLAMAGEN, CHAMELEON], ids=["heads alike", "grouped"])
def test_the_floor_reads_layers_head_and_visible_cache(shape: object) -> None:
    gpt = random_transformer(shape, torch.bfloat16)
    floors = Floors(gpt, torch.ones(1000), rows=4, tokens=2, judged=2, visible=10)
    tables = ("tok_embeddings", "cls_embedding", "norm.weight")
    skipped = [value for name, value in gpt.named_parameters() if name.startswith(tables)]
    read = sum(value.nbytes for value in gpt.parameters()) - sum(value.nbytes for value in skipped)
    entry = 2 * 3 * shape.kv_heads * shape.head_dim * 2
    assert floors.bytes_read == read + 4 * 10 * entry
    floors.run()
    floors.run()
    assert floors.bandwidth_s > 0 and floors.matmuls_s > 0


def test_any_shape_runs_behind_a_prompt_of_rows() -> None:
    gpt = random_transformer(CHAMELEON, torch.float32)
    cloud = promptless_cloud(gpt, "sequence")
    engine = Engine(cloud, 1)
    assert len(draw_all(engine, engine.open(order(cloud, prompt="7", cloud_digest="")))) == 16
    for wrong in ("0", "13", "a cat"):
        with pytest.raises(InvalidPrompt, match="allowed: 1 to 12"):
            cloud.model.prompt_rows(wrong)
    assert cloud.model.with_layers(1).gpt.config == gpt.config


def test_random_weights_keep_activations_in_range(folder: Path) -> None:
    """No overflow in fp16, and the draw is spread over many ids."""
    shape = load_cloud(str(folder), folder).model.config
    cloud = promptless_cloud(random_transformer(shape, torch.float16), "random")
    engine = Engine(cloud, 1)
    session = engine.open(order(cloud, prompt="4", cloud_digest=""))
    while len(session.tokens) < 16:
        engine.run([Job(session)])
    assert len(set(session.tokens)) > 4


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--spans", "40"], "a span of 40. allowed: up to 31"),
        (["--context", "200"], "the image ends before the measurement"),
        (["--model", "anole"], "weights of model 'anole'"),
        (["--model", "nope", "--random-weights"], "unknown model 'nope'"),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda is not there",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here"),
        ),
    ],
)
def test_what_cannot_be_measured(
    folder: Path, flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["engine", "--model", str(folder), "--models", str(folder / "none"), *flags]) == 1
    assert says in capsys.readouterr().err


def test_memory_is_tabled_for_published_models_and_those_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["memory", "--models", str(tmp_path)]) == 0
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines()]
    rows = {cells[1].strip(): cells for cells in lines}
    assert rows.keys() >= {"emoji", *SHAPES}
    narrow = sum(session_need(SHAPES["llamagen-xl-256"], torch.bfloat16)) / 2**20
    assert rows["llamagen-xl-256"][2:5] == [" 778 M ", " 2.90 GiB ", " 1.45 GiB "]
    assert rows["llamagen-xl-256"][6] == f" {narrow:,.0f} MiB "
    assert ROWS == 2


def test_a_device_step_stands_beside_its_floors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The two paths draw one image, or there is no table; two guidance rows have no lean path."""
    assert main(["device", "--images", "1", "--gates", "interval"]) == 0
    said = capsys.readouterr().out.splitlines()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said]
    assert lines[0] == list(steps.HEADER) and [line[1] for line in lines[2:]] == [steps.PLAIN, steps.LEAN]
    assert all(float(cell) > 0 for line in lines[2:] for cell in line[2:])
    assert main(["device", "--model", str(folder)]) == 1
    assert "no lean path" in capsys.readouterr().err
