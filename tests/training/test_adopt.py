"""A smaller published model becomes a device: pairs that draw; what does not belong together is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cloud_server.server import Settings, running
from cloud_server.staff import Served
from device_client import masked_policy, scale_policy
from device_client.cloud import Request
from device_client.link import CloudLink
from device_client.masked_loop import decode_masked
from device_client.masked_policy import Drawing
from device_client.progress import Progress
from device_client.scale_loop import decode_scales
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest, ModelMismatch, ModelUnavailable
from shared.models.by_mask import load_masked_cloud, load_masked_package
from shared.models.by_scale import load_scale_cloud, load_scale_package
from shared.models.checkpoint import digest
from tests.training.test_convert_generators import DIT, GOLDEN, KL, MAR, VAE
from training.adopt import Adoption, adopt
from training.cli import main
from training.conversion import Conversion
from training.convert import convert

DRAFTER, REFINER = GOLDEN / "var/code_drafter.safetensors", GOLDEN / "var/code_refiner.safetensors"


@pytest.fixture
def var(tmp_path: Path) -> Path:
    convert(Conversion(DRAFTER, tmp_path / "var", "var", 16, VAE))
    return tmp_path / "var"


@pytest.fixture
def mar(tmp_path: Path) -> Path:
    convert(Conversion(MAR, tmp_path / "mar", "mar", 8, KL, heads=4))
    return tmp_path / "mar"


async def over_a_wire(cloud: Served, decode, *order) -> Progress:
    async with running(cloud, Settings()) as server, CloudLink(f"127.0.0.1:{server.port}") as link:
        return [progress async for progress in decode(*order, link)][-1]


def test_code_draws_with_two_published_models(var: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adopt", str(var), str(REFINER), "--images", "3"]) == 0
    assert digest(var / "device") in capsys.readouterr().out
    package, cloud = load_scale_package(str(var), var), load_scale_cloud(str(var), var)
    assert package.cloud_digest == cloud.digest and package.config.dim == 32
    official = load_file(REFINER)
    for name, value in package.model.base.state_dict().items():
        assert torch.equal(value, official[name].float()), name
    request = Request("3", 5, Warp(guidance=1.5, top_k=60, top_p=0.9))
    whole = asyncio.run(over_a_wire(cloud, decode_scales, package, request, scale_policy.cloud_only(4)))
    begun = asyncio.run(over_a_wire(cloud, decode_scales, package, request, scale_policy.code(2)))
    assert begun.done and begun.tokens[:5] == whole.tokens[:5] and begun.tokens != whole.tokens
    assert begun.counters.cloud_forwards == 2
    asked = asyncio.run(over_a_wire(cloud, decode_scales, package, request, scale_policy.ciar(1, "margin")))
    assert asked.done and asked.counters.cloud_forwards >= 1


def test_a_gate_needs_images(var: Path) -> None:
    adopt(Adoption(var, REFINER))
    package, cloud = load_scale_package(str(var), var), load_scale_cloud(str(var), var)
    order = package, Request("3", 5, Warp()), scale_policy.ciar(1, "margin")
    with pytest.raises(InvalidRequest, match="no thresholds"):
        asyncio.run(over_a_wire(cloud, decode_scales, *order))


def test_a_twin_of_the_cloud_drafts_what_stands(mar: Path) -> None:
    adopt(Adoption(mar, MAR, heads=4))
    package, cloud = load_masked_package(str(mar), mar), load_masked_cloud(str(mar), mar)
    assert package.cloud_digest == cloud.digest and package.clip == 0
    policy = masked_policy.cspd(16, 0.5, 2, Drawing(head_steps=8))
    drawn = asyncio.run(over_a_wire(cloud, decode_masked, package, Request("3", 5, Warp(2.0)), policy))
    assert drawn.done and drawn.counters.acceptance_rate == 1.0


@pytest.mark.parametrize(
    ("name", "rows", "words"), [("class_emb.weight", 9, "classes 8"), ("head.", 100, "vocab size 100")]
)
def test_other_tokens_or_classes_are_refused(
    var: Path, tmp_path: Path, name: str, rows: int, words: str
) -> None:
    cut = {key: value[:rows] if key.startswith(name) else value for key, value in load_file(REFINER).items()}
    save_file(cut, tmp_path / "other.safetensors")
    with pytest.raises(ModelMismatch, match=words):
        adopt(Adoption(var, tmp_path / "other.safetensors"))
    assert not (var / "device").exists()


def test_what_cannot_be_adopted_is_refused(var: Path, mar: Path, tmp_path: Path) -> None:
    convert(Conversion(DIT, tmp_path / "dit", "dit", 64, heads=4))
    with pytest.raises(InvalidRequest, match="'dit' adopts no device"):
        adopt(Adoption(tmp_path / "dit", DIT))
    with pytest.raises(InvalidRequest, match="3 images for 'mar'"):
        adopt(Adoption(mar, MAR, heads=4, images=3))
    with pytest.raises(ModelUnavailable):
        adopt(Adoption(tmp_path / "nowhere", REFINER))
    broken = load_file(REFINER)
    del broken["head_nm.ada_lin.1.bias"]
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(ModelUnavailable, match=r"head_nm\.ada_lin\.1\.bias"):
        adopt(Adoption(var, tmp_path / "broken.safetensors"))
    assert not (var / "device").exists()
