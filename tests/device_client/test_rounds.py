"""Fewer, better rounds: guesses, iterations, pipelining. None of them may change a verified image."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloud_server.server import CloudServer, Settings, running
from device_client.link import CloudLink
from device_client.loop import Counters, Progress, Request, Source, decode
from device_client.policy import Policy, policy_for
from device_client.rounds import weigh
from shared.messages import Draft, Usage, Verdict
from shared.models.inter_head import DeviceModel
from shared.models.zoo import CloudModel, DevicePackage
from tests.tiny import WARP

GRID = 6

TOKENS = 36
REQUESTS = [Request("a red cat", 5, WARP), Request("a dog on a blue background", 12345, WARP)]
SPANS: tuple[int | str, ...] = (1, 5, 16, "adaptive")
# guesses, forwards per round, rounds in flight: each switch alone, then several at once
SWITCHES = [
    {"guesses": guesses, "max_forwards": forwards, "in_flight": flight}
    for guesses, forwards, flight in (
        (True, 1, 1), (False, 2, 1), (False, 3, 1), (False, 1, 2), (False, 1, 3), (False, 1, 4),
        (True, 2, 1), (True, 1, 4), (False, 3, 4), (True, 2, 2), (True, 3, 3), (True, 3, 4),
    )
]  # fmt: skip


@pytest.fixture
async def server(cloud_model: CloudModel) -> AsyncIterator[CloudServer]:
    async with running(cloud_model, Settings(max_sessions=8)) as server:
        yield server


class Witness(CloudLink):
    """A link that remembers what went over it."""

    usage: Usage | None = None

    def __init__(self, target: str, **options: Any) -> None:
        super().__init__(target, **options)
        self.drafts: list[Draft] = []
        self.verdicts: list[Verdict] = []

    async def send(self, draft: Draft) -> None:
        """As CloudLink."""
        self.drafts.append(draft)
        await super().send(draft)

    async def receive(self) -> Verdict:
        """As CloudLink."""
        self.verdicts.append(await super().receive())
        return self.verdicts[-1]

    async def finish(self) -> Usage:
        """As CloudLink."""
        self.usage = await super().finish()
        return self.usage


async def run(
    package: DevicePackage, request: Request, policy: Policy, server: CloudServer
) -> tuple[Progress, Witness]:
    """The finished image and what it took; the device's counters are those of the cloud."""
    async with Witness(f"127.0.0.1:{server.port}", retry_s=0.0) as link:
        image = [step async for step in decode(package, request, policy, link)][-1]
    assert link.usage is not None
    check(image, link.usage)
    return image, link


def check(image: Progress, usage: Usage) -> None:
    """What the counters, the sources and the waterfall say about each other."""
    counters, count = image.counters, image.sources.count
    told = (counters.cloud_forwards, counters.rounds, counters.judged, counters.accepted)
    assert told == (usage.cloud_forwards, usage.rounds, usage.judged, usage.accepted)
    assert (counters.accepted, counters.kept) == (count(Source.VERIFIED), count(Source.KEPT))
    answered = [trip for trip in image.trips if trip.arrived_s is not None]
    assert len(answered) == counters.rounds
    assert sum(trip.cloud_forwards for trip in answered) + count(Source.PREFIX) == counters.cloud_forwards
    assert sum(trip.drawn for trip in answered) == count(Source.CORRECTED) + count(Source.BONUS)
    assert all(0 < trip.sent_s <= (trip.arrived_s or counters.total_s) for trip in image.trips)
    assert sum(trip.device_s for trip in image.trips) <= counters.device_s
    assert counters.device_s + counters.wait_s <= counters.total_s


@pytest.mark.parametrize(("span", "request_"), list(zip(SPANS, REQUESTS * 2, strict=True)))
async def test_no_switch_changes_a_verified_image(
    package: DevicePackage, server: CloudServer, span: int | str, request_: Request
) -> None:
    """Six images at a time, so that sessions share forwards."""
    base, _ = await run(package, request_, policy_for("cloud-only", package.calibration), server)
    policies = [policy_for("exact", package.calibration, span=span, **switch) for switch in SWITCHES]
    for together in (policies[::2], policies[1::2]):
        drawn = await asyncio.gather(*(run(package, request_, policy, server) for policy in together))
        for policy, (image, _) in zip(together, drawn, strict=True):
            assert image.tokens == base.tokens, policy


async def test_pipelining_changes_no_image_that_keeps_tokens(
    package: DevicePackage, server: CloudServer
) -> None:
    """Where tokens are kept, what the cloud is asked decides the image; pipelined, it is asked the same."""
    for request, span in zip((*REQUESTS, REQUESTS[0]), (1, 3, "adaptive"), strict=True):
        gated = policy_for(
            "ciar", package.calibration, gate="margin", threshold=-0.9, span=span, max_forwards=1
        )
        plain, _ = await run(package, request, gated, server)
        assert Source.KEPT in plain.sources and gated.features
        for flight in (2, 4):
            image, link = await run(package, request, dataclasses.replace(gated, in_flight=flight), server)
            assert (image.tokens, image.sources) == (plain.tokens, plain.sources)
            assert image.counters.rounds == plain.counters.rounds
            if flight == 4 and span == 1:
                behind = [draft for draft in link.drafts if draft.behind is not None]
                assert any(draft.features is not None for draft in behind)


