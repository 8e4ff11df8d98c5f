"""MAR with keyed noise: chains that align, paths judged in one pass, images that keep to themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluation.parity.mar import load
from shared.decoding.continuous import (
    log_uniforms,
    order_of,
    start_noise,
    step_noise,
    tolerant,
    trajectory_ratio,
)
from shared.decoding.diffusion import cosine, respaced
from shared.models.diffloss import ChainNoise, Condition, draw_tokens
from shared.models.families.mar import MARModel
from shared.models.families.mar_run import Plan, steps
from shared.models.trajectories import along, path

GOLDEN = Path(__file__).parent / "golden" / "mar"
SCHEDULE, WIDTH, PLACES = respaced(cosine(), "20"), 4, range(12)
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MARModel:
    config = json.loads((GOLDEN / "golden.json").read_text())["config"]
    return load(GOLDEN / "mar.safetensors", config, tmp_path_factory.mktemp("mar"))


def noise(seed: int) -> ChainNoise:
    steps_NTC = step_noise(seed, PLACES, len(SCHEDULE), WIDTH)
    return ChainNoise(start_noise(seed, PLACES, WIDTH), steps_NTC)


def conditions(model: MARModel, seed: int) -> Condition:
    generator = torch.Generator().manual_seed(seed)
    z_2ND = torch.randn(2, len(PLACES), model.config.decoder.dim, generator=generator)
    return Condition(z_2ND[0], z_2ND[1], 2.0)


@pytest.mark.parametrize("guided", [True, False])
def test_a_path_is_judged_in_one_pass_as_step_by_step(model: MARModel, guided: bool) -> None:
    cond = conditions(model, 1) if guided else Condition(conditions(model, 1).z_ND)
    states = path(model.diffloss, SCHEDULE, cond, noise(5))
    found = along(model.diffloss, SCHEDULE, states[:, :-1], cond)
    for index, t in enumerate(reversed(range(len(SCHEDULE)))):
        t_N = torch.full((len(PLACES),), t)
        expected = model.diffloss.believe(SCHEDULE, t_N, states[:, index], cond)
        size = max(1.0, expected.mean.abs().max().item())
        torch.testing.assert_close(found.mean[:, index], expected.mean, atol=1e-4 * size, rtol=0)
        torch.testing.assert_close(found.log_std[:, index], expected.log_variance / 2, atol=1e-5, rtol=0)


def test_a_draft_of_the_same_head_is_certain_and_another_is_not(model: MARModel) -> None:
    cond, other = conditions(model, 1), conditions(model, 2)
    states = path(model.diffloss, SCHEDULE, cond, noise(5))
    p, q = (along(model.diffloss, SCHEDULE, states[:, :-1], of) for of in (cond, other))
    assert torch.equal(trajectory_ratio(p, p, states[:, 1:]), torch.zeros(len(PLACES), dtype=torch.float64))
    assert (trajectory_ratio(q, p, states[:, 1:]) < -5).all()  # judged by a model that drew it elsewhere


def test_only_the_last_step_differs_from_ordinary_sampling(model: MARModel) -> None:
    cond = conditions(model, 3)
    noisy = path(model.diffloss, SCHEDULE, cond, noise(9))[:, -1]
    plain = draw_tokens(model.diffloss, SCHEDULE, cond, noise(9))
    quiet = replace(noise(9), step_NTC=noise(9).step_NTC.index_fill(1, torch.tensor([0]), 0.0))
    assert torch.equal(path(model.diffloss, SCHEDULE, cond, quiet)[:, -1], plain)
    assert not torch.equal(noisy, plain)


def test_drafts_of_equal_weights_are_kept_at_any_tolerance(model: MARModel) -> None:
    cond = conditions(model, 4)
    drafted, own = (draw_tokens(model.diffloss, SCHEDULE, cond, noise(2)) for _ in range(2))
    assert tolerant(drafted, own, log_uniforms(2, PLACES), 0.0).all()


def test_images_do_not_depend_on_those_beside_them(model: MARModel) -> None:
    """Orders and noise come from each image's seed."""
    tokens, seeds = model.config.tokens, (4, 11)

    def drawn(rows: slice) -> torch.Tensor:
        plan = Plan(
            torch.stack([order_of(seed, tokens) for seed in seeds[rows]]),
            torch.stack([start_noise(seed, range(tokens), WIDTH) for seed in seeds[rows]]),
            torch.stack([step_noise(seed, range(tokens), len(SCHEDULE), WIDTH) for seed in seeds[rows]]),
            steps=5, strength=2.0,
        )  # fmt: skip
        classes = model.classes(torch.tensor([3, 7])[rows])
        return list(steps(model, SCHEDULE, classes, plan))[-1].tokens_BLC

    both = drawn(slice(0, 2))
    for row in range(2):
        torch.testing.assert_close(drawn(slice(row, row + 1))[0], both[row], atol=1e-3, rtol=1e-3)
