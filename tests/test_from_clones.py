"""Every verb, one after the other, from clones of artwork to a sheet of pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from evaluation.cli import main as evaluate
from shared.models.critic import load_critic
from tests.training.clones import write_clones
from training.cli import main as train

PROMPTS = ("a cat on a light blue background, twemoji style", "a dog left of a cat")


@pytest.mark.timeout(170)
def test_from_clones_to_a_judged_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clones, data, runs = write_clones(tmp_path / "clones"), tmp_path / "data", tmp_path / "runs"
    sources = [word for name, path in clones.items() for word in ("--source", f"{name}={path}")]
    assert train(["artwork", *sources, "--out", str(data)]) == 0

    def verb(name: str, *flags: str) -> None:
        common = ("--data", str(data), "--out", str(runs / name), "--preset", "tiny", "--threads", "1")
        assert train([name, *common, *flags]) == 0, capsys.readouterr().err

    tokenizer, cloud = ("--tokenizer", str(runs / "tokenizer/vq")), ("--cloud", str(runs / "base/cloud"))
    verb("tokenizer", "--steps", "10", "--batch", "4")
    verb("base", *tokenizer, "--steps", "4", "--batch", "4")
    verb("device", *tokenizer, *cloud, "--steps", "2", "--batch", "4", "--drawn", "4")
    verb("critic", "--steps", "4", "--batch", "8")
    parts = (
        *tokenizer,
        *cloud,
        "--device",
        str(runs / "device/device"),
        "--critic",
        str(runs / "critic/critic"),
    )
    assert train(["bundle", *parts, "--out", str(tmp_path / "model")]) == 0
    settings = json.loads((runs / "critic/config.json").read_text())
    assert settings["preset"] == "tiny" and settings["settings"]["scenes"]["held_colours"] == 0.05

    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    flags = ["--model", str(tmp_path / "model"), "--prompts", str(tmp_path / "prompts.txt"), "--seeds", "2"]
    assert evaluate(["sheet", *flags, "--out", str(tmp_path / "sheet")]) == 0, capsys.readouterr().err
    sheet = json.loads((tmp_path / "sheet.json").read_text())
    assert [picture["prompt"] for picture in sheet["pictures"]] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert all(0 <= picture["rank"] <= 99 for picture in sheet["pictures"]) and sheet["figures"].keys() == {
        "top1", "top5", "score"
    }  # fmt: skip
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (2 * 264 + 8, 2 * (256 + 3 * 18 + 16) + 8)
    assert len(load_critic(tmp_path / "model/critic").captions) > 200
