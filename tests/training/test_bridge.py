"""The bridge: trained it brings a cloud nearer to itself, resumed it is the same, served it is what was
trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cloud_server.engine import Engine as CloudEngine
from cloud_server.session import Job
from evaluation.cli import main as evaluate
from shared.decoding.warp import warp_logits
from shared.errors import InvalidRequest, ModelMismatch
from shared.messages import Features, Open
from shared.models.checkpoint import load_device, save_device
from shared.models.inter_head import quantise_features
from shared.models.zoo import BRIDGE, load_cloud, load_device_package
from training.bridge import BridgeRun, BridgeTrainer
from training.listening import cloud_logits, rounded
from training.standing_in import Keeping, surest


@pytest.fixture(scope="module")
def misleading(device_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device that names every token by its neighbour's number, so that what it keeps misleads the cloud,
    and always in the same way."""
    folder = tmp_path_factory.mktemp("misleading") / "device"
    shutil.copytree(device_folder, folder)
    device = load_device(device_folder)
    output = device.base.gpt.output.weight
    output.data = 2 * output.data.roll(1, 0)
    save_device(folder, device)
    return folder


@pytest.fixture(scope="module")
def run(
    artwork: Path, cloud_home: Path, misleading: Path, tmp_path_factory: pytest.TempPathFactory
) -> BridgeRun:
    """A bridge trained for a few steps."""
    run = BridgeRun(
        artwork, cloud_home / "cloud", misleading, tmp_path_factory.mktemp("bridge"), preset="tiny", steps=24,
        batch=4, drawn=16, held_back=4, images=cloud_home / "images", rate=5e-2, checkpoint_every=12,
        keeping=Keeping("random", 0.8, 0.8, passes=1),
    )  # fmt: skip
    BridgeTrainer(run).train()
    return run


