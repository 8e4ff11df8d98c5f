"""`ciar-eval rehearse`: it counts what the loop over the wire does, and what it writes is read again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cloud_server.server import Settings, running
from device_client.loop import Request
from device_client.policy import policy_for
from device_client.progress import Source
from evaluation.cli import main
from evaluation.rehearsal import ASKED, PROMISED, Plan, Rehearsal, tried, unlike_cloud
from evaluation.run import draw
from shared.decoding.calibration import GateTable
from shared.errors import InvalidRequest
from shared.models.zoo import BRIDGE, load_cloud, load_device_package
from tests.tiny import WARP, build_tiny_model

PROMPTS = ("a red cat", "a dog on a blue background", "a banana", "green house")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair whose cloud hears what the device says of kept tokens."""
    model = build_tiny_model(tmp_path_factory.mktemp("tiny") / "pair", grid=6)
    weight = 0.3 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight}, model / "device" / BRIDGE)
    return model


@pytest.mark.parametrize("gate", ["agreement", "random", "margin"])
async def test_whatever_the_cloud_decided_is_what_it_draws_there(folder: Path, gate: str) -> None:
    """Over the wire, kept tokens and their features before it; of the kept ones some are unlike."""
    name = str(folder)
    package, cloud = load_device_package(name, folder), load_cloud(name, folder)
    tau, unlike = package.calibration.table(gate).scores[30], 0
    policy = policy_for("ciar", package.calibration, gate=gate, threshold=tau)
    async with running(cloud, Settings()) as server:
        for seed, prompt in enumerate(PROMPTS):
            request = Request(prompt, seed, WARP)
            last = await draw(package, f"127.0.0.1:{server.port}", request, policy)
            kept_T = np.array([source is Source.KEPT for source in last.sources])
            unlike_T = unlike_cloud((package, cloud), request, np.array(last.tokens), kept_T)
            assert kept_T.any() and not kept_T.all()
            assert not (unlike_T & ~kept_T).any()
            unlike += int(unlike_T.sum())
    assert unlike > 0


async def test_tables_hold_the_rates_of_finished_images(folder: Path) -> None:
    name = str(folder)
    package, cloud = load_device_package(name, folder), load_cloud(name, folder)
    told: list[str] = []
    plan = Plan(PROMPTS * 3, images=2, promised=12, at_once=2)
    async with running(cloud, Settings()) as server:
        target = f"127.0.0.1:{server.port}"
        rehearsal = Rehearsal(target, package, cloud, plan, told.append)
        *_, found = [each async for each in rehearsal.calibrations()]
        (one,) = [each async for each in rehearsal.calibrations(["margin"])]
    # Keyed by seeds: how images share the server changes nothing.
    assert one.gates == {**package.calibration.gates, "margin": found.gates["margin"]}
    usual = policy_for("ciar", package.calibration)
    assert (found.span, found.floor) == (usual.span, usual.adaptive_floor)
    assert 0 < found.prefix_share <= usual.prefix_tokens(36) / 36
    assert [line.split(":")[0] for line in told[: len(found.gates)]] == list(found.gates)
    for gate, table in found.gates.items():
        assert list(table.thresholds) == sorted(table.thresholds, reverse=True)
        assert table.thresholds != package.calibration.gates[gate].thresholds
        assert len(table.promises) == len(table.bounds) and list(table.bounds) == sorted(table.bounds)
        assert gate in PROMISED or not table.promises


def test_thresholds_to_try_are_quantiles_and_those_that_promises_need() -> None:
    """50 bins; the draws of the upper 10 differ, of the 10 below them every fifth."""
    scores = tuple(float(place) for place in range(51))
    table = GateTable(scores, (0.0,) * 30 + (0.2,) * 10 + (1.0,) * 10, (0.1, 0.5), (40.0, 10.0))
    assert tried(table) == sorted(50.0 - round(50 * share) for share in ASKED)
    assert set(tried(table, (0.01, 0.05))) - set(tried(table)) == {31.0, 40.0} - set(tried(table))
    assert tried(GateTable(scores, (1.0,) * 50, (0.1,), (9.0,)), (0.04,)) == tried(table)


def test_the_verb_rewrites_the_calibration(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(folder, tmp_path / "pair")
    before = load_device_package(str(model), model)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    flags = ["--prompts", str(tmp_path / "prompts.txt"), "--images", "1", "--promised", "2"]
    assert main(["rehearse", str(model), *flags]) == 0
    heard = capsys.readouterr()
    assert "1 and 2 images a threshold" in heard.out and "agreement: cloud forwards" in heard.err
    after = load_device_package(str(model), model)
    assert after.digest == before.digest and after.calibration.gates != before.calibration.gates
    assert main(["rehearse", str(model)]) == 1 and "--prompts and --data" in capsys.readouterr().err
    with pytest.raises(InvalidRequest, match=r"4 prompts do not suffice.*12"):
        Plan(PROMPTS, 2, 12)
