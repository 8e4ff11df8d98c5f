"""Models of continuous tokens over the real wire: tolerant, exact, published, killed and resumed, refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cloud_server.cli import parse
from cloud_server.loaders import loader
from cloud_server.server import CloudServer, Settings, running
from device_client import masked_policy, render
from device_client.cloud import Request
from device_client.link import CloudLink
from device_client.loop import Counters, Source
from device_client.masked.cli import main, to_image
from device_client.masked_loop import MaskedProgress, decode_masked
from device_client.masked_policy import Drawing, MaskedPolicy
from evaluation.relay import Relay
from shared.continuous import Values
from shared.decoding.continuous import TRANSPORT
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest
from shared.models.by_mask import (
    MaskedCloud,
    MaskedPackage,
    load_masked_cloud,
    load_masked_package,
)
from shared.models.families.mar import MARModel
from shared.models.families.mar_image import MaskedImage
from tests.device_client.unplugged import Unplugged, link_to
from tests.tiny_masked import LABELS, TOKENS, WIDTH, build_tiny_masked

WARP = Warp(guidance=2.0)
REQUEST = Request("a red house", 7, WARP)
SHORT = Drawing(head_steps=10, clip=3.0)
STEPS = 5
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_masked(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cloud(folder: Path) -> MaskedCloud:
    return load_masked_cloud(str(folder), Path("nowhere"))


@pytest.fixture(scope="module")
def package(folder: Path) -> MaskedPackage:
    return load_masked_package(str(folder), Path("nowhere"))


@pytest.fixture
async def server(cloud: MaskedCloud) -> AsyncIterator[CloudServer]:
    async with running(cloud, Settings(max_sessions=1)) as server:
        yield server


async def image(
    package: MaskedPackage, policy: MaskedPolicy, link: Relay | CloudLink | None, request: Request = REQUEST
) -> MaskedProgress:
    """The last progress, and that values, places and sources always fit."""
    seen = [progress async for progress in decode_masked(package, request, policy, link)]
    for progress in seen:
        known = 0 if progress.values is None else len(progress.values)
        assert known == len(progress.tokens) == len(progress.sources)
    assert [progress.done for progress in seen] == [False] * (len(seen) - 1) + [True]
    assert sorted(seen[-1].tokens) == list(range(TOKENS))
    return seen[-1]


async def over(server: CloudServer, package: MaskedPackage, policy: MaskedPolicy) -> MaskedProgress:
    async with link_to(server) as link:
        return await image(package, policy, link)


@torch.inference_mode()
def alone(model: MARModel, policy: MaskedPolicy, begun: Values | None = None) -> Values:
    """What one model draws by itself in the windows of a policy, without any wire."""
    drawing = MaskedImage(model, 1, REQUEST.seed, policy.masking, WARP)
    parts = [] if begun is None else [begun]
    for part in parts:
        drawing.push(part)
    while drawing.known < TOKENS:
        ranks = drawing.window
        parts.append(drawing.draw(ranks, drawing.condition(ranks)))
        drawing.push(parts[-1])
    return np.concatenate(parts)


def values_of(progress: MaskedProgress) -> Values:
    assert progress.values is not None
    return progress.values


async def test_at_no_tolerance_it_is_the_clouds_own_image(server, cloud, package) -> None:
    whole = await over(server, package, masked_policy.cloud_only(STEPS, SHORT))
    truth = alone(cloud.model, masked_policy.cloud_only(STEPS, SHORT))
    assert np.array_equal(values_of(whole), truth) and set(whole.sources) == {Source.PREFIX}
    assert (whole.counters.cloud_forwards, whole.counters.rounds) == (STEPS, 0)
    assert not np.array_equal(truth, alone(package.model, masked_policy.cloud_only(STEPS, SHORT)))
    for prefix, stride in ((0, 1), (2, 1), (1, 3)):
        policy = masked_policy.cspd(STEPS, 0.0, prefix, SHORT, stride)
        progress = await over(server, package, policy)
        assert np.array_equal(values_of(progress), truth)
        counters = progress.counters
        assert (counters.cloud_forwards, counters.rounds) == (STEPS, STEPS - prefix)
        assert counters.judged == progress.sources.count(Source.CORRECTED) + counters.accepted


async def test_at_any_tolerance_it_is_the_devices_own_behind_the_prefix(server, cloud, package) -> None:
    for prefix in (0, 2):
        loose = masked_policy.cspd(STEPS, float("inf"), prefix, SHORT, stride=1)
        progress = await over(server, package, loose)
        assert progress.counters.acceptance_rate == 1.0
        kept = await over(server, package, masked_policy.hand_over(STEPS, prefix, SHORT))
        assert np.array_equal(values_of(kept), values_of(progress))
        assert kept.counters.cloud_forwards == prefix and kept.counters.rounds == 0


async def test_tolerance_decides_how_much_stands_and_how_far_it_moves(server, cloud, package) -> None:
    """Every token that stands is judged against the cloud's own there, given the same tokens before it."""
    shares = []
    for tolerance in (0.01, 0.3, 3.0):
        policy = masked_policy.cspd(STEPS, tolerance, 1, SHORT)
        progress = await over(server, package, policy)
        shares.append(progress.counters.acceptance_rate)
        distances = moved(cloud.model, policy, progress)
        assert distances.mean() <= 4 * TRANSPORT * tolerance  # of one image; its law's mean has no factor
    assert shares[0] < shares[1] < shares[2] and shares[2] > 0.9