async def test_guesses_come_only_where_they_are_wanted(package: DevicePackage, server: CloudServer) -> None:
    for wanted in (False, True):
        policy = policy_for("exact", package.calibration, span=8, guesses=wanted, max_forwards=1)
        _, link = await run(package, REQUESTS[0], policy, server)
        rejected = [
            verdict
            for verdict, draft in zip(link.verdicts, link.drafts, strict=True)
            if verdict.accepted < len(draft.span)
        ]
        assert rejected and any(len(verdict.guesses) for verdict in rejected) == wanted
        for verdict, draft in zip(link.verdicts, link.drafts, strict=True):
            room = TOKENS - draft.base - verdict.accepted - 1
            expected = min(len(draft.span) - verdict.accepted, room) if verdict in rejected else 0
            assert len(verdict.guesses) == expected * wanted


async def test_iterations_trade_forwards_for_rounds(package: DevicePackage, server: CloudServer) -> None:
    """Every further forward adds at least one token to its round, and never more than asked for are run."""
    rounds = []
    for forwards in (1, 2, 3):
        policy = policy_for("exact", package.calibration, span=8, max_forwards=forwards, guesses=False)
        images = [await run(package, request, policy, server) for request in REQUESTS]
        rounds.append(sum(image.counters.rounds for image, _ in images))
        for verdict in (verdict for _, link in images for verdict in link.verdicts):
            assert 1 <= verdict.cloud_forwards <= forwards
            assert len(verdict.more) >= verdict.cloud_forwards - 1
    assert rounds[0] > rounds[1] > rounds[2]


async def test_iterations_of_several_sessions_share_forwards(
    package: DevicePackage, server: CloudServer
) -> None:
    policy = policy_for("exact", package.calibration, span=8, max_forwards=3)
    drawn = await asyncio.gather(*(run(package, request, policy, server) for request in REQUESTS * 3))
    jobs = server.telemetry.value("ciar_batch_jobs_sum")
    assert jobs == sum(image.counters.cloud_forwards for image, _ in drawn)
    assert server.telemetry.value("ciar_batch_jobs_count") < jobs


async def test_a_pipelined_round_is_free_where_it_was_in_vain(
    package: DevicePackage, server: CloudServer
) -> None:
    policy = policy_for("exact", package.calibration, span=3)
    alone, _ = await run(package, REQUESTS[0], policy, server)
    image, link = await run(package, REQUESTS[0], dataclasses.replace(policy, in_flight=4), server)
    void = [trip for trip in image.trips if trip.arrived_s is None]
    assert len(link.drafts) == image.counters.rounds + len(void)
    assert void and image.counters.tokens_up > alone.counters.tokens_up
    assert image.counters.cloud_forwards == alone.counters.cloud_forwards
    assert any(draft.behind is not None for draft in link.drafts)


async def test_a_pipeline_saves_waiting_where_drafts_are_right(
    package: DevicePackage, cloud_model: CloudModel
) -> None:
    """A device that is the cloud itself is never corrected: only the first round has nothing before it."""
    twin = dataclasses.replace(package, model=_twin(package, cloud_model))
    async with running(cloud_model, Settings()) as server:
        policy = policy_for("exact", package.calibration, span=3, in_flight=4)
        image, link = await run(twin, REQUESTS[0], policy, server)
    assert image.counters.acceptance_rate == 1.0
    assert [draft.behind is None for draft in link.drafts] == [True] + [False] * (len(link.drafts) - 1)
    assert all(trip.arrived_s is not None for trip in image.trips)


def _twin(package: DevicePackage, cloud_model: CloudModel) -> Any:
    return DeviceModel(cloud_model.model, package.model.config).eval()


async def test_an_early_end_of_a_pipeline_frees_the_session(
    package: DevicePackage, server: CloudServer
) -> None:
    policy = policy_for("exact", package.calibration, span=2, in_flight=4, guesses=True)
    async with Witness(f"127.0.0.1:{server.port}", retry_s=0.0) as link:
        steps = decode(package, REQUESTS[0], policy, link)
        async for step in steps:
            if len(step.tokens) > 5:
                break
        await steps.aclose()
    assert link.usage is not None and link.usage.rounds >= step.counters.rounds
    assert server.telemetry.value("ciar_sessions_active") == 0


@pytest.mark.parametrize("acceptance", ["rejection", "greedy"])
async def test_other_rules_keep_their_images(
    package: DevicePackage, server: CloudServer, acceptance: str
) -> None:
    """Every rule draws with keyed noise, so that of these too a pipeline changes nothing."""
    plain = policy_for("exact", package.calibration, acceptance=acceptance, guesses=False, span=4)
    image, _ = await run(package, REQUESTS[0], plain, server)
    every = dataclasses.replace(plain, in_flight=3, max_forwards=2, guesses=True)
    assert (await run(package, REQUESTS[0], every, server))[0].tokens == image.tokens


def test_a_guess_is_a_second_opinion() -> None:
    assert weigh(7, 0.6, None, 0) == (7, 0.6)
    token, chance = weigh(7, 0.6, 7, 0)
    assert token == 7 and 0.6 < chance < weigh(7, 0.6, 7, 1)[1] < 1
    assert weigh(7, 0.95, 8, 0)[0] == 7 and 0 < weigh(7, 0.95, 8, 0)[1] < 0.95
    assert weigh(7, 0.1, 8, 0)[0] == 8
    assert weigh(7, 0.6, 8, 5)[0] == 8  # further on, guesses are the better ones
    for chance in (0.0, 1.0):
        assert 0 <= weigh(7, chance, 8, 0)[1] <= 1 and weigh(7, chance, 7, 9)[1] == chance


def test_the_waterfall_is_plain_numbers() -> None:
    counters = Counters(4, cloud_s=2.0, wait_s=1.0, total_s=4.0)
    assert counters.comm_share == 0.0  # the model worked while the device did
    assert json.loads(json.dumps(counters.as_dict()))["cloud_s"] == 2.0
