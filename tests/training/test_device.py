"""Distillation in its variants: heads, rows, teachers, mixtures, early stop, resuming; and the ablation."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from device_client.drafter import Drafter
from shared.errors import InvalidRequest
from shared.models.inter_head import quantise_features
from shared.models.zoo import load_device_package
from tests.training.conftest import device_run
from training.ablate import COLUMNS, ablate, variants
from training.device import DeviceTrainer, forced_hidden, radius_figures
from training.drawn import Sequences
from training.engine import Engine
from training.inter_dro import TERMS, InterDRO
from training.mixture import Blend, Mixture
from training.stopping import EarlyStop
from training.teacher import Shards, dense, sparsest

VARIANTS: dict[str, dict[str, Any]] = {
    "three heads": {"heads": 3},
    "five heads, voting, two rows": {"heads": 5, "combine": "voting", "distill_guidance": False},
    "two layers, real pool, fp16 teacher": {"layers": 2, "real": 3, "teacher": "fp16"},
    "two heads, two rows, sparse teacher": {
        "heads": 2, "distill_guidance": False, "drawn_share": 1.0, "teacher": "sparse", "teacher_ids": 8,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_variant_equals_an_uninterrupted_one(
    name: str, artwork: Path, cloud_home: Path, tmp_path: Path
) -> None:
    """To the bit, early stop included."""
    run = device_run(artwork, cloud_home, tmp_path / "whole", patience=3, **VARIANTS[name])
    whole = DeviceTrainer(run)
    whole.learn()
    half_run = replace(run, out=tmp_path / "half")
    half = DeviceTrainer(half_run)
    while half.learner.step < 2:
        half.advance()
    half.save()  # and not its evaluation
    torch.manual_seed(99)  # nothing may depend on global random state
    again = DeviceTrainer(half_run)
    again.learn()
    weights = again.shipped_model().state_dict()
    assert all(torch.equal(value, weights[n]) for n, value in whole.shipped_model().state_dict().items())
    assert again.stopping.seen == whole.stopping.seen


def test_many_heads_and_two_rows_draft_as_they_were_trained(
    artwork: Path, cloud_home: Path, tmp_path: Path
) -> None:
    """Step by step the drafter finds the centres and the features of one teacher-forced forward."""
    run = device_run(
        artwork, cloud_home, tmp_path / "model", steps=1, heads=5, combine="ensemble", distill_guidance=False
    )
    trainer = DeviceTrainer(run)
    trainer.train()
    shutil.copytree(cloud_home / "vq", run.out / "vq")
    package, held = load_device_package(str(run.out), run.out.parent), trainer.held_back
    model, tokens = package.model, held.tokens_NT[0].tolist()
    with torch.no_grad():
        hidden = forced_hidden(model, held.captions[:1], held.tokens_NT[:1], run.rows)[:, 0]
        centre, radius = model.centre(hidden, run.guidance), model.radius(hidden[0])
    drafter = Drafter(package, held.captions[0], held.seeds[0], package.calibration.warp, gate="interval")
    steps = [drafter.step(tokens[:place]) for place in range(6)]
    for place, step in enumerate(steps):
        torch.testing.assert_close(step.centre_1V[0], centre[place], rtol=1e-3, atol=1e-3)
    codes, scale = drafter.features(steps)
    log_q = torch.cat([step.log_q_1V for step in steps])
    with torch.no_grad():
        wanted = quantise_features(model.feature(hidden[0, :6], centre[:6], radius[:6], log_q))
    torch.testing.assert_close(torch.from_numpy(codes).float(), wanted[0].float(), rtol=0, atol=2)
    torch.testing.assert_close(torch.from_numpy(scale), wanted[1], rtol=1e-2, atol=1e-3)


def test_metrics_of_a_step_and_of_an_evaluation(artwork: Path, cloud_home: Path, tmp_path: Path) -> None:
    run = device_run(artwork, cloud_home, tmp_path, steps=2, heads=2, loss=InterDRO().without("upper"))
    DeviceTrainer(run).learn()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2]
    for line in lines[:2]:
        assert "upper" not in line and min(line[name] for name in ("anchor", "lower", "centre")) > 0
        parts = line["gradient_trunk"] ** 2 + line["gradient_radius"] ** 2
        assert 0 < parts <= line["gradient"] ** 2 * 1.01
        assert line["radius_mean"] > line["radius_within"] > 0 and line["radius_clamped"] == 0
    assert 0 < lines[2]["differ"] < 1 and 0 <= lines[2]["auroc_interval"] <= 1


def test_radius_figures_tell_a_uniform_radius() -> None:
    radius_TV = torch.tensor([[1.0, 1.0], [3.0, 3.0]])
    figures = radius_figures(radius_TV, 3.0)
    assert figures["radius_mean"] == 2 and figures["radius_std"] > 1
    assert figures["radius_within"] == 0 and figures["radius_clamped"] == 0.5


def test_kept_distributions_are_those_computed_now(
    artwork: Path, cloud_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of two images: rows across shards, a shard that is there is not made again."""
    monkeypatch.setattr("training.teacher._SHARD", 2)
    run = device_run(artwork, cloud_home, tmp_path, teacher="fp16", drawn_share=1.0, drawn=5)
    trainer, engine = DeviceTrainer(run), Engine()
    mixture = trainer.mixture
    teacher, shards = mixture.teacher, mixture.shards
    assert isinstance(shards, Shards)
    files = sorted(shards.folder.iterdir())
    assert [file.stem for file in files] == ["00000", "00001", "00002"]
    before = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    teacher.keep(mixture.pool, engine)
    after = [file.stat().st_mtime_ns for file in files]
    assert (after[0], after[2]) == (before[0], before[2]) and files[1].exists()
    picked = [4, 0, 3]
    captions = [mixture.pool.captions[row] for row in picked]
    now = teacher.judge(captions, mixture.pool.tokens_NT[picked], engine)
    # Batches of another size pad captions to another length, and everything is bf16.
    torch.testing.assert_close(shards.read(picked), now, rtol=0, atol=0.05)
    sparse = dense(sparsest(now, 8), now.shape[-1])
    torch.testing.assert_close(sparse.sum(-1), torch.ones(3, 256))
    top = now.topk(8).indices
    torch.testing.assert_close(sparse.gather(-1, top), now.gather(-1, top), rtol=2e-3, atol=1e-4)
    assert (sparse > 0).all() or now.topk(8).values.sum(-1).max() > 0.999


