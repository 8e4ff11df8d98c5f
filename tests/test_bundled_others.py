"""The small pairs of the other generators in the box: they fit their size, and their commands draw with no
flag but a prompt and a server. The server is a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from device_client import cli as device
from device_client.masked import cli as masked
from device_client.scales import cli as scales
from device_client.steps import cli as steps
from evaluation.run import cloud_server
from shared.models.zoo import BUNDLED

MEGABYTE = 2**20


@dataclass(frozen=True)
class Pair:
    """A pair: its command, its default mode, and the flags that draw the cloud's own picture by messages."""

    name: str
    main: Callable[[Sequence[str]], int]
    mode: str
    exact: tuple[str, ...]


PAIRS = (
    Pair("emoji-var", scales.main, "ciar", ("--mode", "exact")),
    Pair("emoji-mar", masked.main, "cspd", ("--tolerance", "0")),
    Pair("emoji-dit", steps.main, "ciar", ("--mode", "exact")),
)


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: pair.name)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Pair, str]]:
    with cloud_server(request.param.name) as target:
        yield request.param, target


def drawn(pair: Pair, target: str, out: Path, *flags: str) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The pixels of a picture, and what is written into it."""
    argv = ["--prompt", "a red apple", "--seed", "4", "--server", target, "--out", str(out), *flags]
    assert pair.main(argv) == 0
    image = Image.open(out)
    return np.asarray(image), json.loads(image.info["ciar"])  # type: ignore[attr-defined]


def test_the_picture_of_every_message_is_the_clouds_own(served: tuple[Pair, str], tmp_path: Path) -> None:
    pair, target = served
    alone, told = drawn(pair, target, tmp_path / "a.png", "--mode", "cloud-only")
    exact, _ = drawn(pair, target, tmp_path / "b.png", *pair.exact)
    assert (alone == exact).all() and alone.shape == (64, 64, 3)
    assert told["model"] == pair.name and told["counters"]["rounds"] == 0


def test_the_pair_together_draws_nearly_the_clouds_picture(served: tuple[Pair, str], tmp_path: Path) -> None:
    """By the root of the mean square over all pixels; pictures of two things are 60 and more apart."""
    pair, target = served
    alone, _ = drawn(pair, target, tmp_path / "a.png", "--mode", "cloud-only")
    ours, _ = drawn(pair, target, tmp_path / "b.png")
    assert np.sqrt(np.square(alone.astype(float) - ours).mean()) < 25


def test_a_red_apple_is_red(served: tuple[Pair, str], tmp_path: Path) -> None:
    """By the means of the red and the green channel inside the picture; white around it."""
    pair, target = served
    image, told = drawn(pair, target, tmp_path / "a.png")
    assert told["mode"] == pair.mode and told["counters"]["cloud_forwards"] > 0
    middle = image[20:44, 20:44].astype(float)
    assert middle[..., 0].mean() > middle[..., 1].mean() + 60
    assert image[:2].mean() > 235


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_it_is_small_and_says_whose_artwork_it_saw(pair: Pair) -> None:
    folder = BUNDLED / pair.name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8 * MEGABYTE
    assert "emoji/NOTICE.md" in (folder / "NOTICE.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("main", "model", "right"),
    [
        (scales.main, "emoji", "device-client"),
        (scales.main, "emoji-mar", "ciar-masked"),
        (masked.main, "emoji-dit", "ciar-diffusion"),
        (steps.main, "emoji-var", "ciar-scales"),
        (device.main, "emoji-mar", "ciar-masked"),
    ],
)
def test_the_wrong_command_names_the_right_one(
    main: Callable[[], int],
    model: str,
    right: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["--model", model, "--prompt", "a cat", "--server", "127.0.0.1:1"]
    monkeypatch.setattr("sys.argv", ["command", *words])
    assert main() == 1
    assert f"use {right} --model {model}" in capsys.readouterr().err
