"""The verbs that train the small VAR: they resume to the bit, and what they export is a pair that draws."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from device_client.cloud import Request
from device_client.scale_loop import decode_scales
from device_client.scale_policy import device_only
from shared.decoding.acceptance import nearest_neighbours
from shared.errors import InvalidRequest
from shared.models.by_scale import SHARES, ScalePackage, load_scale_cloud, load_scale_package
from shared.models.checkpoint import digest
from shared.models.generators import load_scale_vq
from training.cli import main
from training.presets import FIRST
from training.runs import Trainer
from training.scale_base import ScaleBaseRun, ScaleBaseTrainer, misled
from training.scale_calibrate import WARP
from training.scale_data import SCALES
from training.scale_tokenizer import ScaleTokenizerRun, ScaleTokenizerTrainer

FEW = ["--steps", "2", "--batch", "2", "--checkpoint-every", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def runs(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a large and a small model, then CoDe's drafter and refiner of six scales."""
    home = tmp_path_factory.mktemp("runs")
    vae, cloud, drafter = (str(home / path) for path in ("tok/vae", "base/cloud", "drafter/cloud"))
    small = str(home / "device/model/device")
    verbs = [
        ["var-tokenizer", "--out", str(home / "tok")],
        ["var-base", "--vae", vae, "--out", str(home / "base")],
        ["var-device", "--vae", vae, "--cloud", cloud, "--out", str(home / "device")],
        ["var-base", "--vae", vae, "--until", "6", "--start-from", cloud, "--out", str(home / "drafter")],
        ["var-device", "--vae", vae, "--cloud", drafter, "--teacher", cloud, "--begin", "6", "--start-from",
         small, "--out", str(home / "refiner")],
    ]  # fmt: skip
    for words in verbs:
        extra = ["--calibration-images", "2"] if words[0] == "var-device" else []
        assert main([*words, "--data", str(discs), *FEW, *extra]) == 0
    return home


@torch.no_grad()
def test_scales_make_up_for_what_was_told_wrong(runs: Path) -> None:
    """What is wanted of a scale is what the scales as they were told leave; nothing wrong: the encoding."""
    vq = load_scale_vq(runs / "tok" / "vae")
    image = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    near = nearest_neighbours(vq.quantize.codes())[:, :8].long()
    told, wanted = misled(vq, near, image, 0.0, np.random.default_rng(0))
    for one, other, plain in zip(told, wanted, vq.encode(image), strict=True):
        assert (one == plain).all() and (other == plain).all()
    told, wanted = misled(vq, near, image, 0.3, np.random.default_rng(0))
    missed = torch.cat([(one != other).flatten() for one, other in zip(told, wanted, strict=True)])
    assert 0.1 < missed.float().mean() < 0.6
    sums = vq.quantize.sums(told)
    for scale in range(1, len(SCALES)):
        rest = vq.features(image) - sums[scale - 1]
        assert (vq.quantize.code_of(rest, scale) == wanted[scale]).all()


def test_what_is_exported_is_a_pair_that_draws(runs: Path) -> None:
    for name, cloud in (("device", "base"), ("refiner", "drafter")):
        home = str(runs / name / "model")
        package, server = load_scale_package(home, runs), load_scale_cloud(home, runs)
        assert package.cloud_digest == server.digest == digest(runs / cloud / "cloud")
        assert package.labels == server.labels == FIRST
        assert package.thresholds is not None
        assert {len(table) for table in package.thresholds.values()} == {len(SCALES)}
        assert {len(row) for table in package.thresholds.values() for row in table} == {SHARES + 1}

        assert asyncio.run(drawn(package)) == package.config.tokens


async def drawn(package: ScalePackage) -> int:
    """Tokens of an image that the device draws alone."""
    request = Request("a penguin", 1, WARP)
    seen = [step async for step in decode_scales(package, request, device_only(), None)]
    return len(seen[-1].tokens)


def same_after(first: Trainer, whole: Trainer) -> bool:
    """Whether a step, a checkpoint and another step are two steps."""
    first.advance()
    first.save()
    for _ in range(2):
        whole.advance()
    restored = type(first)(first.run)  # type: ignore[attr-defined, call-arg]
    restored.advance()
    pairs = zip(
        restored.learner.average.values.values(), whole.learner.average.values.values(), strict=True
    )
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_runs_resume_to_the_bit(discs: Path, runs: Path, tmp_path: Path) -> None:
    vae = runs / "tok/vae"
    # Of six steps the codebook begins with the second.
    tokenizers = [
        ScaleTokenizerTrainer(ScaleTokenizerRun(discs, tmp_path / name, steps=6, batch=2))
        for name in ("tok", "tok2")
    ]
    bases = [
        ScaleBaseTrainer(ScaleBaseRun(discs, vae, tmp_path / name, steps=6, batch=2))
        for name in ("base", "base2")
    ]
    for first, whole in (tokenizers, bases):
        assert same_after(first, whole)


def test_impossible_scales_are_refused(discs: Path, runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="allowed: 1 to 10"):
        ScaleBaseRun(discs, runs / "tok/vae", tmp_path, until=11)
    words = ["--vae", str(runs / "tok/vae"), "--cloud", str(runs / "base/cloud"), "--begin", "10"]
    assert main(["var-device", "--data", str(discs), "--out", str(tmp_path), *FEW, *words]) == 1
