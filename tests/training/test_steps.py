"""The verbs that train the small DiT: they resume to the bit, and what they export is a pair that draws."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cloud_server.server import Settings, running
from device_client import step_policy
from device_client.link import CloudLink
from device_client.step_drafter import StepRequest, threshold_of
from device_client.step_loop import Denoised, denoise
from device_client.step_policy import StepPolicy
from shared.decoding.denoising import denoising
from shared.errors import InvalidRequest
from shared.models.by_step import load_step_cloud, load_step_package
from shared.models.checkpoint import digest
from shared.models.families.dit import DiTModel
from shared.models.families.dit_device import NOBODY, StepCompanion, cut_steps
from tests.training.test_scales import same_after
from training.cli import main
from training.data import keyed_generator
from training.masked_data import KL
from training.presets import FIRST
from training.step_base import StepBaseRun, StepBaseTrainer
from training.step_calibrate import GATES, MAX_GAP, PREFIX, Rehearsal
from training.step_data import CHUNK, Latents, dit_shape
from training.step_device import StepDeviceRun, StepDeviceTrainer
from training.step_paths import Mix, Paths, walk

SPACING = "ddim5"


@pytest.fixture(scope="module")
def runs(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A large model, and its companion with tables."""
    home = tmp_path_factory.mktemp("runs")
    few = ["--steps", "2", "--batch", "2", "--checkpoint-every", "2", "--threads", "1"]
    assert main(["mar-vae", "--data", str(discs), "--out", str(home / "vae"), *few]) == 0
    base = ["dit-base", "--data", str(discs), "--vae", str(home / "vae/vae"), "--pool", "8"]
    assert main([*base, "--out", str(home / "base"), *few]) == 0
    words = ["dit-device", "--base", str(home / "base"), "--out", str(home / "device")]
    extra = ["--images", "6", "--spacing", SPACING, "--calibration-images", "1"]
    assert main([*words, *few, *extra]) == 0
    return home


def test_what_is_exported_is_a_pair_that_draws(runs: Path) -> None:
    home = str(runs / "device/model")
    package, cloud = load_step_package(home, runs), load_step_cloud(home, runs)
    assert package.cloud_digest == cloud.digest == digest(runs / "base/cloud")
    assert package.labels == cloud.labels == FIRST and cloud.projection is not None
    assert package.projection == cloud.projection.digest and package.tables is not None
    assert set(package.tables) == set(GATES)
    for (table,) in package.tables.values():
        assert table.shares[0] == 1.0 and list(table.shares) == sorted(table.shares, reverse=True)
    request = StepRequest("a penguin", 1, spacing=SPACING)
    threshold = threshold_of(package, "interval", request, 0.8)
    policy = step_policy.ciar(threshold, "interval", prefix=1)
    drawn = asyncio.run(over_a_wire(home, request, policy))
    assert drawn.progress.done and drawn.latent.isfinite().all()
    assert package.vae.pictures(drawn.latent).shape == (1, 64, 64, 3)


async def over_a_wire(home: str, request: StepRequest, policy: StepPolicy) -> Denoised:
    """The last step of a picture of the pair."""
    package, cloud = load_step_package(home, Path()), load_step_cloud(home, Path())
    async with running(cloud, Settings()) as server, CloudLink(f"127.0.0.1:{server.port}") as link:
        return [step async for step in denoise(package, request, policy, link)][-1]


@pytest.mark.parametrize("gate", ["radius", "change"])
def test_what_is_rehearsed_is_what_is_drawn(runs: Path, gate: str) -> None:
    """The share of the cloud's steps that a threshold stands for, of an image that goes over the wire."""
    home, process = str(runs / "device/model"), denoising("ddim20", "ddim")
    package, cloud = load_step_package(home, Path()), load_step_cloud(home, Path())
    rehearsal, shares = Rehearsal(cloud, package, process, 2.0), []
    unit = rehearsal.share(gate, float("inf"), MAX_GAP, 3)[1]
    for multiple in (0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0):  # risks of a pair that learnt nothing span decades
        policy = step_policy.ciar(multiple * unit, gate, PREFIX, MAX_GAP)
        request = StepRequest("3", 3, 2.0, "ddim20")
        drawn = asyncio.run(over_a_wire(home, request, replace(policy, precision="fp32")))
        shares.append(rehearsal.share(gate, multiple * unit, MAX_GAP, 3)[0])
        assert drawn.progress.counters.cloud_forwards == round(20 * shares[-1])
    assert shares == sorted(shares, reverse=True) and shares[0] == 1.0 and len(set(shares)) > 2


