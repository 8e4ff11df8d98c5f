"""Waiting jobs become batches; cancelled and failing ones harm nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest

from cloud_server.engine import Answer, Engine
from cloud_server.scheduler import Pace, Scheduler
from cloud_server.session import Job, Session
from cloud_server.telemetry import Telemetry
from shared.errors import Overloaded
from shared.messages import Open
from shared.models.zoo import CloudModel
from tests.cloud_server.rig import order, tokens


class Gated(Engine):
    """An engine whose thread waits before every forward and opening until the test opens the gate."""

    def __init__(self, cloud: CloudModel) -> None:
        super().__init__(cloud, 4)
        self.gate = threading.Event()
        self.batches: list[list[Session]] = []

    def open(self, order: Open) -> Session:
        """Wait, then open."""
        self.gate.wait(10)
        return super().open(order)

    def run(self, jobs: Sequence[Job]) -> list[Answer]:
        """Wait, then judge; a job with 13 in its span fails."""
        self.gate.wait(10)
        self.batches.append([job.session for job in jobs])
        if any(13 in job.span for job in jobs):
            raise ValueError("13")
        return super().run(jobs)


@pytest.fixture
def gated(cloud: CloudModel) -> Gated:
    """The engine under the scheduler."""
    return Gated(cloud)


@pytest.fixture
def scheduler(gated: Gated) -> Iterator[Scheduler]:
    """A scheduler with its thread, ended at the end."""
    scheduler = Scheduler(gated, Telemetry())
    yield scheduler
    gated.gate.set()
    scheduler.stop()


async def opened(scheduler: Scheduler, gated: Gated, cloud: CloudModel, count: int) -> list[Session]:
    """Sessions, with the gate closed behind them."""
    gated.gate.set()
    sessions = [await scheduler.open(order(cloud, seed)) for seed in range(count)]
    gated.gate.clear()
    return sessions


async def test_what_waits_becomes_one_batch(scheduler: Scheduler, gated: Gated, cloud: CloudModel) -> None:
    sessions = await opened(scheduler, gated, cloud, 4)
    first = asyncio.create_task(scheduler.submit(Job(sessions[3])))
    await asyncio.sleep(0.05)
    rest = [asyncio.create_task(scheduler.submit(Job(session))) for session in sessions[:3]]
    await asyncio.sleep(0.05)
    gated.gate.set()
    answers = await asyncio.gather(first, *rest)
    assert gated.batches == [[sessions[3]], sessions[:3]]
    assert answers[1].cloud_s == answers[2].cloud_s == sessions[1].cloud_s > 0
    assert all(session.forwards == 1 for session in sessions)


async def test_one_session_is_never_twice_in_a_batch(
    scheduler: Scheduler, gated: Gated, cloud: CloudModel
) -> None:
    one, other = await opened(scheduler, gated, cloud, 2)
    tasks = [asyncio.create_task(scheduler.submit(Job(session))) for session in (one, one, other, one)]
    await asyncio.sleep(0.05)
    gated.gate.set()
    await asyncio.gather(*tasks)
    assert all(len(set(map(id, batch))) == len(batch) for batch in gated.batches)
    assert len(one.tokens) == 3


async def test_a_cancelled_waiter_is_dropped(scheduler: Scheduler, gated: Gated, cloud: CloudModel) -> None:
    sessions = await opened(scheduler, gated, cloud, 4)
    tasks = [asyncio.create_task(scheduler.submit(Job(sessions[3])))]
    await asyncio.sleep(0.05)
    tasks += [asyncio.create_task(scheduler.submit(Job(session))) for session in sessions[:3]]
    await asyncio.sleep(0.05)
    tasks[2].cancel()
    tasks[3].cancel()
    scheduler.close(sessions[1])
    gated.gate.set()
    await asyncio.gather(*tasks[:2])
    await scheduler.open(order(cloud))
    assert gated.batches == [[sessions[3]], [sessions[0]]]


async def test_a_failing_batch_fails_alone(scheduler: Scheduler, gated: Gated, cloud: CloudModel) -> None:
    bad, good = await opened(scheduler, gated, cloud, 2)
    failing = asyncio.create_task(scheduler.submit(Job(bad, tokens(13))))
    await asyncio.sleep(0.05)
    fine = asyncio.create_task(scheduler.submit(Job(good, tokens(12))))
    gated.gate.set()
    with pytest.raises(ValueError, match="13"):
        await failing
    assert (await fine).cloud_s > 0
    assert bad.tokens == []


async def test_an_abandoned_opening_takes_no_slot(
    scheduler: Scheduler, gated: Gated, cloud: CloudModel
) -> None:
    await opened(scheduler, gated, cloud, 3)
    opening = asyncio.create_task(scheduler.open(order(cloud)))
    await asyncio.sleep(0.05)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    gated.gate.set()
    await asyncio.sleep(0.05)
    await scheduler.open(order(cloud))
    with pytest.raises(Overloaded):
        await scheduler.open(order(cloud))


async def test_a_bad_job_does_not_spoil_its_batch_mates(
    scheduler: Scheduler, gated: Gated, cloud: CloudModel
) -> None:
    sessions = await opened(scheduler, gated, cloud, 4)
    tasks = [asyncio.create_task(scheduler.submit(Job(sessions[3])))]
    await asyncio.sleep(0.05)
    spans = [tokens(12), tokens(13), tokens(11)]
    tasks += [
        asyncio.create_task(scheduler.submit(Job(session, span)))
        for session, span in zip(sessions, spans, strict=False)
    ]
    await asyncio.sleep(0.05)
    gated.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Answer, Answer, ValueError, Answer]
    alone = Gated(cloud)
    alone.gate.set()
    for session, span in zip(sessions[:3:2], spans[::2], strict=True):
        twin = alone.open(session.order)
        alone.run([Job(twin, span)])
        assert twin.tokens == session.tokens
    assert sessions[1].tokens == []


@pytest.mark.parametrize("max_wait_s", [0.0, 5.0])
async def test_a_batch_waits_for_company_no_longer_than_it_may(
    gated: Gated, cloud: CloudModel, max_wait_s: float
) -> None:
    """With time to wait, all who have a session come together; without, the first goes alone."""
    scheduler = Scheduler(gated, Telemetry(), Pace(max_wait_s))
    sessions = await opened(scheduler, gated, cloud, 3)
    gated.gate.set()
    tasks = []
    for session in sessions:
        tasks.append(asyncio.create_task(scheduler.submit(Job(session))))
        await asyncio.sleep(0.1)
    await asyncio.gather(*tasks)
    scheduler.stop()
    assert [len(batch) for batch in gated.batches] == ([3] if max_wait_s else [1, 1, 1])


async def test_whoever_comes_not_is_not_waited_for_long(gated: Gated, cloud: CloudModel) -> None:
    scheduler = Scheduler(gated, Telemetry(), Pace(max_wait_s=0.05))
    one, _ = await opened(scheduler, gated, cloud, 2)
    gated.gate.set()
    await asyncio.wait_for(scheduler.submit(Job(one)), 5)
    scheduler.stop()
    assert gated.batches == [[one]]


async def test_everybody_has_a_turn_between_two_turns_of_another(
    scheduler: Scheduler, gated: Gated, cloud: CloudModel
) -> None:
    """However many jobs one device has waiting, each forward takes one of every session's."""
    greedy, modest = await opened(scheduler, gated, cloud, 2)
    tasks = [asyncio.create_task(scheduler.submit(Job(greedy))) for _ in range(6)]
    await asyncio.sleep(0.05)
    tasks += [asyncio.create_task(scheduler.submit(Job(modest))) for _ in range(2)]
    await asyncio.sleep(0.05)
    gated.gate.set()
    await asyncio.gather(*tasks)
    assert [modest in batch for batch in gated.batches[:4]] == [False, True, True, False]
