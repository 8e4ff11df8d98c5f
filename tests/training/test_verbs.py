"""The training verbs end to end on a tiny preset: they resume to the bit, and what they export loads and
draws."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.decoding.acceptance import RULES
from shared.errors import InvalidRequest
from shared.models.checkpoint import digest, load_device, load_model, load_vq
from shared.models.zoo import BRIDGE, load_cloud, load_device_package
from training.base import BaseRun, BaseTrainer, falling, require_words
from training.carry import seen_together
from training.cli import main
from training.data import load_pictures
from training.device import DeviceRun, DeviceTrainer
from training.inter_dro import InterDRO, inter_dro
from training.loading import SceneBatch
from training.presets import preset
from training.scenes import Scenes
from training.tokenizer import TokenizerRun, TokenizerTrainer, flat_cells, spherical_kmeans


@pytest.fixture(scope="session")
def runs(artwork: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a base and a device trained for a few steps, one after the other, laid out as a model
    folder."""
    root = tmp_path_factory.mktemp("runs")
    tokenizer = TokenizerRun(artwork, root, preset="tiny", steps=12, batch=4, checkpoint_every=12)
    TokenizerTrainer(replace(tokenizer, out=root / "tokenizer")).train()
    base = BaseRun(
        artwork, root / "tokenizer/vq", root / "base", preset="tiny", steps=6, batch=4, checkpoint_every=6
    )
    BaseTrainer(base).train()
    DeviceTrainer(device_run(artwork, root)).train()
    folders = {
        "--tokenizer": "tokenizer/vq",
        "--cloud": "base/cloud",
        "--device": "device/device",
        "--out": "model",
    }
    flags = [word for flag, folder in folders.items() for word in (flag, str(root / folder))]
    assert main(["bundle", *flags]) == 0
    return root


def device_run(artwork: Path, root: Path) -> DeviceRun:
    """Four steps of distillation from the session's base."""
    return DeviceRun(
        artwork, root / "tokenizer/vq", root / "base/cloud", root / "device", preset="tiny", steps=4, batch=4,
        drawn=4, calibration_images=4, checkpoint_every=2,
    )  # fmt: skip


def test_exports_load_and_belong_together(runs: Path) -> None:
    cloud = load_cloud(str(runs / "model"), runs)
    package = load_device_package(str(runs / "model"), runs)
    assert package.cloud_digest == cloud.digest == digest(runs / "base/cloud")
    assert load_device(runs / "device/device").base.config.n_layer == 1
    assert (
        load_vq(runs / "tokenizer/vq").config.codebook_size
        == load_model(runs / "base/cloud").config.vocab_size
    )
    table = package.calibration.table("margin")
    assert list(table.scores) == sorted(table.scores) and list(table.differ) == sorted(table.differ)
    assert set(RULES) and (runs / "base" / "samples-000006.png").is_file()


