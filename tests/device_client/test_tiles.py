"""Mosaics against the decoder they stand for, and the timeline against the counters it is read off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from rich.console import Console

from device_client.progress import Counters
from device_client.tiles import BLANK, SIDE, Tiles
from device_client.timeline import Round, Timeline
from device_client.watch import HALF, HalfBlocks
from shared.models.vq import VQModel, from_pixels
from shared.models.zoo import DevicePackage, load_device_package


@pytest.fixture(scope="module")
def bundled() -> VQModel:
    return load_device_package("emoji", Path("nowhere")).vq


def test_a_mosaic_is_close_to_what_the_decoder_draws(bundled: VQModel) -> None:
    picture = Image.new("RGB", (128, 128), "white")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((20, 20, 108, 108), fill="orange")
    pen.rectangle((50, 40, 80, 90), fill="navy")
    with torch.inference_mode():
        ids_1hw = bundled.encode(from_pixels(torch.from_numpy(np.array(picture))[None]))
        decoded = bundled.pictures(ids_1hw)[0].numpy().astype(float)
    tiles = Tiles(bundled)
    mosaic = np.asarray(tiles.mosaic(ids_1hw.flatten().tolist(), 16, 16), float)
    shuffled = np.asarray(tiles.mosaic(ids_1hw.flatten().flip(0).tolist(), 16, 16), float)
    error = np.abs(mosaic - decoded).mean()
    assert error < 10 < 2 * error + np.abs(shuffled - decoded).mean() / 2


def test_the_atlas_holds_every_tile_in_its_place(package: DevicePackage) -> None:
    tiles = Tiles(package.vq)
    atlas, side = np.asarray(tiles.atlas()), tiles.side
    assert side == min(SIDE, package.vq.config.factor)
    for token in (0, 5, len(tiles.pixels_VSS3) - 1):
        row, column = divmod(token, tiles.columns)
        place = atlas[row * side : (row + 1) * side, column * side : (column + 1) * side]
        assert (place == tiles.pixels_VSS3[token]).all()
    mosaic = np.asarray(tiles.mosaic([7], 2, 2))
    assert (mosaic[:side, :side] == tiles.pixels_VSS3[7]).all() and (mosaic[side:] == BLANK).all()


def test_the_timeline_has_a_round_for_every_answer() -> None:
    timeline, counters = Timeline(), Counters(16)
    opened = replace(counters, cloud_forwards=2, wait_s=0.5, cloud_s=0.25, total_s=0.75)
    kept = replace(opened, kept=3, total_s=1.0)
    first = replace(kept, cloud_forwards=3, rounds=1, judged=4, accepted=2, wait_s=0.75, total_s=1.5)
    third = replace(first, cloud_forwards=5, rounds=3, judged=9, accepted=6, wait_s=1.0, total_s=2.0)
    for now in (opened, kept, first, replace(first, total_s=1.75), third):
        timeline.add(now)
    assert timeline.rounds == [
        Round(0, 0.75, 0.5, 0.25, kept=0, judged=0, accepted=0),
        Round(1, 1.5, 0.25, 0.0, kept=3, judged=4, accepted=2),
        Round(3, 2.0, 0.25, 0.0, kept=0, judged=5, accepted=4),
    ]


def test_half_blocks_show_two_rows_per_line() -> None:
    image = Image.new("RGB", (2, 2))
    image.putdata([(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 8, 7)])
    console = Console(width=4, height=5, force_terminal=True, color_system="truecolor")
    with console.capture() as caught:
        console.print(HalfBlocks(image), end="")
    text = caught.get()
    assert text.count(HALF) == 2 and text.count("\n") == 1
    assert "38;2;255;0;0;48;2;0;0;255" in text and "38;2;0;255;0;48;2;9;8;7" in text
