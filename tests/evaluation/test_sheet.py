"""A sheet shows what the cloud draws, one row a prompt, and leaves room for verdicts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from evaluation.cli import main
from evaluation.policies import BASE
from evaluation.run import Schedule, cloud_server, run_rows
from evaluation.sheet import Entry, Sheet, draw_pictures, grid_of, markdown
from shared.config import CriticConfig
from shared.models.critic import Critic, save_critic
from shared.models.vq import to_pixels
from shared.models.zoo import load_cloud, load_device_package
from tests.tiny import WORDS, build_tiny_model

PROMPTS = "a cat\na dog on a blue background\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder and a file of two prompts."""
    folder = build_tiny_model(tmp_path_factory.mktemp("sheet") / "tiny", grid=4)
    (folder / "prompts.txt").write_text(PROMPTS)
    return folder


def test_pictures_are_those_of_cloud_only(folder: Path) -> None:
    package, cloud = load_device_package(str(folder), folder), load_cloud(str(folder), folder)
    prompts = PROMPTS.splitlines()
    wanted = [(prompt, seed) for seed, prompt in enumerate(prompts)]
    drawn = draw_pictures(cloud.model, package.vq, wanted, package.calibration.warp)
    with cloud_server(str(folder)) as target:
        records = list(run_rows(package, target, Schedule((BASE,), prompts, 0)))
    tokens = torch.tensor([record.tokens for record in records]).reshape(-1, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(drawn, to_pixels(package.vq.decode(tokens)))


def test_a_sheet_without_a_critic(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", str(folder), "--prompts", str(folder / "prompts.txt"), "--seeds", "3"]
    assert main(["sheet", *flags, "--out", str(tmp_path / "new/sheet")]) == 0
    table = capsys.readouterr().out
    assert table == (tmp_path / "new/sheet.md").read_text()
    assert table.splitlines()[0] == "| prompt | seed 0 | seed 1 | seed 2 |"
    record = json.loads((tmp_path / "new/sheet.json").read_text())
    assert record["cloud"] == load_cloud(str(folder), folder).digest and record["figures"] == {}
    first = {"prompt": "a cat", "seed": 0, "rank": None, "score": None, "verdict": None}
    assert len(record["pictures"]) == 6 and record["pictures"][0] == first
    with Image.open(tmp_path / "new/sheet.png") as image:
        assert image.size[0] == 3 * (2 * 16 + 8) + 8


def test_the_grid_puts_pictures_in_reading_order() -> None:
    pixels = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
    for place in range(4):
        pixels[place] = 60 * place
    entries = [Entry(prompt, seed) for prompt in ("a cat", "a dog") for seed in range(2)]
    image = grid_of(Sheet(tuple(entries), pixels, 2))
    (x, y), centres = image.size, []
    for row in range(2):
        for column in range(2):
            centres.append(image.getpixel((8 + 16 + column * (x - 8) // 2, 8 + 16 + row * (y - 8) // 2)))
    assert centres == [(60 * place,) * 3 for place in range(4)]


def test_figures_are_shares_of_ranks() -> None:
    entries = [Entry("a cat", seed, rank, 0.5) for seed, rank in enumerate((0, 0, 3, 40))]
    sheet = Sheet(tuple(entries), torch.zeros(4, 8, 8, 3, dtype=torch.uint8), 4)
    assert sheet.figures == {"top1": 0.5, "top5": 0.75, "score": 0.5}
    assert "| a cat | (0) | (0) | (3) | (40) |" in markdown(sheet) and "top1 0.500" in markdown(sheet)
    assert replace(sheet, entries=(Entry("a cat", 0),)).figures == {}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model", "dalle"], (1, "unknown model 'dalle'")),
        (["--prompts", "nowhere.txt"], (1, "nowhere.txt")),
        (["--seeds", "0"], (2, "seeds")),
    ],
)
def test_bad_flags(
    flags: list[str], expected: tuple[int, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, says = expected
    assert main(["sheet", "--model", str(folder), "--out", str(folder / "sheet"), *flags]) == status
    assert says in capsys.readouterr().err


def test_empty_prompt_files_and_strange_pictures_are_errors(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "empty.txt").write_text("\n")
    flags = ["--model", str(model), "--out", str(tmp_path / "sheet"), "--prompts"]
    assert main(["sheet", *flags, str(model / "empty.txt")]) == 1
    assert "0 prompts" in capsys.readouterr().err
    critic = Critic(CriticConfig(width=8, dim=16), WORDS, [f"a {word}" for word in WORDS])
    save_critic(model / "critic", critic)
    assert main(["sheet", *flags, str(model / "prompts.txt")]) == 1  # its pictures are 16 px
    assert "(128, 128, 3)" in capsys.readouterr().err