@pytest.mark.parametrize("verb", ["tokenizer", "base"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    verb: str, artwork: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after half of its steps, a run ends in the same weights to the bit."""
    if verb == "tokenizer":
        run = TokenizerRun(artwork, tmp_path, preset="tiny", steps=12, batch=4, checkpoint_every=6)
        trainer, export, whole = TokenizerTrainer, "vq", runs / "tokenizer/vq"
    else:
        run = BaseRun(
            artwork, runs / "tokenizer/vq", tmp_path, preset="tiny", steps=6, batch=4, checkpoint_every=3
        )
        trainer, export, whole = BaseTrainer, "cloud", runs / "base/cloud"
    half = trainer(run)
    while half.learner.step < run.checkpoint_every:
        half.advance()
    half.save()
    torch.manual_seed(99)  # nothing may depend on global random state
    trainer(run).train()
    assert digest(tmp_path / export) == digest(whole)


def test_a_run_that_starts_from_another_goes_on_where_that_one_stands(
    artwork: Path, runs: Path, tmp_path: Path
) -> None:
    """Six steps of another run and two of its own, cooling down."""
    run = BaseRun(
        artwork, runs / "tokenizer/vq", tmp_path / "longer", preset="tiny", steps=8, batch=4,
        checkpoint_every=8, cooldown=2, start_from=runs / "base",
    )  # fmt: skip
    longer = BaseTrainer(run)
    assert longer.learner.step == 6
    before = BaseTrainer(replace(run, out=tmp_path / "same")).averaged_model().state_dict()
    longer.train()
    after = load_model(tmp_path / "longer/cloud").state_dict()
    assert longer.learner.step == 8 and any(not torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(InvalidRequest, match="no checkpoint"):
        BaseTrainer(replace(run, out=tmp_path / "new", start_from=tmp_path / "nowhere"))


def test_rates_fall_over_all_steps_or_over_the_last() -> None:
    assert falling([1.0], 500, 1000) == [pytest.approx(0.51)]
    assert falling([1.0], 500, 1000, 200) == [1.0]
    assert falling([1.0], 900, 1000, 200) == [pytest.approx(0.51)]
    assert falling([2.0], 1000, 1000, 200) == [pytest.approx(0.04)]
    assert falling([1.0], 24, 1000, 200) == [pytest.approx(0.5)]


def test_a_base_grown_from_itself_begins_where_it_stood(artwork: Path, runs: Path, tmp_path: Path) -> None:
    """With its own tokenizer every code meets itself alone, so that all it saw is carried over as it was."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "cloud").symlink_to(runs / "base/cloud")
    (folder / "vq").symlink_to(runs / "tokenizer/vq")
    run = BaseRun(artwork, folder / "vq", tmp_path / "grown", preset="tiny", steps=1, grown_from=folder)
    trainer = BaseTrainer(run)
    older = load_model(folder / "cloud").state_dict()
    tokenizer = load_vq(folder / "vq")
    seen = seen_together(tokenizer, tokenizer, [SceneBatch.of([trainer.scenes[i] for i in range(16)])])
    assert torch.equal(seen, seen.diag().diag()) and seen.sum() == 16 * 256
    for name, value in trainer.model.state_dict().items():
        if name in ("gpt.tok_embeddings.weight", "gpt.output.weight"):
            met = seen.diag() > 0
            torch.testing.assert_close(value[met], older[name][met])
        else:
            assert torch.equal(value, older[name]), name


def test_polishing_a_decoder_keeps_the_tokens(artwork: Path, runs: Path, tmp_path: Path) -> None:
    run = TokenizerRun(
        artwork,
        tmp_path,
        preset="tiny",
        steps=2,
        batch=4,
        checkpoint_every=2,
        decoder_of=runs / "tokenizer/vq",
    )
    TokenizerTrainer(run).train()
    before, after = (load_vq(folder).state_dict() for folder in (runs / "tokenizer/vq", tmp_path / "vq"))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_a_run_folder_refuses_other_settings(artwork: Path, runs: Path) -> None:
    run = replace(device_run(artwork, runs), steps=5)
    with pytest.raises(InvalidRequest, match=r"another config: steps was .*, is 5\."):
        DeviceTrainer(run)


def test_a_run_resumes_after_a_field_was_added_to_its_config(
    artwork: Path, runs: Path, tmp_path: Path
) -> None:
    """A field that is younger than the run has its default, which leaves the run as it was."""
    run = replace(device_run(artwork, runs), out=tmp_path)
    DeviceTrainer(run)
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["seed"], saved["settings"]["model"]["head_hidden"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    DeviceTrainer(run)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == run.seed


def test_a_device_needs_the_captions_of_its_cloud(artwork: Path, runs: Path) -> None:
    """The scenes of another preset say words that the cloud was never told."""
    cloud = load_model(runs / "base/cloud")
    pictures = load_pictures(artwork)
    require_words(cloud, Scenes(pictures, preset("tiny").scenes, 0), "tiny")
    with pytest.raises(InvalidRequest, match=r"'unicorn'.*'owl'.*--preset"):
        owl = replace(pictures[0], name="owl")
        require_words(cloud, Scenes([owl], preset("tiny").scenes, 0), "unicorn")
    with pytest.raises(InvalidRequest, match="16 words"):
        require_words(cloud, Scenes(pictures, preset("all").scenes, 0), "all")


def test_the_verbs_hand_on_their_flags(
    artwork: Path, cloud_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device, its bridge and an ablation from the command line, each in one step."""
    shared = ["--data", str(artwork), "--cloud", str(cloud_home / "cloud"), "--preset", "tiny"]
    shared += ["--steps", "1", "--images", str(cloud_home / "images"), "--drawn", "16", "--threads", "1"]
    device = [*shared, "--tokenizer", str(cloud_home / "vq"), "--batch", "2", "--no-distill-guidance"]
    device += ["--calibration-images", "4", "--heads", "2", "--combine", "voting"]
    device += ["--without", "upper,centre", "--bounds", "prob"]
    device += ["--teacher", "sparse", "--teacher-ids", "4", "--drawn-share", "1", "--precision", "fp32"]
    out = tmp_path / "device"
    assert main(["device", *device, "--out", str(out), "--patience", "2"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["heads"], config["teacher_ids"], config["loss"]["use_upper"]) == (2, 4, False)
    assert load_device(out / "device").config.distilled_guidance is None
    bridge = [*shared, "--device-model", str(out / "device"), "--held-back", "2", "--batch", "2"]
    assert main(["bridge", *bridge, "--gate", "margin", "--out", str(tmp_path / "bridge")]) == 0
    assert (tmp_path / "bridge/device" / BRIDGE).is_file()
    capsys.readouterr()
    assert main(["ablate", *device, "--out", str(tmp_path / "ablation"), "--groups", "guidance"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["whole", "two rows"]
    assert main(["device", *device, "--out", str(out), "--device", "tpu"]) == 1
    assert "'tpu'" in capsys.readouterr().err


def test_command_line_errors(artwork: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main(["tokenizer", "--data", str(tmp_path), "--out", out, "--preset", "tiny"]) == 1
    assert "captions.jsonl" in capsys.readouterr().err
    assert main(["tokenizer", "--data", str(artwork), "--out", out, "--preset", "huge"]) == 1
    assert "'huge'" in capsys.readouterr().err
    assert main(["tokenizer", "--data", str(artwork), "--out", out, "--batch", "none"]) == 2
    assert "batch" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["paint"])


def test_flat_cells_are_exactly_flat() -> None:
    pixels = torch.full((1, 16, 16, 3), 9, dtype=torch.uint8)
    pixels[0, 3, 12, 1] = 10
    flat = flat_cells(pixels, torch.full((1, 3), 9, dtype=torch.uint8))
    assert flat.tolist() == [[[True, False], [True, True]]]


def test_spherical_kmeans_finds_separated_directions() -> None:
    axes = torch.eye(4)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 4)) * 0.02).float()
    points = torch.nn.functional.normalize(axes.repeat(50, 1) + noise, dim=-1)
    centres = spherical_kmeans(points, 4, np.random.default_rng(1), rounds=30)
    assert (centres @ axes.T).max(0).values.min() > 0.99 or (centres @ axes.T).max(1).values.min() > 0.99


def test_inter_dro_is_least_at_the_teacher_and_each_term_switches_off() -> None:
    """With the centre at log p the KL vanishes; a uniform radius is invisible to the logit form (SPEC section
    7)."""
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    exact, radius = p.log(), torch.full((2, 3), 0.5)
    terms = inter_dro(InterDRO(), exact, radius, p)
    assert terms["centre"].abs() < 1e-6
    torch.testing.assert_close(terms["lower"], terms["upper"])
    worse = inter_dro(InterDRO(), exact + torch.tensor([0.0, 2.0, 0.0]), radius, p)
    assert worse["centre"] > 0.1 and worse["anchor"] > terms["anchor"]
    for name, gone in (("anchor", {"anchor"}), ("upper", {"upper"}), ("lower", {"lower", "worst_case"})):
        left = inter_dro(replace(InterDRO(), **{f"use_{name}": False}), exact, radius, p)
        assert set(left) == set(terms) - gone
    assert "centre" not in inter_dro(InterDRO(use_centre=False), exact, radius, p)
    prob = inter_dro(InterDRO(bounds="prob"), exact, radius, p)
    assert prob["lower"] != terms["lower"]
    with pytest.raises(InvalidRequest, match="sideways"):
        InterDRO(bounds="sideways")


def test_worst_case_weights_favour_the_worst_position() -> None:
    """eq. 10: as alpha grows the weighted cross entropy climbs from the mean to the maximum."""
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    centre, radius = torch.tensor([[0.0, 0.0], [-2.0, 2.0]]), torch.zeros(2, 2)
    cross = -(p * centre.log_softmax(-1)).sum(-1)
    values = [inter_dro(InterDRO(alpha=a), centre, radius, p)["worst_case"] for a in (0.0, 1.0, 50.0)]
    torch.testing.assert_close(values[0], cross.mean())
    torch.testing.assert_close(values[2], cross.max())
    assert values[0] < values[1] < values[2]
