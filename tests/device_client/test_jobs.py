"""Streams of events and the jobs behind them: what is told, who may stop what, what a repetition costs."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from cloud_server.server import CloudServer
from device_client import events, jobs
from device_client.draw import Upstream
from device_client.gateway import create_app
from device_client.jobs import KEPT, Job, Jobs
from device_client.wish import Wish, make_plan
from shared.errors import Overloaded
from shared.models.zoo import DevicePackage
from tests.device_client.rig import GRID, NOBODY, Pace, caller, eventually, serving

EVENTS = {"accept": "text/event-stream"}
SLOW = {"prompt": "cat", "mode": "exact", "span": 1, "max_forwards": 1}


@pytest.fixture
async def client(package: DevicePackage, upstream: Upstream) -> AsyncIterator[httpx.AsyncClient]:
    """Over a real socket: streams that end early are the subject."""
    app = create_app(package, upstream)
    async with serving(app) as address, httpx.AsyncClient(base_url=address, timeout=30) as client:
        yield client


async def told(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The events in the lines of a stream."""
    name = ""
    async for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def stream(client: httpx.AsyncClient, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    async with client.stream("POST", "/generate", json=body, headers=EVENTS) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store" and answer.headers["x-job-id"]
        return [event async for event in told(answer.aiter_lines())]


async def test_the_events_add_up_to_the_picture(client: httpx.AsyncClient, slow: Pace) -> None:
    body = {"prompt": "a red cat unicorn", "seed": 5, "n": 2, "partial_images": 3}
    slow.pause_s = 0.01
    whole = (await client.post("/generate", json=body)).json()
    told = await stream(client, body)
    names = [name for name, _ in told]
    assert names[0] == "job" and names[-1] == "done" and names.count("picture") == 2
    for number, want in enumerate([whole, *whole["more"]]):
        tokens: list[int] = []
        sources: list[str] = []
        rounds: list[dict[str, Any]] = []
        for _, data in (event for event in told if event[0] == "progress" and event[1]["picture"] == number):
            assert data["from"] <= len(tokens)
            tokens[data["from"] :], sources[data["from"] :] = data["tokens"], data["sources"]
            rounds += data["rounds"]
        assert (tokens, sources) == (want["tokens"], want["sources"])
        (picture,) = [data for name, data in told if name == "picture" and data["picture"] == number]
        assert picture["seed"] == want["seed"] == 5 + number and "unicorn" in picture["notes"][0]
        assert pixels(picture["image"]) == pixels(want["image"])
        counters = picture["counters"]
        for name in ("judged", "accepted"):
            assert sum(one[name] for one in rounds) == counters[name]
        assert sum(one["wait_s"] for one in rounds) == pytest.approx(counters["wait_s"], abs=0.01)
        assert rounds[-1]["number"] == counters["rounds"] > 2
    partials = [data for name, data in told if name == "partial"]
    assert len(partials) == 6 and {data["media_type"] for data in partials} == {"image/jpeg"}
    with Image.open(BytesIO(base64.b64decode(partials[0]["image"]))) as image:
        assert image.format == "JPEG" and image.width % GRID == 0


def pixels(b64: str) -> bytes:
    with Image.open(BytesIO(base64.b64decode(b64))) as image:
        return image.tobytes()


async def test_partial_pictures_can_be_declined(client: httpx.AsyncClient) -> None:
    told = await stream(client, {"prompt": "cat", "partial_images": 0})
    assert "partial" not in {name for name, _ in told} and told[-1][0] == "done"


async def test_a_stream_that_fails_says_so_at_its_end(package: DevicePackage) -> None:
    async with caller(create_app(package, Upstream(NOBODY, connect_s=0.2, retry_s=0.0))) as client:
        told = await stream(client, {"prompt": "cat"})
    assert [name for name, _ in told] == ["job", "error"]
    assert told[-1][1]["error"]["type"] == "CloudUnreachable"
    assert "cloud-server" in told[-1][1]["error"]["next_step"]


async def test_a_silent_stream_has_a_pulse(package: DevicePackage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.05)
    upstream = Upstream("192.0.2.1:9", connect_s=0.4, retry_s=0.0)  # nobody (RFC 5737)
    async with caller(create_app(package, upstream)) as client:
        text = (await client.post("/generate", json={"prompt": "cat"}, headers=EVENTS)).text
    assert ": still at work\n\n" in text and text.rpartition("event: ")[2].startswith("error\n")


async def test_a_job_is_watched_and_stopped_by_its_id(
    client: httpx.AsyncClient, cloud: CloudServer, slow: Pace
) -> None:
    async with client.stream("POST", "/generate", json=SLOW, headers=EVENTS) as answer:
        job = f"/jobs/{answer.headers['x-job-id']}"
        news = told(answer.aiter_lines())
        while (await anext(news))[0] != "progress":
            pass
        status = (await client.get(job)).json()
        assert status["state"] == "running" and 0 < status["tokens"] < status["image_tokens"] == GRID**2
        assert (status["pictures"], status["finished"], status["error"]) == (1, 0, None)
        assert (await client.delete(job)).status_code == 200
        rest = [name async for name, _ in news]
    assert rest[-1] == "cancelled" and slow.seen[-1] < GRID**2
    assert (await client.get(job)).json()["state"] == "cancelled"
    await eventually(lambda: not cloud.telemetry.value("ciar_sessions_active"))


async def test_who_waits_for_a_cancelled_job_is_told(client: httpx.AsyncClient, slow: Pace) -> None:
    headers = {"idempotency-key": "k"}
    waiting = asyncio.create_task(client.post("/generate", json=SLOW, headers=headers))
    await eventually(lambda: len(slow.seen) > 2)
    async with client.stream("POST", "/generate", json=SLOW, headers={**headers, **EVENTS}) as second:
        await client.delete(f"/jobs/{second.headers['x-job-id']}")
    answer = await waiting
    assert (answer.status_code, answer.json()["error"]["type"]) == (409, "JobCancelled")


async def test_a_job_outlives_all_but_its_last_watcher(client: httpx.AsyncClient, slow: Pace) -> None:
    headers = {**EVENTS, "idempotency-key": "two watch"}
    async with client.stream("POST", "/generate", json=SLOW, headers=headers) as first:
        async with client.stream("POST", "/generate", json=SLOW, headers=headers) as second:
            assert first.headers["x-job-id"] == second.headers["x-job-id"]
            await anext(told(second.aiter_lines()))
        seen = len(slow.seen)
        await eventually(lambda: len(slow.seen) > seen + 3)
    await eventually(slow.ended.is_set)
    assert slow.seen[-1] < GRID**2 and slow.begun == 1


async def test_a_repeated_key_is_not_drawn_twice(client: httpx.AsyncClient, slow: Pace) -> None:
    slow.pause_s = 0.0
    headers = {"idempotency-key": "a-key"}
    answers = [(await client.post("/generate", json={"prompt": "cat"}, headers=headers)).json() for _ in "12"]
    assert answers[0] == answers[1] and slow.begun == 1
    for key, body, says in (
        ("a-key", {"prompt": "dog"}, "another request"),
        ("k" * 256, {"prompt": "cat"}, "256 characters"),
        ("", {"prompt": "cat"}, "1 to 255"),
    ):
        refused = await client.post("/generate", json=body, headers={"idempotency-key": key})
        assert refused.status_code == 422 and says in refused.json()["error"]["message"]
    assert slow.begun == 1


async def test_a_failed_job_is_tried_again_under_its_key(package: DevicePackage, upstream: Upstream) -> None:
    studio = Jobs(package, Upstream(NOBODY, connect_s=0.1, retry_s=0.0))
    plan = make_plan(package, Wish(prompt="cat"))
    first = studio.begin(lambda: [plan], "cat", "k")
    with pytest.raises(jobs.CiarError, match="no cloud server"):
        await first.result()
    assert studio.begin(lambda: [plan], "cat", "k") is not first


@pytest.mark.parametrize(
    ("body", "accept", "says"),
    [
        ({"size": "1024x1024"}, "*/*", "allowed: 32x32, auto"),
        ({"n": 2}, "image/png", "one file is one picture"),
        ({"n": 0}, "*/*", "greater than or equal to 1"),
        ({"n": 2, "seed": 2**64 - 1}, "*/*", "18446744073709551615"),
        ({"partial_images": 61}, "text/event-stream", "less than or equal to 60"),
    ],
)
async def test_what_cannot_be_is_refused(
    client: httpx.AsyncClient, body: dict[str, Any], accept: str, says: str
) -> None:
    answer = await client.post("/generate", json={"prompt": "cat", **body}, headers={"accept": accept})
    assert answer.status_code == 422 and says in answer.json()["error"]["message"]


async def test_the_size_of_the_model_is_allowed(client: httpx.AsyncClient) -> None:
    assert (await client.post("/generate", json={"prompt": "cat", "size": "32x32"})).status_code == 200


async def test_unknown_jobs_are_unknown(client: httpx.AsyncClient) -> None:
    for answer in (await client.get("/jobs/x"), await client.delete("/jobs/x")):
        assert answer.status_code == 404 and "no job 'x'" in answer.json()["error"]["message"]


async def test_there_is_an_end_to_jobs(
    package: DevicePackage, upstream: Upstream, slow: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_RUNNING", 2)
    studio = Jobs(package, upstream)
    plan = make_plan(package, Wish(prompt="cat", mode="device-only"))

    def begin() -> Job:
        return studio.begin(lambda: [plan], "cat", None)

    busy = [asyncio.create_task(begin().result()) for _ in range(2)]
    await eventually(lambda: slow.begun == 2)
    with pytest.raises(Overloaded, match="2 requests"):
        begin()
    for task in busy:
        task.cancel()
    await asyncio.wait(busy)
    await eventually(slow.ended.is_set)
    slow.pause_s = 0.0
    ids = [begin().id for _ in range(KEPT + 3)]
    assert studio.find(ids[0]) is None and studio.find(ids[-1]) is not None


async def test_a_job_nobody_comes_for_never_begins(
    package: DevicePackage, upstream: Upstream, slow: Pace
) -> None:
    plan = make_plan(package, Wish(prompt="cat"))
    job = Jobs(package, upstream).begin(lambda: [plan], "cat", None)
    job.cancel()
    with pytest.raises(jobs.JobCancelled):
        await job.result()
    assert slow.begun == 0