def test_a_batch_is_a_blend(artwork: Path, cloud_home: Path, tmp_path: Path) -> None:
    """Drawn rows first, real ones behind them; which ones depends on the step alone."""
    trainer = DeviceTrainer(device_run(artwork, cloud_home, tmp_path, drawn_share=0.75, real=3))
    pool = trainer.mixture.pool
    assert len(pool) == 16 + 3 and len(pool.seeds) == 16
    batch, again = trainer.mixture.batch(7), trainer.mixture.batch(7)
    assert torch.equal(batch.tokens_BT, again.tokens_BT)
    rows = [(pool.tokens_NT == tokens).all(-1).nonzero()[0].item() for tokens in batch.tokens_BT]
    assert max(rows[:3]) < 16 <= rows[3]
    assert not torch.equal(trainer.mixture.batch(8).tokens_BT, batch.tokens_BT)


def test_impossible_runs_are_refused(artwork: Path, cloud_home: Path, tmp_path: Path) -> None:
    for wrong, why in (
        ({"heads": 99}, r"99 heads.*1 to 16"),
        ({"combine": "mean"}, r"'mean'.*ensemble, voting"),
        ({"layers": 9}, r"9 layers.*1 to 2"),
        ({"teacher": "memory"}, r"'memory'.*fly, fp16, sparse"),
        ({"teacher": "fp16"}, r"fresh scenes.*--real"),
        ({"drawn_share": 1.5}, r"1\.5.*0 to 1"),
        ({"stop_gate": "never"}, r"'never'.*interval"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            DeviceTrainer(device_run(artwork, cloud_home, tmp_path / "never", **wrong))
    with pytest.raises(InvalidRequest, match=r"'middle'.*anchor, lower, upper, centre"):
        InterDRO().without("middle")
    with pytest.raises(InvalidRequest, match="every term"):
        InterDRO().without(*TERMS)


def test_early_stop_waits_for_its_patience(tmp_path: Path) -> None:
    stop = EarlyStop(tmp_path / "stopping.json", 2)
    seen = [(10, 0.6, True), (20, 0.8, True), (30, 0.8, False), (40, 0.7, False)]
    for step, figure, best in seen:
        assert not stop.over
        assert stop.saw(step, figure) is best
    stop.write()
    assert stop.over and stop.best == 20
    again = EarlyStop(stop.file, 3)
    again.resume()
    assert again.seen == stop.seen and not again.over
    endless = EarlyStop(stop.file, 0)
    endless.resume()
    assert not endless.over


def test_a_run_that_stops_early_ships_its_best_weights(
    artwork: Path, cloud_home: Path, tmp_path: Path
) -> None:
    """A figure that nothing learns (the gate `random`) ends the run; the weights are those of its best
    evaluation."""
    run = device_run(
        artwork, cloud_home, tmp_path, steps=40, checkpoint_every=1, patience=1, stop_gate="random"
    )
    trainer = DeviceTrainer(run)
    trainer.learn()
    stopping = trainer.stopping
    assert trainer.learner.step < 40 and stopping.best == trainer.learner.step - 1
    shipped = trainer.shipped_model().state_dict()
    last = trainer.averaged_model().state_dict()
    short = DeviceTrainer(replace(run, out=tmp_path / "short"))
    while short.learner.step < stopping.best:
        short.advance()
    best = short.averaged_model().state_dict()
    assert all(torch.equal(value, best[name]) for name, value in shipped.items())
    assert not all(torch.equal(value, last[name]) for name, value in shipped.items())


def test_ablation_fills_its_table_and_goes_on(artwork: Path, cloud_home: Path, tmp_path: Path) -> None:
    run = device_run(artwork, cloud_home, tmp_path / "ablation", steps=1, batch=2, checkpoint_every=1)
    names = [variant.name for variant in variants(run, ("loss", "guidance", "layers", "heads"), 5)]
    expected = ["whole", *(f"without {term}" for term in TERMS), "prob bounds", "two rows"]
    expected += [f"layers {count}" for count in (2, 3, 5)] + [f"heads {count}" for count in (2, 3, 4, 5)]
    assert names == [*expected, "heads 5 voting"]
    first = ablate(run, ("layers",), Engine())
    lines = (run.out / "table.jsonl").read_text().splitlines()
    text = ablate(run, ("layers", "loss"), Engine())
    assert (run.out / "table.jsonl").read_text().splitlines()[: len(lines)] == lines
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert rows[0] == ["variant", "steps", *COLUMNS]
    assert [row[0] for row in rows[2:]] == [*expected[:6], "layers 2"]
    assert all(0 <= float(cell) <= 1 for row in rows[2:] for cell in row[2:6])
    assert set(first.splitlines()) <= set(text.splitlines()) and (run.out / "table.md").read_text() == text
    assert load_device_package(str(run.out / "layers-2"), tmp_path).model.base.config.n_layer == 2
    with pytest.raises(InvalidRequest, match="another config"):
        ablate(replace(run, steps=2), (), Engine())
    with pytest.raises(InvalidRequest, match=r"'colours'.*layers"):
        ablate(run, ("colours",), Engine())


def test_a_mixture_needs_no_pool_for_a_teacher_on_the_fly(
    artwork: Path, cloud_home: Path, tmp_path: Path
) -> None:
    trainer = DeviceTrainer(device_run(artwork, cloud_home, tmp_path, drawn_share=0.0))
    blend = Blend(4, 0.0, 0, 0)
    mixture = Mixture(
        blend, Sequences((), torch.zeros(0, 256, dtype=torch.int64)), trainer.mixture.scenes,
        trainer.mixture.tokenizer, trainer.mixture.teacher,
    )  # fmt: skip
    mixture.start(0, Engine())
    assert mixture.batch(0).p_BTV.shape == (4, 256, 64)