def test_runs_resume_to_the_bit(discs: Path, runs: Path, tmp_path: Path) -> None:
    bases = [
        StepBaseTrainer(StepBaseRun(discs, runs / "vae/vae", tmp_path / name, steps=6, batch=2, pool=8))
        for name in ("base", "base2")
    ]
    assert same_after(*bases)
    # Of two steps the second one draws mixed paths.
    order = StepDeviceRun(runs / "base", tmp_path, steps=2, batch=2, images=5, spacing=SPACING)
    devices = [StepDeviceTrainer(replace(order, out=tmp_path / name)) for name in ("device", "device2")]
    assert same_after(*devices)
    assert (tmp_path / "device2/paths-1.safetensors").exists()


def test_paths_are_the_clouds_own_or_mixed() -> None:
    torch.manual_seed(0)
    shape, process = replace(dit_shape(1, KL), dim=16, heads=2, hidden=16), denoising("4", "ddim")
    cloud = DiTModel(shape).eval()
    for value in cloud.parameters():
        torch.nn.init.normal_(value, std=0.2)
    device = cut_steps(cloud, 1, StepCompanion("", 3))
    own = walk(cloud, process, range(5, 8), None)
    mixed = walk(cloud, process, range(5, 8), Mix(device, torch.zeros(16, 3), 3))
    assert len(own) == 3 and own.state.shape == (3, 4, 16, 8, 8) and own.label.tolist() == [5, 6, 7]
    assert torch.equal(own.state[:, :2], mixed.state[:, :2])  # both begin with the cloud's step
    assert not torch.equal(own.state, mixed.state)
    with torch.no_grad():
        label, at = torch.tensor([6]), torch.tensor([process.original(1)])
        out, _ = cloud.denoised(own.state[1:2, 1].float(), at, label, float(own.guidance[1]))
    torch.testing.assert_close(out[0], own.eps[1, 1].float(), atol=2e-2, rtol=2e-2)  # fp16 states
    image, step = torch.tensor([0, 2]), torch.tensor([-1, 2])
    anchor = own.anchor(image, step, torch.tensor([9, 8, 7, 6]), torch.ones(16, 3))
    assert anchor.step_B.tolist() == [NOBODY, 7] and not anchor.eps[0].any() and not anchor.features[0].any()
    assert torch.equal(anchor.eps[1], own.eps[2, 2].float())
    assert own.gap.tolist() == [1, 1, 1] and set(mixed.gap.tolist()) <= {2, 3}


def test_on_a_mixed_path_the_cloud_was_asked_where_it_was() -> None:
    """On its own paths anywhere before."""
    none = torch.zeros(2)
    paths = Paths(none, none, none, none, none, torch.tensor([1, 3]))
    place = torch.arange(1, 12)
    last, before = paths.asked(torch.ones(11).long(), place, keyed_generator(0, 0), 4)
    assert last.tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9]
    assert before.tolist() == [-1, -1, -1, 0, 0, 0, 3, 3, 3, 6, 6]
    last, before = paths.asked(torch.zeros(11).long(), place, keyed_generator(0, 0), 4)
    assert ((last < place) & (last >= place - 4) & (last >= 0)).all()
    assert len(set((place - last).tolist())) > 1
    assert (((before < last) & (before >= last - 4)) | ((last == 0) & (before == -1))).all()


def test_latents_lead_back_to_pictures(discs: Path, runs: Path) -> None:
    latents, again = (Latents(discs, runs / "vae/vae", 0, 8) for _ in range(2))
    batch, same = latents.batch(3, 4), again.batch(3, 4)
    assert torch.equal(batch.state, same.state) and torch.equal(batch.labels_B, same.labels_B)
    batch = latents.pictures.batch(0, CHUNK)  # what a pool of eight was cut from
    image = batch.image_B3HW[:8]
    assert latents.pool.shape == (8, 16, 8, 8) and 0.3 < latents.pool.std() < 3
    assert (latents.vae.decode(latents.pool) - image).square().mean() < 0.05


def test_impossible_runs_are_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="held back"):
        StepDeviceRun(runs / "base", tmp_path, images=4)
    words = ["dit-device", "--base", str(runs / "base"), "--out", str(tmp_path / "x"), "--layers", "9"]
    assert main([*words, "--images", "5", "--spacing", SPACING]) == 1
