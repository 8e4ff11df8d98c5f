"""DiT's companion and its folders: what an untrained one says, what is asked of the cloud, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shared.errors import InvalidRequest, ModelUnavailable
from shared.models.by_step import PROJECTION, load_step_cloud, load_step_package
from shared.models.families.dit import DiTConfig, DiTModel
from shared.models.families.dit_device import Anchor, StepCompanion, StepDevice, cut_steps
from shared.models.zoo import family_of
from tests.tiny_steps import CONFIG, FEATURES, build_tiny_steps

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_steps(tmp_path_factory.mktemp("tiny"))


def inputs(rows: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, CONFIG.channels, CONFIG.side, CONFIG.side, generator=generator)
    return x, torch.arange(rows) * 100, torch.arange(rows) % CONFIG.classes


def anchored(device: StepDevice, rows: int, step: int) -> Anchor:
    generator = torch.Generator().manual_seed(2)
    nobody = device.nobody(rows)
    eps = torch.randn(nobody.eps.shape, generator=generator)
    return Anchor(torch.full((rows,), step), eps, torch.randn(nobody.features.shape, generator=generator))


@torch.inference_mode()
def test_an_untrained_device_says_what_the_cloud_said(folder: Path) -> None:
    cloud = load_step_cloud(str(folder), folder).model
    device = cut_steps(cloud, 1, StepCompanion("", FEATURES)).eval()
    x, step, labels = inputs(3)
    anchor = anchored(device, 3, 900)
    said = device(x, step, labels, torch.full((3,), 2.0), anchor)
    assert torch.equal(said.eps, anchor.eps) and torch.equal(said.since, anchor.eps)
    assert said.radius.shape == x.shape and (said.radius > 0).all() and said.spread is None
    with pytest.raises(InvalidRequest, match="allowed: 1 to 2"):
        cut_steps(cloud, 3, StepCompanion(""))


@torch.inference_mode()
def test_a_trained_device_reads_everything_it_is_shown(folder: Path) -> None:
    device = load_step_package(str(folder), folder).model
    for part in (device.guidance, device.gap_embedder.mlp[-1]):
        torch.nn.init.normal_(part.weight, std=0.3)
    for block in device.base.blocks:
        torch.nn.init.normal_(block.adaLN_modulation[1].weight, std=0.3)
    x, step, labels = inputs(2)
    scale, anchor = torch.full((2,), 2.0), anchored(device, 2, 900)
    change = device(x, step, labels, scale, anchor)
    change = change.eps - change.since
    others = [
        (x + 1, step, labels, scale, anchor),
        (x, step + 30, labels, scale, anchor),
        (x, step, labels + 1, scale, anchor),
        (x, step, labels, scale + 1, anchor),
        (x, step, labels, scale, Anchor(anchor.step_B - 200, anchor.eps, anchor.features)),
        (x, step, labels, scale, Anchor(anchor.step_B, anchor.eps + 1, anchor.features)),
        (x, step, labels, scale, Anchor(anchor.step_B, anchor.eps, anchor.features + 1)),
    ]
    for other in others:
        found = device(*other)
        assert not torch.allclose(found.eps - found.since, change, atol=1e-4)


@torch.inference_mode()
def test_what_a_sampler_needs_is_the_first_half(folder: Path) -> None:
    model = load_step_cloud(str(folder), folder).model
    x, step, labels = inputs(3)
    out, hidden = model.denoised(x, step, labels, 3.0)
    assert torch.equal(out, model.guided(x, step, labels, 3.0)[:3])
    torch.testing.assert_close(hidden, model.hidden(x, step, labels)[0], atol=1e-5, rtol=1e-5)
    plain, _ = model.denoised(x, step, labels, 1.0)
    assert torch.equal(plain, model(x, step, labels))


def test_published_models_guide_three_channels() -> None:
    assert DiTModel(CONFIG).config.guided == CONFIG.channels
    published = DiTConfig(28, 1152, 16, 4608, 2, 4, 32, 1000)
    assert (published.guided, published.outputs) == (3, 8)


def test_the_family_is_found(folder: Path) -> None:
    assert family_of(str(folder), folder) == "dit"
    assert family_of("emoji", folder) == "emoji"


def test_a_projection_for_another_width_is_refused(folder: Path, tmp_path: Path) -> None:
    home = shutil.copytree(folder, tmp_path / "model")
    save_file({"weight": torch.zeros(8, 2)}, home / "device" / PROJECTION)
    with pytest.raises(ModelUnavailable, match="width 8"):
        load_step_cloud(str(home), home)


def test_other_families_are_refused(folder: Path, tmp_path: Path) -> None:
    home = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((home / "cloud/config.json").read_text())
    (home / "cloud/config.json").write_text(json.dumps({**config, "family": "x"}))
    with pytest.raises(ModelUnavailable, match="'x'"):
        load_step_cloud(str(home), home)
    shutil.rmtree(home / "vae")
    with pytest.raises(ModelUnavailable, match="autoencoder"):
        load_step_package(str(home), home)
