"""VAR scale by scale: what device and cloud draw with shared noise, whoever asks whom and when.

Two golden models of random weights stand for cloud and device. They agree on few tokens, so these are tests
of exactness, not of how often a device is right. Official numbers of greedy hand-overs are held elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from evaluation.parity.var import load, load_vq
from shared.decoding.scales import draw, packed, scale_noise, settled, truncated, unpacked
from shared.errors import InvalidRequest
from shared.models.families.var import VARModel
from shared.models.families.var_run import ScaleRun
from shared.models.families.var_vae import ScaleVQ

GOLDEN = Path(__file__).parent / "golden" / "var"
SCALES, VOCAB, SEEDS = (1, 2, 3, 4), 128, (3, 2**40)
torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[VARModel, VARModel, ScaleVQ]:
    """Cloud, device, tokenizer."""
    home = tmp_path_factory.mktemp("models")
    cloud = load(GOLDEN / "code_drafter.safetensors", {}, home / "cloud")
    device = load(GOLDEN / "code_refiner.safetensors", {}, home / "device")
    return cloud, device, load_vq(GOLDEN / "vae.safetensors", {"patch_nums": SCALES}, home)


def run_of(model: VARModel, vq: ScaleVQ, labels: tuple[int, ...] = (2, 7)) -> ScaleRun:
    return ScaleRun(model, vq.quantize, torch.tensor(labels), 1.5)


def drawn(run: ScaleRun, seeds: tuple[int, ...] = SEEDS) -> Tensor:
    """The next scale's tokens with the noise of these seeds."""
    side = SCALES[run.scale]
    noise = scale_noise(seeds, run.scale, side * side, VOCAB)
    return draw(truncated(run.logits(), 60, 0.96), noise)


def alone(model: VARModel, vq: ScaleVQ) -> list[Tensor]:
    """One model draws everything."""
    run = run_of(model, vq)
    for _ in SCALES:
        run.push(drawn(run))
    return run.tokens


def together(
    models: tuple[VARModel, VARModel, ScaleVQ], prefix: int, ask: tuple[int, ...], verdict: str = "all"
) -> tuple[list[Tensor], int]:
    """The cloud draws the first scales; the device goes on and has the scales `ask` verified, each by one
    pass of the cloud over all scales since the last. Tokens travel as bytes. All tokens, and cloud passes."""
    cloud_model, device_model, vq = models
    cloud, device = run_of(cloud_model, vq), run_of(device_model, vq)
    passes = 0
    for _ in range(prefix):
        cloud.push(drawn(cloud))
        device.push(cloud.tokens[-1])
        passes += 1
    while device.scale < len(SCALES):
        tokens = drawn(device)
        if device.scale in ask:
            for behind in range(cloud.scale, device.scale):
                sent = packed(device.tokens[behind].flatten().tolist(), VOCAB)
                ids = unpacked(sent, device.tokens[behind].numel(), VOCAB)
                cloud.push(torch.tensor(ids).reshape(device.tokens[behind].shape))
            own = drawn(cloud)
            passes += 1
            tokens = settled(tokens, own, torch.ones_like(own, dtype=torch.bool), verdict)
            cloud.push(tokens)
        device.push(tokens)
    return device.tokens, passes


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("verdict", ["all", "bad"])
def test_everything_verified_is_the_clouds_own_image(models, prefix: int, verdict: str) -> None:
    cloud, device, vq = models
    tokens, passes = together(models, prefix, (0, 1, 2, 3), verdict)
    assert same(tokens, alone(cloud, vq)) and passes == 4
    assert not same(tokens, alone(device, vq))


@pytest.mark.parametrize("prefix", [1, 2, 3])
def test_nothing_verified_is_a_hand_over(models, prefix: int) -> None:
    """The same tokens as when the device is given the prefix and draws alone."""
    cloud, device, vq = models
    run = run_of(device, vq)
    for tokens in alone(cloud, vq)[:prefix]:
        run.push(tokens)
    while run.scale < len(SCALES):
        run.push(drawn(run))
    assert same(together(models, prefix, ())[0], run.tokens)


def test_skipped_scales_are_seen_in_one_pass(models) -> None:
    """Cached scale by scale, in one lazy pass over all of them, or after going back: the same logits."""
    cloud, device, vq = models
    tokens = alone(device, vq)
    stepwise, lazy = run_of(cloud, vq), run_of(cloud, vq)
    for scale in range(3):
        stepwise.logits()
        stepwise.push(tokens[scale])
        lazy.push(tokens[scale])
    expected = stepwise.logits()
    assert lazy.seen == 0
    torch.testing.assert_close(lazy.logits(), expected, atol=2e-4, rtol=0)
    stepwise.push(tokens[3])
    for back in (2, 1, 0):
        stepwise.rewind(back)
        assert stepwise.scale == back
        for scale in range(back, 3):
            stepwise.push(tokens[scale])
        torch.testing.assert_close(stepwise.logits(), expected, atol=2e-4, rtol=0)
        assert torch.equal(stepwise.sum_BEHH, lazy.sum_BEHH)


def test_a_verified_scale_matters_for_what_follows(models) -> None:
    cloud, _, vq = models
    tokens, passes = together(models, 1, (2,))
    assert passes == 2
    run = run_of(cloud, vq)
    for earlier in tokens[:2]:
        run.push(earlier)
    assert torch.equal(tokens[2], drawn(run))


def test_equal_weights_are_never_corrected(models) -> None:
    _, device, vq = models
    tokens, _ = together((device, device, vq), 1, (1, 2, 3))
    assert same(tokens, alone(device, vq))


def test_an_image_does_not_depend_on_those_beside_it(models) -> None:
    cloud, _, vq = models
    both = alone(cloud, vq)
    for row, (label, seed) in enumerate(zip((2, 7), SEEDS, strict=True)):
        run = run_of(cloud, vq, (label,))
        for _ in SCALES:
            run.push(drawn(run, (seed,)))
        assert all(torch.equal(one[0], two[row]) for one, two in zip(run.tokens, both, strict=True))


def test_a_vq_of_other_scales_is_refused(models, tmp_path: Path) -> None:
    cloud, _, _ = models
    other = load_vq(GOLDEN / "vae.safetensors", {"patch_nums": (1, 2, 4)}, tmp_path)
    with pytest.raises(InvalidRequest, match="same publication"):
        run_of(cloud, other)
