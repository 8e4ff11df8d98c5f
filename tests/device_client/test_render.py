"""Pictures: what is written can be read back, and the map's colours mean what the legend says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageColor

from device_client import render
from device_client.loop import Source
from shared.errors import InvalidRequest
from shared.models.vq import to_pixels
from shared.models.zoo import DevicePackage, load_device_package
from tests.tiny import build_tiny_model

SETTINGS = {"prompt": "a cat \N{CAT FACE} é", "seed": 2**64 - 1, "mode": "ciar", "warp": {"guidance": 1.5}}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> DevicePackage:
    return load_device_package(str(build_tiny_model(tmp_path_factory.mktemp("tiny"))), Path("nowhere"))


def picture() -> Image.Image:
    return Image.linear_gradient("L").convert("RGB")


def test_tokens_become_the_pixels_of_the_vq_decoder(package: DevicePackage) -> None:
    tokens = tuple(range(16))
    image = render.to_image(package.vq, tokens)
    side = 4 * package.vq.config.factor
    assert (image.mode, image.size) == ("RGB", (side, side))
    with torch.inference_mode():
        want = to_pixels(package.vq.decode(torch.arange(16).reshape(1, 4, 4)))
    assert image.tobytes() == want.numpy().tobytes()


@pytest.mark.parametrize("count", [0, 3, 15])
def test_tokens_that_fill_no_square_are_refused(package: DevicePackage, count: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{count} tokens"):
        render.to_image(package.vq, (0,) * count)


def test_a_picture_says_how_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(b"an older picture")
    render.save_png(path, picture(), SETTINGS)
    assert render.read_settings(path) == SETTINGS
    with Image.open(path) as image:
        assert image.tobytes() == picture().tobytes()
        words = image.info["parameters"]
    assert words == f"{SETTINGS['prompt']}\nseed: {2**64 - 1}, mode: ciar, guidance: 1.5"
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_without_settings_is_named(tmp_path: Path) -> None:
    picture().save(tmp_path / "plain.png")
    with pytest.raises(InvalidRequest, match="holds no settings"):
        render.read_settings(tmp_path / "plain.png")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cat.gif", "allowed endings: .png"),
        ("cat", "cat.png"),
        ("no/cat.png", "no folder"),
        ("dir.png", "is a folder"),
    ],
)
def test_impossible_targets_are_refused(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(InvalidRequest, match=says):
        render.check_target(tmp_path / name)


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(b"an older picture")

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InvalidRequest, match="No space left"):
        render.save_png(path, picture(), SETTINGS)
    assert [(p, p.read_bytes()) for p in tmp_path.iterdir()] == [(path, b"an older picture")]


def colour_at(image: Image.Image, place: int, grid: int, inset: int) -> tuple[int, ...]:
    row, column = divmod(place, grid)
    pixel = image.getpixel((column * render.CELL + inset, row * render.CELL + inset))
    assert isinstance(pixel, tuple)
    return pixel


def test_the_map_colours_every_source(tmp_path: Path) -> None:
    sources = [*Source, *[Source.KEPT] * 3]
    image = render.source_map(sources, 3)
    for place, source in enumerate(sources):
        assert colour_at(image, place, 3, render.CELL // 2) == ImageColor.getrgb(render.COLOURS[source])
    legend = image.crop((0, 3 * render.CELL, image.width, image.height))
    seen = {colour for _, colour in legend.getcolors(1 << 16) or []}
    assert seen >= {ImageColor.getrgb(colour) for colour in render.COLOURS.values()}
    assert len(set(render.COLOURS.values())) == len(render.COLOURS) == len(render.MEANING) == len(Source)


def test_squares_grow_with_the_score_and_are_missing_without_one() -> None:
    image = render.source_map([Source.KEPT] * 4, 2, [None, -3.0, 0.5, 9.0])
    ink = ImageColor.getrgb(render.INK)
    squares = [
        sum(colour_at(image, place, 2, inset) == ink for inset in range(render.CELL)) for place in range(4)
    ]
    assert squares[0] == 0 < squares[1] < squares[2] < squares[3] == render.CELL // 2


def test_scores_that_rank_low_or_are_all_missing_draw() -> None:
    render.source_map([Source.KEPT] * 256, 16, [float(place) for place in range(256)])
    render.source_map([Source.BONUS], 1, [None])


def test_a_map_needs_a_full_grid() -> None:
    with pytest.raises(InvalidRequest, match="3 sources"):
        render.source_map([Source.KEPT] * 3, 2)
