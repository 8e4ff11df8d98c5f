"""Orders, drafts and policies of models of continuous tokens that cannot be, over the real wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloud_server.server import CloudServer, Settings, running
from device_client import masked_policy
from device_client.link import CloudLink
from shared.continuous import Continuous, Masking, Values
from shared.decoding.warp import Warp
from shared.errors import InvalidDraft, InvalidPrompt, InvalidRequest, ModelMismatch
from shared.messages import Draft, Open, Verdict, no_tokens
from shared.models.by_mask import MaskedCloud, load_masked_cloud
from tests.device_client.unplugged import link_to
from tests.tiny_masked import TOKENS, WIDTH, build_tiny_masked

WARP = Warp(guidance=2.0)
STEPS = 5


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> MaskedCloud:
    folder = build_tiny_masked(tmp_path_factory.mktemp("tiny"))
    return load_masked_cloud(str(folder), Path("nowhere"))


@pytest.fixture
async def server(cloud: MaskedCloud) -> AsyncIterator[CloudServer]:
    async with running(cloud, Settings(max_sessions=1)) as server:
        yield server


def order(cloud: MaskedCloud, **changes: object) -> Open:
    masking = Masking(STEPS, 8, tolerance=0.3)
    plain = Open(cloud.name, cloud.digest, 0, "a cat", 7, WARP, 0, "aligned", masking=masking)
    return replace(plain, **changes)  # type: ignore[arg-type]


def half(*shape: int) -> Values:
    return np.ones(shape, np.float16)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"prefix_tokens": 3}, InvalidRequest, "whole windows"),
        ({"resume_values": half(3, WIDTH)}, InvalidRequest, "whole windows"),
        ({"resume_values": half(1, WIDTH + 1)}, InvalidRequest, "numbers"),
        ({"acceptance": "coupled"}, InvalidRequest, "no continuous tokens"),
        ({"acceptance": "trajectory"}, InvalidRequest, "5 steps of a trajectory"),
        ({"masking": None}, InvalidRequest, "no masking"),
        ({"masking": Masking(TOKENS + 1, 8)}, InvalidRequest, "17 steps"),
        ({"warp": Warp(2.0, top_k=5)}, InvalidRequest, "top_k 5"),
        ({"warp": Warp(2.0, 0.9), "acceptance": "published"}, InvalidRequest, "temperature 0.9"),
        ({"alone": "jacobi", "window": 4}, InvalidRequest, "token after token"),
        ({"prompt": "a zeppelin"}, InvalidPrompt, "no class"),
        ({"cloud_digest": "0" * 16}, ModelMismatch, "disagree"),
        ({"codebook_size": 512}, ModelMismatch, "512 codes"),
    ],
)
async def test_impossible_orders_are_refused(server, cloud, changes, kind, words: str) -> None:
    async with link_to(server) as link:
        with pytest.raises(kind, match=words):
            await link.open(order(cloud, **changes))


ONE = Continuous(half(1, WIDTH))
SPREAD = Continuous(half(1, WIDTH), None, half(1, WIDTH), (1.0,))


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        (Draft(1, 1, no_tokens(), continuous=ONE), "base 1"),
        (Draft(1, 0, no_tokens(), continuous=Continuous(half(2, WIDTH))), "a span of 2"),
        (Draft(1, 0, no_tokens(), continuous=Continuous(half(1, WIDTH + 1))), "of 5 numbers"),
        (Draft(1, 0, no_tokens(), continuous=Continuous(conditions=half(1, 2, 32))), "other parts"),
        (Draft(1, 0, no_tokens(), continuous=SPREAD), "other parts"),
        (Draft(1, 0, np.array([1], np.int32)), "another kind"),
        (Draft(1, 0, no_tokens(), np.array([1], np.int32), continuous=ONE), "another kind"),
    ],
)
async def test_drafts_that_are_no_window_are_refused(server, cloud, draft: Draft, words: str) -> None:
    async with link_to(server) as link:
        await link.open(order(cloud))
        await link.send(draft)
        with pytest.raises(InvalidDraft, match=words):
            await link.receive()


async def test_exact_spans_have_conditions_of_the_devices_width(server, cloud) -> None:
    async with link_to(server) as link:
        await link.open(order(cloud, acceptance="trajectory", masking=Masking(TOKENS, 8)))
        await link.send(Draft(1, 0, no_tokens(), continuous=Continuous(conditions=half(3, 1, 32))))
        with pytest.raises(InvalidDraft, match=r"allowed: \[K, 2, 32\]"):
            await link.receive()


async def test_without_a_device_head_trajectories_are_refused(cloud) -> None:
    async with running(replace(cloud, proposer=None), Settings()) as server, link_to(server) as link:
        with pytest.raises(ModelMismatch, match="no device head"):
            await link.open(order(cloud, acceptance="trajectory", masking=Masking(TOKENS, 8)))


async def test_a_repeated_round_gets_its_verdict_again(server, cloud) -> None:
    async with link_to(server) as link:
        await link.open(order(cloud))
        draft = Draft(1, 0, no_tokens(), continuous=ONE)
        first, again = await ask(link, draft), await ask(link, draft)
        usage = await link.finish()
    assert np.array_equal(draft.values(first), draft.values(again))
    assert (usage.rounds, usage.judged) == (1, 1)


async def ask(link: CloudLink, draft: Draft) -> Verdict:
    await link.send(draft)
    return await link.receive()


async def test_the_server_says_what_it_serves(server) -> None:
    async with link_to(server) as link:
        (info,) = (await link.info()).models
    assert (info.token_width, info.image_tokens, info.codebook_size) == (WIDTH, TOKENS, 0)


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "x"}, {"acceptance": "x"}, {"prefix": -1}, {"stride": 0}, {"window": 0}, {"use_cloud": False}],
)
def test_impossible_policies_are_refused(wrong) -> None:
    with pytest.raises(InvalidRequest):
        replace(masked_policy.cspd(STEPS), **wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"head_steps": 1}, {"schedule": "x"}, {"tolerance": -1.0}, {"tolerance": float("nan")}, {"clip": -1.0}],
)
def test_impossible_maskings_are_refused(wrong) -> None:
    with pytest.raises(InvalidRequest):
        replace(Masking(STEPS), **wrong)
