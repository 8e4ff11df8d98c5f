"""One image of MAR in its order: what is known, and what a model says of several futures in one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.continuous import Masking
from shared.decoding.continuous import attempts
from shared.decoding.diffusion import cosine, respaced
from shared.decoding.masked import guidance_of, reveals
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest
from shared.models.by_mask import MaskedCloud, load_masked_cloud, load_shape
from shared.models.families.mar_image import MaskedImage, rounded
from tests.tiny_masked import TOKENS, WIDTH, build_tiny_masked

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> MaskedCloud:
    folder = build_tiny_masked(tmp_path_factory.mktemp("tiny"))
    assert load_shape(folder / "cloud").tokens == TOKENS
    return load_masked_cloud(str(folder), folder)


def image(cloud: MaskedCloud, steps: int = TOKENS, guidance: float = 2.0) -> MaskedImage:
    return MaskedImage(cloud.model, 1, 7, Masking(steps, 10, clip=3.0), Warp(guidance))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("known", [0, 5, 13])
def test_several_futures_are_judged_as_if_each_came_alone(
    cloud: MaskedCloud, known: int, guidance: float
) -> None:
    """Row j of one pass is what the model says behind the first j drafted tokens."""
    tokens = np.random.default_rng(1).normal(size=(TOKENS, WIDTH)).astype(np.float16)
    ours, alone = image(cloud, guidance=guidance), image(cloud, guidance=guidance)
    ours.push(tokens[:known])
    together = ours.conditions_behind(tokens[known : known + 4])
    assert ours.known == known and len(together.z_ND) == min(5, TOKENS - known)
    for row, rank in enumerate(range(known, min(known + 5, TOKENS))):
        alone.rewind(0)
        alone.push(tokens[:rank])
        one = alone.condition(range(rank, rank + 1))
        torch.testing.assert_close(together.z_ND[row : row + 1], one.z_ND, atol=2e-4, rtol=1e-4)
        assert (together.nothing_ND is None) == (guidance == 1.0)
        assert float(together.of(slice(row, row + 1)).guidance) == pytest.approx(one.guidance)  # type: ignore[arg-type]


def test_windows_are_those_of_the_model_alone(cloud: MaskedCloud) -> None:
    ours = image(cloud, steps=5)
    windows = reveals(TOKENS, 5)
    assert [b - a for a, b in zip(ours.offsets, ours.offsets[1:], strict=False)] == [w.count for w in windows]
    for step, window in enumerate(windows):
        assert len(ours.window) == window.count
        assert ours.guidance(ours.known) == guidance_of(window, TOKENS, 2.0, "linear")
        ours.push(np.full((window.count, WIDTH), step, np.float16))
    assert ours.known == TOKENS


def test_what_is_masked_is_not_looked_at(cloud: MaskedCloud) -> None:
    """Tokens that were taken back leave no trace."""
    ours, other = image(cloud), image(cloud)
    tokens = np.random.default_rng(1).normal(size=(6, WIDTH)).astype(np.float16)
    for one in (ours, other):
        one.push(tokens)
        one.rewind(3)
    other.push(tokens[::-1][:3])
    other.rewind(3)
    ranks = range(3, 4)
    assert torch.equal(ours.condition(ranks).z_ND, other.condition(ranks).z_ND)


def test_tokens_are_finite_whatever_was_drawn() -> None:
    drawn = rounded(torch.tensor([[1e9, -1e9, 0.1, 0.0]]))
    assert np.isfinite(drawn).all() and drawn.dtype == np.float16 and drawn[0, 2] == np.float16(0.1)


def test_a_clipped_schedule_believes_no_image_further_out(cloud: MaskedCloud) -> None:
    free, clipped = image(cloud), MaskedImage(cloud.model, 1, 7, Masking(TOKENS, 10, clip=0.5), Warp(2.0))
    ranks = range(0, 1)
    for one, bound in ((free, None), (clipped, 0.5)):
        t_N, noise = torch.tensor([9]), one.noise(ranks)
        found = one.model.diffloss.believe(one.schedule, t_N, noise.start_NC, one.condition(ranks))
        assert (found.image.abs().max() > 0.5) == (bound is None)
    assert respaced(cosine(), "10").clip == 0.0


def test_replacements_have_noise_of_their_own() -> None:
    """Later ones do not repeat earlier ones, nor those of other places, nor a draft's."""
    first, uniforms = attempts(3, 5, 0, 4, 6)
    whole = attempts(3, 5, 0, 8, 6)
    assert torch.equal(whole[0][:4], first) and torch.equal(whole[1][:4], uniforms)
    assert torch.equal(attempts(3, 5, 4, 4, 6)[0], whole[0][4:])
    other = attempts(3, 6, 0, 8, 6)[0]
    assert len(torch.cat([whole[0].flatten(), other.flatten()]).unique()) == 96
    with pytest.raises(InvalidRequest, match="allowed: up to 4096"):
        attempts(3, 5, 4090, 8, 6)