@torch.inference_mode()
def moved(model: MARModel, policy: MaskedPolicy, progress: MaskedProgress) -> np.ndarray:
    """How far each token is from what the cloud draws there behind the tokens before its window."""
    drawing, values = MaskedImage(model, 1, REQUEST.seed, policy.masking, WARP), values_of(progress)
    found = []
    while drawing.known < TOKENS:
        ranks = drawing.window
        own = drawing.draw(ranks, drawing.condition(ranks))
        found.append(np.linalg.norm((own - values[ranks.start : ranks.stop]).astype(float), axis=1))
        drawing.push(values[ranks.start : ranks.stop])
    return np.concatenate(found)


async def test_alone_the_device_needs_nobody(package) -> None:
    policy = masked_policy.device_only(STEPS, SHORT)
    progress = await image(package, policy, None)
    assert np.array_equal(values_of(progress), alone(package.model, policy))
    assert progress.counters.bytes_up == progress.counters.cloud_forwards == 0


@pytest.mark.parametrize("window", [1, 4, 16])
async def test_whole_trajectories_are_judged(server, package, window: int) -> None:
    policy = masked_policy.exact(TOKENS, window, SHORT)
    progress = await over(server, package, policy)
    counters = progress.counters
    assert counters.cloud_forwards == counters.rounds <= TOKENS
    own = progress.sources.count(Source.CORRECTED) + progress.sources.count(Source.BONUS)
    assert counters.accepted + own == TOKENS and counters.accepted == progress.sources.count(Source.VERIFIED)
    assert np.array_equal(values_of(await over(server, package, policy)), values_of(progress))


async def test_a_device_of_the_clouds_weights_is_never_refused(tmp_path: Path) -> None:
    """Of an exact span of four all stand and a fifth comes from the cloud."""
    folder = build_tiny_masked(tmp_path / "same", moved=0.0)
    cloud = load_masked_cloud(str(folder), tmp_path)
    twin = replace(load_masked_package(str(folder), tmp_path), model=cloud.model)
    async with running(cloud, Settings(max_sessions=1)) as server:
        exact = await over(server, twin, masked_policy.exact(TOKENS, 4, SHORT))
        assert exact.counters.acceptance_rate > 0.9  # the conditions travel in half precision
        assert exact.counters.rounds == 4
        strict = await over(server, twin, masked_policy.cspd(TOKENS, 0.02, 1, SHORT))
        assert strict.counters.acceptance_rate == 1.0


async def test_the_published_arithmetic_runs(server, package) -> None:
    policy = masked_policy.published(STEPS, 1, SHORT)
    progress = await over(server, package, policy)
    assert progress.counters.rounds == STEPS - 1 and progress.counters.accepted > 0
    assert np.array_equal(values_of(await over(server, package, policy)), values_of(progress))


KILLED = [
    (masked_policy.cspd(STEPS, 0.3, 2, SHORT), 1),
    (masked_policy.cspd(STEPS, 0.3, 0, SHORT), 3),
    (masked_policy.exact(TOKENS, 4, SHORT), 1),
    (masked_policy.exact(TOKENS, 4, SHORT), 3),
    (masked_policy.published(STEPS, 1, SHORT), 2),
]


@pytest.mark.parametrize(("policy", "at"), KILLED)
async def test_a_killed_server_changes_no_image(cloud, package, policy: MaskedPolicy, at: int) -> None:
    server = CloudServer(cloud, Settings(max_sessions=1))
    await server.start()
    truth = await over(server, package, policy)
    async with link_to(server) as link:
        unplugged = Unplugged(link, cloud, server, at)
        progress = await image(package, policy, unplugged)
        await unplugged.server.stop()
    assert np.array_equal(values_of(progress), values_of(truth))
    assert progress.sources == truth.sources and progress.counters.resumes == 1


def test_the_command_finds_the_family_and_refuses_flags_without_use(folder: Path) -> None:
    loaded, sessions = loader("mar")(parse(["--model", str(folder), "--max-sessions", "3"]))
    assert (loaded.labels, sessions) == (LABELS, 3)
    with pytest.raises(InvalidRequest, match="--compile"):
        loader("mar")(parse(["--model", str(folder), "--compile"]))


def test_the_command_draws_a_picture(folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "cat.png"
    words = ["--model", str(folder), "--prompt", "a cat", "--head-steps", "5", "--clip", "3"]
    words += ["--out", str(out)]
    assert main([*words, "--mode", "device-only"]) == 0
    assert render.read_settings(out)["counters"]["kept"] == TOKENS
    assert main([*words, "--mode", "exact"]) == 1
    assert "needs a server" in capsys.readouterr().err
    assert main([*words, "--server", "127.0.0.1:1", "--retry-s", "0"]) == 3
    assert main([*words, "--mode", "nothing"]) == 1 and main([*words, "--seed", "-1"]) == 2


def test_a_picture_has_every_token_at_its_place(package) -> None:
    """The order in which tokens were decided changes no picture."""
    rng = np.random.default_rng(1)
    token_LC = rng.normal(size=(TOKENS, WIDTH)).astype(np.float16)
    pictures = []
    for order in (np.arange(TOKENS), rng.permutation(TOKENS)):
        known = Counters(TOKENS), True, ()
        places = tuple(order.tolist())
        progress = MaskedProgress(places, (Source.KEPT,) * TOKENS, (None,) * TOKENS, *known, token_LC[order])
        pictures.append(np.asarray(to_image(package, progress)))
    assert np.array_equal(*pictures) and pictures[0].std() > 0
