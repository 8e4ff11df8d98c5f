"""One process, two processes, sharded or not: the same run. Workers compose the same scenes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shared.errors import CiarError, InvalidRequest
from tests.training.conftest import device_run
from tests.training.together import STRATEGIES, fail, train_both
from training.base import BaseRun, BaseTrainer
from training.data import load_pictures
from training.device import DeviceTrainer
from training.engine import Engine, Place, launch
from training.inter_dro import InterDRO
from training.loading import scene_batches
from training.presets import preset
from training.runs import RunFolder
from training.scenes import Scenes, scene_split


def test_two_processes_train_as_one_does(artwork: Path, cloud_home: Path, tmp_path: Path) -> None:
    """DDP and FSDP over gloo: losses, gradients, weights and moments of two steps, the second one resumed
    from a checkpoint, equal those of a single process up to rounding.

    What belongs to the rows of one process is off here: the worst case of eq. 10, corrupted inputs, and
    scenes without a caption, whose unguided prefix is as long as their neighbour's caption.
    """
    loss = InterDRO(use_lower=False)
    device = device_run(artwork, cloud_home, tmp_path / "one/device", loss=loss, drawn_share=1.0)
    base = BaseRun(
        artwork, cloud_home / "vq", tmp_path / "one/base", preset="tiny", steps=4, batch=4, corruption=0.0,
        seed=_seed_of_captions(artwork, 8),
    )  # fmt: skip
    engine, alone = Engine(Place(precision="fp32")), []
    for trainer in (DeviceTrainer(device, engine), BaseTrainer(base, engine)):
        alone += [trainer.advance(), trainer.advance()]
        trainer.save()
    launch(Place(devices=2), train_both, device, base, tmp_path)
    for strategy in STRATEGIES:
        world, *records = json.loads((tmp_path / f"{strategy}.json").read_text())
        assert world == 2
        for one, two in zip(alone, records, strict=True):
            assert {name: two[name] for name in one} == pytest.approx(one, rel=2e-3, abs=2e-3)
        for name, run in (("device", device), ("base", base)):
            states = [
                RunFolder(folder).begin(replace(run, out=folder), preset("tiny"))
                for folder in (tmp_path / "one" / name, tmp_path / strategy / name)
            ]
            for kind in ("model", "average"):
                torch.testing.assert_close(states[1][kind], states[0][kind], rtol=1e-3, atol=2e-4)


def _seed_of_captions(artwork: Path, count: int) -> int:
    """The first seed whose first `count` scenes all say something."""
    chosen = preset("tiny")
    for seed in range(100):
        scenes, _ = scene_split(artwork, chosen.concepts, chosen.scenes, seed)
        if all(scenes.layout(index).caption for index in range(count)):
            return seed
    raise AssertionError("no such seed")


def test_a_failed_process_says_why() -> None:
    with pytest.raises(CiarError, match=r"of 2 failed.*second floor"):
        launch(Place(devices=2), fail)


@pytest.mark.parametrize("workers", [0, 2])
def test_composed_scenes_depend_on_their_number_alone(artwork: Path, workers: int) -> None:
    """Three batches from step 5 on, by this process or by two others; global random state is untouched."""
    scenes = Scenes(load_pictures(artwork), preset("tiny").scenes, seed=3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    batches = scene_batches(scenes, 5, 4, Engine(Place(workers=workers)))
    for step in (5, 6, 7):
        batch = next(batches)
        wanted = [scenes[4 * step + row] for row in range(4)]
        assert batch.captions == tuple(scene.caption for scene in wanted)
        assert all(
            torch.equal(pixels, torch.from_numpy(scene.pixels))
            for pixels, scene in zip(batch.pixels_BHW3, wanted, strict=True)
        )
        assert batch.backgrounds_B3.tolist() == [list(scene.background) for scene in wanted]
    assert torch.equal(torch.get_rng_state(), before)


def test_impossible_places_are_refused() -> None:
    for wrong, why in (
        ({"device": "abacus"}, r"'abacus'.*cpu, cuda"),
        ({"strategy": "hope"}, r"'hope'.*ddp, fsdp"),
        ({"precision": "fp4"}, r"'fp4'.*bf16, fp32"),
        ({"device": "cuda", "devices": 99}, r"99 GPUs.*found"),
        ({"workers": -1}, r"workers -1"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            Place(**wrong)


def test_rows_are_shared_out_evenly() -> None:
    engine = Engine()
    assert list(engine.share(3)) == [0, 1, 2]
    engine.rank, engine.world = 1, 3
    assert list(engine.share(6)) == [1, 4]
    with pytest.raises(InvalidRequest, match=r"batch of 4.*multiples of 3"):
        engine.share(4)
