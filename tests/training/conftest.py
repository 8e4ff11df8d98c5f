"""A picture folder small enough to train on in seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from shared.models.checkpoint import save_model, save_vq
from shared.models.families.emoji import EmojiModel
from shared.models.vq import VQModel
from training.device import DeviceRun, DeviceTrainer
from training.presets import FIRST, preset
from training.scenes import scene_split


@pytest.fixture(scope="session")
def artwork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two concepts in two styles, one of them held back, as single files with captions.jsonl."""
    folder = tmp_path_factory.mktemp("artwork")
    rows = []
    for style, colour in (("flat", (200, 40, 40)), ("noto", (40, 40, 200))):
        for concept, name in (("1f408", "cat"), ("1f415", "dog")):
            image = Image.new("RGBA", (128, 128))
            box = (16, 24, 112, 112) if name == "cat" else (24, 16, 104, 112)
            ImageDraw.Draw(image).ellipse(box, fill=(*colour, 255))
            (folder / style).mkdir(exist_ok=True)
            image.save(folder / style / f"{concept}.webp", lossless=True)
            split = "heldout" if (style, name) == ("noto", "dog") else "train"
            rows.append({"key": f"{style}/{concept}", "split": split, "name": name, "style": style})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One disc a class, in one style."""
    folder = tmp_path_factory.mktemp("discs")
    (folder / "flat").mkdir()
    rows = []
    for number, name in enumerate(FIRST):
        image = Image.new("RGBA", (128, 128))
        ImageDraw.Draw(image).ellipse((16, 16, 112, 112), fill=(6 * number, 250 - 6 * number, 128, 255))
        image.save(folder / "flat" / f"{number}.png")
        rows.append({"key": f"flat/{number}", "split": "train", "name": name, "style": "flat"})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def cloud_home(artwork: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vq/` and `cloud/` of the preset `tiny` with random weights, peaky enough that tokens depend on what
    stands before them; nothing is trained."""
    home = tmp_path_factory.mktemp("cloud-home")
    chosen = preset("tiny")
    scenes, _ = scene_split(artwork, chosen.concepts, chosen.scenes, 0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        cloud = EmojiModel(chosen.model, scenes.vocabulary())
        for name, value in cloud.named_parameters():
            if value.ndim >= 2:
                table = any(part in name for part in ("embeddings", "uncond", "text."))
                nn.init.normal_(value, std=1.0 if table else value.shape[1] ** -0.5)
        nn.init.normal_(cloud.gpt.output.weight, std=1.8 * chosen.model.dim**-0.5)
        save_model(home / "cloud", cloud)
        save_vq(home / "vq", VQModel(chosen.vq).eval())
    return home


def device_run(artwork: Path, cloud_home: Path, out: Path, **changes: Any) -> DeviceRun:
    """Four steps of distillation from `cloud_home`, its images shared by all tests."""
    run = DeviceRun(
        artwork, cloud_home / "vq", cloud_home / "cloud", out, preset="tiny", steps=4, batch=4, drawn=16,
        images=cloud_home / "images", calibration_images=4, checkpoint_every=2,
    )  # fmt: skip
    return replace(run, **changes)


@pytest.fixture(scope="session")
def device_folder(artwork: Path, cloud_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported device of `cloud_home`."""
    out = tmp_path_factory.mktemp("device")
    DeviceTrainer(device_run(artwork, cloud_home, out, steps=6, checkpoint_every=6)).train()
    return out / "device"
