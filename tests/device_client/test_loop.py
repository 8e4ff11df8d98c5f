"""The algorithm against a real server in this process: what it draws, what it counts, how it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from cloud_server.server import CloudServer, Settings, running
from device_client.drafter import Drafter
from device_client.link import CloudLink
from device_client.loop import Progress, Request, Source, decode
from device_client.policy import Policy, policy_for
from shared.errors import InvalidPrompt, InvalidRequest, Overloaded
from shared.messages import Usage
from shared.models.zoo import CloudModel, DevicePackage
from tests.tiny import WARP
from training.base import sample

GRID, TOKENS = 6, 36
REQUESTS = [
    Request("a red cat", 0, WARP),
    Request("a dog on a blue background", 12345, WARP),
    Request("green house", 2**64 - 1, dataclasses.replace(WARP, guidance=1.0, temperature=0.8, top_p=0.9)),
    Request("a banana", 3, dataclasses.replace(WARP, guidance=3.0, top_k=7)),
]
REQUEST = REQUESTS[0]


@pytest.fixture
async def server(cloud_model: CloudModel) -> AsyncIterator[CloudServer]:
    async with running(cloud_model, Settings(max_sessions=2)) as server:
        yield server


class WitnessLink(CloudLink):
    """A link that remembers what the cloud says a session cost."""

    usage: Usage | None = None

    async def finish(self) -> Usage:
        """As CloudLink."""
        self.usage = await super().finish()
        return self.usage


@asynccontextmanager
async def link_to(server: CloudServer) -> AsyncIterator[WitnessLink]:
    async with WitnessLink(f"127.0.0.1:{server.port}", retry_s=0.0) as link:
        yield link


async def run(package: DevicePackage, request: Request, policy: Policy, server: CloudServer) -> Progress:
    """The finished image; every step is held against the one before, the counters against Usage."""
    async with link_to(server) as link:
        steps = [step async for step in decode(package, request, policy, link)]
        check_steps(steps)
        check_counters(steps[-1], policy)
        assert link.usage is not None
        counters = steps[-1].counters
        told = Usage(
            counters.cloud_forwards, counters.rounds, counters.judged, counters.accepted, counters.cloud_s
        )
        assert dataclasses.replace(told, cloud_s=0) == dataclasses.replace(link.usage, cloud_s=0)
        assert told.cloud_s == pytest.approx(link.usage.cloud_s, abs=1e-6 * (counters.rounds + 2))
        return steps[-1]


def check_steps(steps: list[Progress]) -> None:
    """Tokens only ever grow, each has one source, and only the last step is done."""
    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
    for before, after in pairwise(steps):
        count = len(before.tokens)
        assert len(after.tokens) > count
        assert (after.tokens[:count], after.sources[:count]) == (before.tokens, before.sources)


def check_counters(image: Progress, policy: Policy) -> None:
    """Every counter that the sources determine."""
    assert len(image.tokens) == len(image.sources) == len(image.scores) == image.counters.image_tokens
    count = {source: image.sources.count(source) for source in Source}
    counters = image.counters
    assert counters.kept == count[Source.KEPT]
    assert counters.accepted == count[Source.VERIFIED]
    forwards = sum(trip.cloud_forwards for trip in image.trips)
    alone, begun = counters.cloud_forwards - forwards, count[Source.PREFIX]
    assert alone == begun or (policy.alone and min(begun, 1) <= alone < begun)
    drawn = count[Source.CORRECTED] + count[Source.BONUS]
    assert forwards - drawn <= 1  # each brings a token, but one whose span ends at T
    if forwards == counters.rounds:
        assert forwards - drawn in (0, 1)
    assert counters.judged >= counters.accepted + count[Source.CORRECTED]
    assert counters.judged <= counters.tokens_up <= counters.judged + counters.kept
    assert sum(count.values()) == len(image.tokens)
    assert 0 < counters.device_s + counters.wait_s <= counters.total_s
    assert counters.cloud_s <= counters.wait_s
    for source, score in zip(image.sources, image.scores, strict=True):
        assert score is None or source not in (Source.PREFIX, Source.BONUS)
    derived = json.loads(json.dumps(counters.as_dict(), allow_nan=False))
    assert derived["call_rate"] == counters.cloud_forwards / len(image.tokens)
    assert derived["local_rate"] == counters.kept / len(image.tokens)


@pytest.mark.parametrize("request_", REQUESTS)
async def test_whatever_is_verified_is_what_the_base_draws(
    package: DevicePackage, cloud_model: CloudModel, server: CloudServer, request_: Request
) -> None:
    base = await run(package, request_, policy_for("cloud-only", package.calibration), server)
    assert set(base.sources) == {Source.PREFIX} and base.counters.call_rate == 1.0
    if request_.warp.guidance != 1.0:
        drawn = sample(cloud_model.model, [request_.prompt], [request_.seed], request_.warp)
        assert list(base.tokens) == drawn[0].tolist()
    overrides: list[dict[str, Any]] = [{}, {"span": 1}, {"span": 16}]
    overrides += [{"span": 5, "prefix_rate": 0.3}, {"span": 5, "prefix_rate": 0.3, "alone": ""}]
    overrides += [{**override, "max_forwards": 1} for override in overrides]
    policies = [policy_for("exact", package.calibration, **override) for override in overrides]
    policies.append(policy_for("ciar", package.calibration, gate="always"))
    for policy in policies:
        image = await run(package, request_, policy, server)
        assert image.tokens == base.tokens, policy
        assert Source.KEPT not in image.sources
        assert image.counters.cloud_forwards < TOKENS
        assert image.counters.steps > 1
        # Open names a folder here; a round is about 21 bytes and 2 per token up, 16 bytes down
        assert image.counters.bytes_up <= 250 + 26 * image.counters.rounds + 2 * image.counters.tokens_up
        guessed = policy.guesses * (10 * image.counters.rounds + 2 * image.counters.judged)
        if policy.max_forwards > 1:  # what the cloud drew onward travels, and a window of guesses behind it
            more = image.sources.count(Source.BONUS)
            guessed = 2 * more + (10 + 2 * policy.window) * image.counters.rounds
        assert image.counters.bytes_down <= 150 + 20 * image.counters.rounds + guessed


async def test_a_gate_that_never_asks_leaves_the_device_alone_behind_the_prefix(
    package: DevicePackage, server: CloudServer
) -> None:
    policy = policy_for("ciar", package.calibration, gate="never", prefix_rate=0.25, alone="")
    image = await run(package, REQUEST, policy, server)
    tokens = list(image.tokens[:9])
    assert image.sources == (Source.PREFIX,) * 9 + (Source.KEPT,) * 27
    drafter = Drafter(package, REQUEST.prompt, REQUEST.seed, REQUEST.warp)
    while len(tokens) < TOKENS:
        tokens.append(drafter.step(tokens).token)
    assert list(image.tokens) == tokens
    assert (image.counters.rounds, image.counters.tokens_up, image.counters.acceptance_rate) == (0, 0, 0)


async def test_the_device_alone_needs_no_cloud(package: DevicePackage) -> None:
    policy = policy_for("device-only", package.calibration)
    steps = [step async for step in decode(package, REQUEST, policy, None)]
    check_steps(steps)
    check_counters(steps[-1], policy)
    assert len(steps) == TOKENS
    counters = steps[-1].counters
    assert (counters.cloud_forwards, counters.steps, counters.bytes_up, counters.wait_s) == (0, 0, 0, 0)
    assert counters.local_rate == 1.0


async def test_ciar_lies_between_the_extremes(package: DevicePackage, server: CloudServer) -> None:
    calls = []
    for gate, threshold in (("never", None), ("margin", -0.7), ("margin", -1.5), ("always", None)):
        policy = policy_for(
            "ciar", package.calibration, gate=gate, threshold=threshold, span=3, prefix_rate=0.1, alone=""
        )
        images = [await run(package, request, policy, server) for request in REQUESTS]
        calls.append(sum(image.counters.call_rate for image in images))
        if gate == "margin":
            assert {Source.PREFIX, Source.KEPT, Source.VERIFIED, Source.CORRECTED} <= {
                source for image in images for source in image.sources
            }
            for image in images:
                kept = [image.scores[place] for place in range(TOKENS) if image.sources[place] == Source.KEPT]
                assert all(score is None or score <= policy.threshold for score in kept)
    assert calls == sorted(calls) and calls[0] < calls[1] < calls[-1]


async def test_kept_tokens_ride_along_with_their_features(
    package: DevicePackage, server: CloudServer
) -> None:
    policy = policy_for("ciar", package.calibration, gate="margin", threshold=-0.7, max_forwards=1)
    assert policy.features
    rich = await run(package, REQUEST, policy, server)
    plain = await run(package, REQUEST, dataclasses.replace(policy, features=False), server)
    # W of the tiny cloud is zero: features cost bytes and change nothing.
    assert rich.tokens == plain.tokens
    sent = rich.counters.tokens_up - rich.counters.judged
    more = rich.counters.bytes_up - plain.counters.bytes_up
    assert 0 < sent <= rich.counters.kept
    assert 36 * sent <= more <= 36 * sent + 60 * rich.counters.rounds


@pytest.mark.parametrize("acceptance", ["rejection", "greedy"])
async def test_other_rules_draw_whole_images(
    package: DevicePackage, server: CloudServer, acceptance: str
) -> None:
    for mode, dials in (("ciar", {"cloud_budget": 0.4}), ("exact", {})):
        policy = policy_for(mode, package.calibration, acceptance=acceptance, **dials)
        image = await run(package, REQUEST, policy, server)
        assert 0 < image.counters.accepted < image.counters.judged
    if acceptance == "greedy":
        base = policy_for("cloud-only", package.calibration, acceptance="greedy")
        assert image.tokens == (await run(package, REQUEST, base, server)).tokens


async def test_one_link_serves_images_one_after_another(package: DevicePackage, server: CloudServer) -> None:
    policy = policy_for("exact", package.calibration)
    async with link_to(server) as link:
        images = [[step async for step in decode(package, REQUEST, policy, link)][-1] for _ in range(3)]
    assert len({image.tokens for image in images}) == 1
    assert len({image.counters.bytes_up for image in images}) == 1


async def test_a_consumer_that_stops_early_frees_the_session(
    package: DevicePackage, server: CloudServer
) -> None:
    policy = policy_for("exact", package.calibration, span=1)
    async with link_to(server) as one, link_to(server) as other, link_to(server) as third:
        first = decode(package, REQUEST, policy, one)
        await anext(first)
        async with aclosing(decode(package, REQUEST, policy, other)) as steps:  # type: ignore[type-var]
            async for step in steps:
                if len(step.tokens) > 3:
                    break
            with pytest.raises(Overloaded):  # both places are taken
                await anext(decode(package, REQUEST, policy, third))
        assert other.usage is not None and other.usage.rounds == step.counters.rounds
        images = [step async for step in decode(package, REQUEST, policy, third)]
        assert images[-1].done
        await first.aclose()  # type: ignore[attr-defined]


async def test_a_cancelled_consumer_frees_the_session(package: DevicePackage, server: CloudServer) -> None:
    policy = policy_for("exact", package.calibration, span=1)
    for pause_s in (0.0, 0.002, 0.005, 0.01, 0.02):
        task = asyncio.create_task(run(package, REQUEST, policy, server))
        await asyncio.sleep(pause_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    both = await asyncio.gather(*(run(package, request, policy, server) for request in REQUESTS[:2]))
    assert all(image.done for image in both)


async def test_adaptive_spans_are_as_long_as_they_are_likely_to_be_accepted(
    package: DevicePackage, server: CloudServer
) -> None:
    policy = policy_for("exact", package.calibration)
    spans = []
    for floor in (0.999, 0.3, 0.001):
        counters = (
            await run(package, REQUEST, dataclasses.replace(policy, adaptive_floor=floor), server)
        ).counters
        spans.append(counters.judged / counters.rounds)
    assert 1 <= spans[0] < spans[1] < spans[2] <= 16


async def test_bad_requests_never_reach_the_cloud(package: DevicePackage) -> None:
    policy = policy_for("exact", package.calibration)
    async with CloudLink("127.0.0.1:1") as link:
        with pytest.raises(InvalidPrompt):
            await anext(decode(package, dataclasses.replace(REQUEST, prompt="xyzzy"), policy, link))
        with pytest.raises(InvalidRequest, match="needs a cloud"):
            await anext(decode(package, REQUEST, policy, None))
