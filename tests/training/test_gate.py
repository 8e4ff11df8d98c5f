"""`ciar-train gate`: fits learn what there is to learn; files that do not belong are refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shared.decoding.calibration import GateTable, keep_promises, with_calls
from shared.errors import InvalidRequest, ModelMismatch, ModelUnavailable
from shared.models.gate_file import GATE_FILE, read_learned, write_learned
from shared.models.zoo import CALIBRATION, load_device_package
from tests.tiny import build_tiny_model, tiny_gate
from training.cli import main
from training.gate import GateRun, fit_model

PROMPTS = ("a red cat", "a dog on a blue background", "a banana", "green house")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "pair", grid=6)


def test_fitting_a_pair_writes_what_the_device_loads(folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(folder, tmp_path / "pair")
    before = load_device_package(str(model), model).digest
    cache = tmp_path / "drawn.safetensors"
    fitted = fit_model(GateRun(model, PROMPTS * 6, cache, steps=200))
    package = load_device_package(str(model), model)
    assert package.digest == before == package.calibration.device_digest
    assert package.learned is not None and torch.equal(package.learned.w1_HS, fitted.learned.w1_HS)
    assert package.calibration.default_gate == "agreement"
    assert fitted.ranks["agreement"] > 0.6 > abs(fitted.ranks["random"] - 0.5) + 0.4
    assert fitted.ranks["agreement"] > max(fitted.ranks[name] for name in ("random", "discrete")) - 0.05
    for table in package.calibration.gates.values():
        assert list(table.thresholds) == sorted(table.thresholds, reverse=True)
        assert not table.promises  # those are for `ciar-eval rehearse` to make
    again = fit_model(GateRun(model, PROMPTS * 6, cache, steps=200))
    assert again.calibration == fitted.calibration  # keyed by seeds, not by what ran before


def test_the_verb_says_how_every_gate_ranks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(folder, tmp_path / "pair")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    flags = ["--prompts", str(tmp_path / "prompts.txt"), "--images", "6"]
    assert main(["gate", str(model), *flags]) == 0
    assert "6 images; AUROC interval 0." in capsys.readouterr().out
    assert main(["gate", str(model)]) == 1 and "--prompts and --data" in capsys.readouterr().err
    assert main(["gate", str(model), "--prompts", "nowhere.txt"]) == 1
    assert "nowhere.txt" in capsys.readouterr().err


def test_a_calibration_of_another_cloud_or_device_is_refused(folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(folder, tmp_path / "pair")
    file = model / "device" / CALIBRATION
    text, raw = file.read_text(), json.loads(file.read_text())
    for key, named in (("cloud_digest", "belongs to cloud feed"), ("device_digest", "device weights feed")):
        file.write_text(json.dumps({**raw, key: "feed"}))
        with pytest.raises(ModelMismatch, match=f"{named}.*ciar-train gate"):
            load_device_package(str(model), model)
    file.write_text(text)
    write_learned(model / "device" / GATE_FILE, tiny_gate(), "feed")
    with pytest.raises(ModelMismatch, match=r"gate\.safetensors was fitted for cloud feed.*ciar-train gate"):
        load_device_package(str(model), model)


def test_a_gate_is_not_fitted_to_a_strange_device(folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(folder, tmp_path / "pair")
    other = build_tiny_model(tmp_path / "other", grid=6, seed=1)
    shutil.copytree(other / "cloud", model / "cloud", dirs_exist_ok=True)
    with pytest.raises(ModelMismatch, match="belongs to cloud"):
        fit_model(GateRun(model, PROMPTS))


def test_damaged_gate_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / GATE_FILE
    assert read_learned(file, "digest") is None
    write_learned(file, tiny_gate(), "digest")
    whole = read_learned(file, "digest")
    assert whole is not None and torch.equal(whole.w1_HS, tiny_gate().w1_HS)
    learned = {name: value.contiguous() for name, value in vars(tiny_gate()).items()}
    for broken in ({"w1_HS": torch.zeros(64, 9)}, {"extra": torch.zeros(1)}):
        save_file({**learned, **broken}, file, {"cloud_digest": "digest"})
        with pytest.raises(ModelUnavailable, match=next(iter(broken))):
            read_learned(file, "digest")
    save_file({**learned, "b2": torch.tensor(float("nan"))}, file, {"cloud_digest": "digest"})
    with pytest.raises(ModelUnavailable, match="not finite"):
        read_learned(file, "digest")
    file.write_bytes(b"no tensors")
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        read_learned(file, "digest")


TABLE = GateTable((0.0, 1.0), (0.5,), (0.1, 0.2, 0.3, 0.4), (0.9, 0.7, 0.5, 0.3))


def test_measured_call_rates_move_the_thresholds() -> None:
    """Every tau turns out to ask half of what it was fitted for: 0.2 is now where 0.4 was."""
    moved = with_calls(TABLE, [0.3, 0.9, 0.7], [0.2, 0.05, 0.1])
    assert moved.threshold(0.2) == pytest.approx(0.3) and moved.threshold(0.1) == pytest.approx(0.7)
    assert moved.budget(0.3) == pytest.approx(0.2, abs=0.01)
    assert with_calls(TABLE, [0.3, 0.9], [0.4, 0.1]) == TABLE


def test_promises_hold_on_new_images_and_need_enough_old_ones() -> None:
    """500 repetitions, 60 images each: the mean loss of a new image stays below zero for every bound."""
    rng = np.random.default_rng(0)
    taus, base = [0.1, 0.2, 0.3, 0.4], np.array([[0.002], [0.01], [0.03], [0.08]])
    kept = np.array([[0.5], [0.6], [0.7], [0.8]])
    losses = []
    for _ in range(500):
        wrong = rng.gamma(2.0, base / 2, (4, 61))
        held, bounds = keep_promises(taus, wrong[:, :60], np.broadcast_to(kept, (4, 60)), (0.03, 0.05, 0.1))
        assert list(bounds) == sorted(bounds)
        for promise, bound in zip(held, bounds, strict=True):
            place = taus.index(bound)
            losses.append(wrong[place, 60] - promise * kept[place, 0])
    assert len(losses) > 500 and np.mean(losses) < 0
    few = keep_promises(taus, np.zeros((4, 8)), np.broadcast_to(kept, (4, 8)), (0.05, 0.3))
    assert few == ((0.3,), (0.4,))  # 8 images cannot promise 5 %: the worst new one alone could break it


def test_a_threshold_that_keeps_nothing_breaks_no_promise() -> None:
    """It proves nothing either: with no token kept there is no room for the worst new image."""
    kept, wrong = np.zeros((2, 60)), np.zeros((2, 60))
    kept[1] = 0.5
    assert keep_promises([-9.0, 0.1], wrong, kept, (0.05,)) == ((0.05,), (0.1,))
    assert keep_promises([-9.0], wrong[:1], kept[:1], (0.05,)) == ((), ())
    assert keep_promises([-9.0, 0.1], wrong + np.array([[0.1], [0.0]]), kept, (0.05,)) == ((), ())


def test_a_promise_that_no_threshold_keeps_is_refused_by_name() -> None:
    table = replace(TABLE, promises=(0.05, 0.1), bounds=(0.2, 0.4))
    assert (table.bound(0.05), table.bound(0.07), table.bound(0.5)) == (0.2, 0.2, 0.4)
    with pytest.raises(InvalidRequest, match=r"0\.01 is not calibrated.*0\.05, 0\.1"):
        table.bound(0.01)