@pytest.fixture(scope="module")
def home(run: BridgeRun, cloud_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the trained bridge."""
    home = tmp_path_factory.mktemp("home") / "tiny"
    for name, source in (("cloud", cloud_home), ("vq", cloud_home), ("device", run.out)):
        shutil.copytree(source / name, home / name)
    return home


def test_a_trained_bridge_brings_the_cloud_nearer_to_itself(
    run: BridgeRun, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On images that were not trained on, as the run measures it and as the evaluation does; and an untrained
    bridge changes nothing."""
    lines = [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]
    first, last = (line for line in lines if "kl_with" in line)
    assert last["kl_with"] < 0.95 * last["kl_without"] and last["kl_with"] < first["kl_with"]
    (home / "prompts.txt").write_text("a cat\na dog on a blue background\n")
    flags = ["--prompts", str(home / "prompts.txt"), "--images", "4", "--gate", "random"]
    assert evaluate(["features", "--model", str(home), *flags]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["bridge"] and measured["kl_with"] < 0.95 * measured["kl_without"]
    (home / "device" / BRIDGE).rename(home / "device" / "elsewhere")
    assert evaluate(["features", "--model", str(home), *flags]) == 0
    (home / "device" / "elsewhere").rename(home / "device" / BRIDGE)
    untrained = json.loads(capsys.readouterr().out)
    assert not untrained["bridge"] and untrained["kl_with"] == untrained["kl_without"]


def test_a_resumed_bridge_equals_an_uninterrupted_one(run: BridgeRun, tmp_path: Path) -> None:
    """Killed after half of its steps, W and phi end the same to the bit."""
    again = replace(run, out=tmp_path)
    half = BridgeTrainer(again)
    while half.learner.step < 12:
        half.advance()
    half.save()
    torch.manual_seed(99)
    BridgeTrainer(again).train()
    for name in (BRIDGE, "model.safetensors"):
        assert (tmp_path / "device" / name).read_bytes() == (run.out / "device" / name).read_bytes()


def test_the_server_hears_what_was_trained(run: BridgeRun, home: Path) -> None:
    """The engine, fed catch-up tokens with int8 features, draws what the training forward draws at every
    place that was asked; without the features it draws something else somewhere."""
    trainer, cloud = BridgeTrainer(run), load_cloud(str(home), home.parent)
    package, pair = load_device_package(str(home), home.parent), trainer.pair
    heard = pair.hear(trainer.held_back, [0], [0.8])
    bridge = trainer.averaged_bridge()
    bridge.phi.load_state_dict(package.model.phi.state_dict())
    with torch.no_grad():
        logits = [
            cloud_logits(pair.cloud, heard.captions, heard.replayed, added, pair.warp.guidance)
            for added in (bridge(heard.replayed), None)
        ]
    noisy = [warp_logits(judged, pair.warp) + heard.replayed.noise_BTV for judged in logits]
    drawn = [log_p_BTV.argmax(-1)[0].tolist() for log_p_BTV in noisy]
    places = range(20, 256, 12)
    served = [_served(cloud, trainer, heard.replayed, place) for place in places]
    assert served == [drawn[0][place] for place in places]
    assert served != [drawn[1][place] for place in places]


def _served(cloud, trainer, replayed, place: int) -> int:
    """What the cloud server draws at `place` behind the replayed tokens and the features of kept ones."""
    held, warp = trainer.held_back, trainer.pair.warp
    engine = CloudEngine(cloud, 1)
    order = Open(
        model=cloud.name, cloud_digest=cloud.digest, codebook_size=64, prompt=held.captions[0],
        seed=held.seeds[0], warp=warp, prefix_tokens=0, acceptance="coupled",
    )  # fmt: skip
    kept = replayed.kept_BT[0, :place].nonzero()[:, 0]
    device = load_device(trainer.run.out / "device")
    with torch.no_grad():
        feature = device.phi(replayed.hidden_BTD[0, kept], replayed.summary_BTS[0, kept])
    codes, scale = quantise_features(feature)
    features = Features(kept.numpy().astype(np.uint16), codes.numpy(), scale.numpy())
    tokens = replayed.tokens_BT[0, :place].numpy().astype(np.int32)
    guess = np.zeros(1, np.int32)
    [answer] = engine.run([Job(engine.open(order), guess, tokens, features)])
    return 0 if answer.judgement.accepted else answer.judgement.token


def test_features_are_rounded_as_they_travel_and_learn_as_if_they_were_not() -> None:
    feature = torch.linspace(-3, 5, 40).reshape(5, 8).requires_grad_()
    codes, scale = quantise_features(feature.detach())
    rounded(feature).square().sum().backward()
    torch.testing.assert_close(rounded(feature).detach(), codes.float() * scale.float()[:, None])
    torch.testing.assert_close(feature.grad, 2 * rounded(feature).detach())


def test_the_surest_are_kept_behind_the_prefix() -> None:
    score = torch.tensor([[0.0, 0.0, 5.0, 1.0, 2.0, 9.0]] * 2)
    kept = surest(score, [0.5, 1.0], 2)
    assert kept.tolist() == [[False, False, False, True, True, False], [False, False, True, True, True, True]]


def test_impossible_bridges_are_refused(run: BridgeRun, home: Path, tmp_path: Path) -> None:
    for wrong, why in (
        ({"gate": "hunch"}, r"'hunch'.*interval"),
        ({"least": 0.9, "most": 0.2}, r"0\.9 to 0\.2"),
        ({"passes": 0}, r"passes 0"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            Keeping(**wrong)
    with pytest.raises(InvalidRequest, match="overwritten"):
        BridgeTrainer(replace(run, device=tmp_path / "device", out=tmp_path))
    other = tmp_path / "other"
    shutil.copytree(run.cloud, other)
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    with pytest.raises(ModelMismatch, match="belongs to cloud"):
        BridgeTrainer(replace(run, cloud=other, out=tmp_path / "out"))
