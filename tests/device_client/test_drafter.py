"""The drafter: whatever its cache holds, it draws what a fresh one would."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from device_client.drafter import PROPOSAL_IDS, Drafter, Step
from shared.decoding.gates import GATES
from shared.decoding.noise import gumbel
from shared.decoding.warp import Warp
from shared.errors import InvalidPrompt, InvalidRequest
from shared.models.inter_head import DeviceModel
from shared.models.zoo import DevicePackage, load_device_package
from tests.tiny import WARP, build_tiny_model
from training.base import sample

PROMPT, SEED = "a red cat on a blue background", 7
WARPS = (
    WARP,
    Warp(guidance=1.0, temperature=0.8, top_p=0.9),
    Warp(guidance=3.0, top_k=5),
    Warp(guidance=2.0, temperature=0),
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> DevicePackage:
    folder = build_tiny_model(tmp_path_factory.mktemp("tiny"), grid=6)
    return load_device_package(str(folder), Path("nowhere"))


def distilled(package: DevicePackage) -> DevicePackage:
    """The same weights, said to hold their guidance inside."""
    model = DeviceModel(
        package.model.base, dataclasses.replace(package.model.config, distilled_guidance=1.5)
    ).eval()
    model.load_state_dict(package.model.state_dict())
    return dataclasses.replace(package, model=model)


def draw(drafter: Drafter, tokens: list[int], until: int) -> list[Step]:
    """Steps that extend `tokens`, in place, to `until`."""
    steps = []
    while len(tokens) < until:
        steps.append(drafter.step(tokens))
        tokens.append(steps[-1].token)
    return steps


def assert_same(one: Step, other: Step) -> None:
    assert one.token == other.token
    torch.testing.assert_close(one.hidden_1D, other.hidden_1D, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.centre_1V, other.centre_1V, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("warp", WARPS)
def test_cached_steps_equal_full_recomputation(package: DevicePackage, warp: Warp) -> None:
    tokens: list[int] = []
    for place, step in enumerate(draw(Drafter(package, PROMPT, SEED, warp), tokens, 36)):
        assert_same(step, Drafter(package, PROMPT, SEED, warp).step(tokens[:place]))


def test_one_guidance_row_is_as_good(package: DevicePackage) -> None:
    tokens: list[int] = []
    one_row = distilled(package)
    for place, step in enumerate(draw(Drafter(one_row, PROMPT, SEED, WARP), tokens, 20)):
        assert_same(step, Drafter(one_row, PROMPT, SEED, WARP).step(tokens[:place]))
    plain = Drafter(package, PROMPT, SEED, dataclasses.replace(WARP, guidance=1.0)).step([])
    assert_same(Drafter(one_row, PROMPT, SEED, WARP).step([]), plain)


@pytest.mark.parametrize("gate", ["agreement", "interval", "discrete(3)"])
@pytest.mark.parametrize("warp", WARPS)
def test_the_lean_path_draws_what_torch_draws(package: DevicePackage, warp: Warp, gate: str) -> None:
    """Steps of one row, with rewinds and with several tokens at once: tokens, scores and states."""
    one_row, tokens, rng = distilled(package), list[int](), np.random.default_rng(3)
    lean = Drafter(one_row, PROMPT, SEED, warp, gate=gate)
    plain = Drafter(one_row, PROMPT, SEED, warp, gate=gate, plain=True)
    for length in (0, 1, 2, 5, 9, 10, 11, 8, 9, 20, 21, 35):
        tokens = [*tokens[:length], *rng.integers(0, 32, max(length - len(tokens), 0)).tolist()]
        for drafter in (lean, plain):
            drafter.rewind(length - 1)
        mine, theirs = lean.step(tokens), plain.step(tokens)
        assert_same(mine, theirs)
        assert mine.score == pytest.approx(theirs.score, rel=1e-3, abs=1e-3)
        assert mine.doubt == pytest.approx(theirs.doubt, rel=1e-3, abs=1e-3)
        torch.testing.assert_close(mine.log_q_1V, theirs.log_q_1V, rtol=1e-4, atol=1e-3)


def test_the_lean_path_draws_the_bundled_pairs_images(tmp_path: Path) -> None:
    bundled = load_device_package("emoji", tmp_path)
    assert bundled.lean is not None
    warp, images = bundled.calibration.warp, list[list[int]]()
    for plain in (False, True):
        images.append([])
        draw(Drafter(bundled, "a cat", 3, warp, plain=plain), images[-1], 256)
    assert images[0] == images[1]


def test_tokens_arrive_in_any_portions(package: DevicePackage) -> None:
    tokens = np.random.default_rng(0).integers(0, 32, 35).tolist()
    drafter = Drafter(package, PROMPT, SEED, WARP)
    for place in (0, 1, 2, 7, 7, 20, 35, 35):
        assert_same(drafter.step(tokens[:place]), Drafter(package, PROMPT, SEED, WARP).step(tokens[:place]))


@pytest.mark.parametrize("length", [0, 1, 5, 11, 12, 30])
def test_rewinding_and_drawing_again_is_like_never_having_drawn(package: DevicePackage, length: int) -> None:
    drafter, tokens = Drafter(package, PROMPT, SEED, WARP), list[int]()
    draw(drafter, tokens, 12)
    drafter.rewind(length)
    other = [*tokens[:length], *[31 - token for token in tokens[length:]]]
    assert_same(drafter.step(other), Drafter(package, PROMPT, SEED, WARP).step(other))


def test_the_device_alone_draws_what_its_model_draws(package: DevicePackage) -> None:
    tokens: list[int] = []
    draw(Drafter(package, PROMPT, SEED, WARP), tokens, 36)
    assert tokens == sample(package.model.base, [PROMPT], [SEED], WARP)[0].tolist()


def test_the_draw_is_the_likeliest_with_the_shared_noise(package: DevicePackage) -> None:
    noise_TV = gumbel(SEED, range(36), 32)
    for place, step in enumerate(draw(Drafter(package, PROMPT, SEED, WARP, gate="margin"), [], 10)):
        noisy_V = (step.log_q_1V + noise_TV[place])[0].sort(descending=True)
        assert step.token == int(noisy_V.indices[0])
        assert step.score == float(noisy_V.values[1] - noisy_V.values[0])


def test_gates_see_what_the_filters_cut_away(package: DevicePackage) -> None:
    """A top-k of one leaves one id to draw, and as much doubt as before."""
    greedy = draw(Drafter(package, PROMPT, SEED, dataclasses.replace(WARP, top_k=1)), [], 10)
    for step in greedy:
        assert step.token == int(step.log_q_1V.argmax()) and step.score == step.doubt > 0


def test_greedy_draws_the_mode(package: DevicePackage) -> None:
    for step in draw(Drafter(package, PROMPT, SEED, WARP, acceptance="greedy"), [], 10):
        assert step.token == int(step.log_q_1V.argmax())


def test_rejection_proposes_the_sparse_distribution_it_drew_from(package: DevicePackage) -> None:
    for step in draw(Drafter(package, PROMPT, SEED, WARP, acceptance="rejection"), [], 10):
        assert step.proposal is not None
        ids_J, probs_J = step.proposal
        assert len(ids_J) == len(probs_J) == min(PROPOSAL_IDS, 32)
        assert probs_J[ids_J.tolist().index(step.token)] > 0
        assert float(probs_J.astype(np.float32).sum()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_scores(package: DevicePackage, gate: str) -> None:
    step = Drafter(package, PROMPT, SEED, WARP, gate=gate).step([1, 2, 3])
    assert step.doubt >= 0  # the default gate's, an entropy
    if gate in ("never", "always"):
        assert step.score == (math.inf if gate == "always" else -math.inf)
    else:
        assert math.isfinite(step.score)
    if gate == "interval":
        assert step.score > 0


def test_features_of_many_steps_are_those_of_each(package: DevicePackage) -> None:
    drafter = Drafter(package, PROMPT, SEED, WARP)
    steps = draw(drafter, [], 6)
    codes, scale = drafter.features(steps)
    assert (codes.shape, codes.dtype, scale.shape, scale.dtype) == ((6, 32), np.int8, (6,), np.float16)
    assert np.abs(codes).max(axis=1).tolist() == [127] * 6
    for row, step in enumerate(steps):
        one, one_scale = drafter.features([step])
        np.testing.assert_allclose(one[0], codes[row], atol=1)
        np.testing.assert_allclose(one_scale[0], scale[row], rtol=2e-3)


def test_impossible_images_are_refused_at_once(package: DevicePackage) -> None:
    with pytest.raises(InvalidPrompt):
        Drafter(package, "xyzzy", SEED, WARP)
    for seed in (-1, 2**64):
        with pytest.raises(InvalidRequest, match="seed"):
            Drafter(package, PROMPT, seed, WARP)
    with pytest.raises(InvalidRequest, match="gate"):
        Drafter(package, PROMPT, SEED, WARP, gate="hunch")
    with pytest.raises(InvalidRequest, match="acceptance"):
        Drafter(package, PROMPT, SEED, WARP, acceptance="hunch")
