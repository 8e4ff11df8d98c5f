"""The verbs that train the small MAR: they resume to the bit, and what they export is a pair that draws."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from device_client import masked_policy
from device_client.cloud import Request
from device_client.masked_loop import decode_masked
from device_client.masked_policy import Drawing
from shared.decoding.diffusion import cosine
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest
from shared.models.by_mask import MaskedPackage, load_masked_cloud, load_masked_package
from shared.models.checkpoint import digest
from shared.models.families.mar import MARModel
from shared.models.generators import load_kl
from shared.models.kl_vae import KLVAE, LATENT_SCALE
from tests.training.test_scales import same_after
from training.cli import main
from training.masked_base import MaskedBaseRun, MaskedBaseTrainer, loss_of
from training.masked_data import KL, TOKENS, conditions, encoded, lesson, mar_shape
from training.masked_device import MaskedDeviceRun, MaskedDeviceTrainer, cut_masked
from training.masked_vae import MaskedVaeRun, MaskedVaeTrainer, normalise, start_from_components
from training.presets import FIRST
from training.scale_data import Pictures

FEW = ["--steps", "2", "--batch", "2", "--checkpoint-every", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def runs(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder, a large and a small model."""
    home = tmp_path_factory.mktemp("runs")
    vae, cloud = str(home / "vae/vae"), str(home / "base/cloud")
    verbs = [
        ["mar-vae", "--out", str(home / "vae")],
        ["mar-base", "--vae", vae, "--out", str(home / "base")],
        ["mar-device", "--vae", vae, "--cloud", cloud, "--out", str(home / "device")],
    ]
    for words in verbs:
        assert main([*words, "--data", str(discs), *FEW]) == 0
    return home


def test_what_is_exported_is_a_pair_that_draws(runs: Path) -> None:
    home = str(runs / "device/model")
    package, cloud = load_masked_package(home, runs), load_masked_cloud(home, runs)
    assert package.cloud_digest == cloud.digest == digest(runs / "base/cloud")
    assert package.labels == cloud.labels == FIRST and cloud.proposer is not None
    assert asyncio.run(drawn(package)) == TOKENS


async def drawn(package: MaskedPackage) -> int:
    """Tokens of an image that the device draws alone."""
    policy = masked_policy.device_only(4, Drawing(head_steps=4))
    request = Request("a penguin", 1, Warp(2.0))
    return len([step async for step in decode_masked(package, request, policy, None)][-1].tokens)


def test_runs_resume_to_the_bit(discs: Path, runs: Path, tmp_path: Path) -> None:
    vae, cloud = runs / "vae/vae", runs / "base/cloud"
    names = ("first", "whole")
    trainers = [
        [MaskedVaeTrainer(MaskedVaeRun(discs, tmp_path / f"vae-{name}", 6, 2)) for name in names],
        [MaskedBaseTrainer(MaskedBaseRun(discs, vae, tmp_path / f"base-{name}", 6, 2)) for name in names],
        [
            MaskedDeviceTrainer(MaskedDeviceRun(discs, vae, cloud, tmp_path / f"device-{name}", 6, 2))
            for name in names
        ],
    ]
    for first, whole in trainers:
        assert same_after(first, whole)


def test_tokens_are_standard_and_pictures_stay(discs: Path) -> None:
    """What is exported draws what the trained one drew; its tokens have mean 0 and deviation 1."""
    image = Pictures(discs, 0).batch(0, 24).image_B3HW
    torch.manual_seed(0)
    with torch.no_grad():
        model = KLVAE(KL).eval()
        start_from_components(model, image)
        model.quant_conv.weight[: KL.latent] *= 3.0  # as if training had moved it
        model.post_quant_conv.weight /= 3.0
        before = model.decode(model.moments(image).chunk(2, dim=1)[0] * LATENT_SCALE)
        normalise(model, image, 0)
        after = model.decode(model.moments(image).chunk(2, dim=1)[0] * LATENT_SCALE)
        token_NC = encoded(model, image, 0, 0).flatten(0, 1)
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)
    assert token_NC.mean(0).abs().max() < 0.02 and (token_NC.std(0) - 1).abs().max() < 0.05
    assert (before - image).square().mean() < 0.1 * image.var()


def test_a_lesson_is_what_the_diffusion_says() -> None:
    tokens = torch.randn(3, TOKENS, KL.latent, generator=torch.Generator().manual_seed(1))
    learnt = lesson(tokens, cosine(), 4, 9)
    again = lesson(tokens, cosine(), 4, 9)
    assert torch.equal(learnt.state_NC, again.state_NC) and not torch.equal(
        learnt.state_NC, lesson(tokens, cosine(), 4, 10).state_NC
    )
    count = learnt.masked_BL.sum(1)
    assert (count == count[0]).all() and 0.7 * TOKENS <= count[0] <= TOKENS
    assert torch.equal(learnt.of_masked(tokens), learnt.target_NC)
    kept = torch.from_numpy(cosine().kept)[learnt.t_N][:, None].float()
    back = (learnt.state_NC - (1 - kept).sqrt() * learnt.noise_NC) / kept.sqrt()
    sure = kept[:, 0] > 0.01
    torch.testing.assert_close(back[sure], learnt.target_NC[sure], atol=1e-3, rtol=1e-3)


def test_a_model_that_knows_the_noise_has_no_loss_but_the_variance() -> None:
    """The loss falls to that of the variance where the noise is predicted, and the gradient of the
    variational term leaves the noise alone."""
    torch.manual_seed(0)
    model = MARModel(mar_shape(1, 1)).eval()
    tokens = torch.randn(2, TOKENS, KL.latent)
    learnt = lesson(tokens, cosine(), 4, 9)
    v = torch.full_like(learnt.noise_NC, -1.0)  # the posterior's own variance

    class Knowing(torch.nn.Module):
        """Says what it is told to say."""

        def forward(self, x_NC: torch.Tensor, step_N: torch.Tensor, z_ND: torch.Tensor) -> torch.Tensor:
            return torch.cat([learnt.noise_NC, v], 1)

    model.diffloss.net = Knowing()  # type: ignore[assignment]
    loss = loss_of(model, cosine(), learnt, torch.tensor([1, len(FIRST)]))
    assert loss.item() == pytest.approx(0, abs=1e-3)


def test_no_class_is_the_vector_of_none() -> None:
    model = MARModel(mar_shape(1, 1))
    torch.nn.init.normal_(model.fake_latent)
    found = conditions(model, torch.tensor([2, len(FIRST)]))
    assert torch.equal(found[0], model.class_emb.weight[2]) and torch.equal(found[1], model.fake_latent[0])


def test_a_device_is_no_larger_than_its_cloud(runs: Path) -> None:
    cloud = MARModel(mar_shape(2, 2))
    assert cut_masked(cloud, 1, 2).config.head_depth == 2
    for layers, head in ((3, 1), (0, 1), (1, 3)):
        with pytest.raises(InvalidRequest, match="allowed: 1 to 2"):
            cut_masked(cloud, layers, head)
    assert load_kl(runs / "vae/vae").config == KL
