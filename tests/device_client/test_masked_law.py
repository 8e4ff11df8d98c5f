"""The exact acceptance has the law of the cloud alone: token after token, whatever the device drafts.

Two-sample Kolmogorov-Smirnov distances; under one law a distance above 1.95 sqrt(2 / n) happens once in a
thousand. Noise is keyed, so the test gives the same numbers every time.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cloud_server.masked_judge import Bench, trajectory
from device_client import masked_policy
from device_client.cloud import Request
from device_client.masked_drafter import MaskedDrafter
from device_client.masked_policy import Drawing
from shared.continuous import Values
from shared.decoding.warp import Warp
from shared.models.by_mask import MaskedCloud, MaskedPackage, load_masked_cloud, load_masked_package
from shared.models.families.mar_image import MaskedImage, rounded
from shared.models.trajectories import path
from tests.decoding.test_continuous import ks
from tests.tiny_masked import TOKENS, build_tiny_masked

N, RANKS = 400, 2
LIMIT = 1.95 * math.sqrt(2 / N)
WARP = Warp(guidance=1.5)
POLICY = masked_policy.exact(TOKENS, RANKS, Drawing(head_steps=6, clip=3.0))
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[MaskedCloud, MaskedPackage]:
    """A device far enough from its cloud that the law of its drafts is another."""
    folder = build_tiny_masked(tmp_path_factory.mktemp("tiny"), moved=0.06)
    return load_masked_cloud(str(folder), folder), load_masked_package(str(folder), folder)


def blank(cloud: MaskedCloud, seed: int) -> MaskedImage:
    return MaskedImage(cloud.model, 1, seed, POLICY.masking, WARP)


@torch.inference_mode()
def own(cloud: MaskedCloud, seed: int) -> Values:
    """The first tokens that the cloud draws alone."""
    image = blank(cloud, seed)
    for rank in range(RANKS):
        ranks = range(rank, rank + 1)
        states = path(cloud.model.diffloss, image.schedule, image.condition(ranks), image.noise(ranks))
        image.push(rounded(states[:, -1]))
    return image._token_1LC[0, image.place_L[:RANKS]].half().numpy()


@torch.inference_mode()
def verified(cloud: MaskedCloud, package: MaskedPackage, seed: int) -> tuple[Values, Values, list[int]]:
    """The first tokens by the exact acceptance, the first draft, and how much of each span stood."""
    image, drafter = blank(cloud, seed), MaskedDrafter(package, Request("1", seed, WARP), POLICY)
    bench, first, stood = Bench(image, cloud.proposer, POLICY.masking), None, []
    while image.known < RANKS:
        span, drafted = drafter.span()
        judged = trajectory(bench, span)
        image.push(judged.standing)
        drafter.push(judged.standing)
        first = drafted if first is None else first
        stood.append(int(judged.kept.stands.sum()))
        assert judged.fallbacks == 0
    assert first is not None
    return image._token_1LC[0, image.place_L[:RANKS]].half().numpy(), first, stood


def test_verified_tokens_have_the_law_of_the_cloud(pair: tuple[MaskedCloud, MaskedPackage]) -> None:
    """Numbers of every token, and projections over tokens, which see how they depend on each other. The
    drafts do not pass, so the test can fail."""
    cloud, package = pair
    target = tensor([own(cloud, seed) for seed in range(N)])
    found = [verified(cloud, package, 10_000 + seed) for seed in range(N)]
    tokens, drafts = tensor([part[0] for part in found]), tensor([part[1] for part in found])
    weights = torch.randn(6, tokens.shape[1], generator=torch.Generator().manual_seed(1)).double()
    weights = torch.cat([torch.eye(tokens.shape[1]).double(), weights])
    distances = [ks(tokens @ weight, target @ weight) for weight in weights]
    assert max(distances) < LIMIT
    assert max(ks(drafts @ weight, target @ weight) for weight in weights) > 1.5 * LIMIT
    stood = [count for part in found for count in part[2]]
    assert 0.1 < np.mean([count > 0 for count in stood]) < 0.95  # both what stands and what replaces was seen


def tensor(parts: list[Values]) -> torch.Tensor:
    """[N, ranks x C]."""
    return torch.from_numpy(np.stack(parts).astype(np.float64)).flatten(1)


def test_a_draft_of_the_same_head_and_conditions_always_stands(
    pair: tuple[MaskedCloud, MaskedPackage],
) -> None:
    """With the cloud's own conditions and head the ratio is one: nothing is refused but for rounding."""
    cloud, package = pair
    twin = MaskedPackage(**{**vars(package), "model": cloud.model})
    stood = []
    for seed in range(40):
        image, drafter = blank(cloud, seed), MaskedDrafter(twin, Request("1", seed, WARP), POLICY)
        with torch.inference_mode():
            bench = Bench(image, cloud.model.diffloss, POLICY.masking)
            stood.append(int(trajectory(bench, drafter.span()[0]).kept.stands.sum()))
    assert np.mean(stood) > 0.97 * RANKS
