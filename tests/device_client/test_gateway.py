"""The REST service over real servers: both forms of an answer, every kind of error, callers who hang up."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from starlette.routing import Route

from cloud_server.server import CloudServer, Settings, running
from device_client import answers, draw, gateway, jobs
from device_client.draw import Upstream
from device_client.gateway import create_app
from device_client.generate import GenerateBody
from device_client.loop import Progress, Source
from device_client.render import CHUNK
from device_client.wish import make_plan
from shared.errors import (
    CiarError,
    CloudUnreachable,
    InvalidDraft,
    InvalidPrompt,
    ModelMismatch,
    Overloaded,
    SessionLost,
)
from shared.logs import JsonLines
from shared.models.zoo import CloudModel, DevicePackage, load_cloud
from tests.device_client.rig import GRID, NOBODY, caller, serving
from tests.tiny import build_tiny_model


@pytest.fixture
async def client(package: DevicePackage, cloud: CloudServer) -> AsyncIterator[httpx.AsyncClient]:
    async with caller(create_app(package, Upstream(f"127.0.0.1:{cloud.port}", retry_s=0.2))) as client:
        yield client


@pytest.fixture
async def lonely(package: DevicePackage) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway whose cloud does not exist."""
    async with caller(create_app(package, Upstream(NOBODY, connect_s=0.3, retry_s=0.0))) as client:
        yield client


async def refused(client: httpx.AsyncClient, status: int, body: Any, **headers: str) -> dict[str, str]:
    """The error of a request that must fail with that status."""
    answer = await client.post("/generate", json=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    error: dict[str, str] = answer.json()["error"]
    assert list(error) == ["type", "message", "next_step"]
    return error


@pytest.mark.parametrize("mode", ["ciar", "exact", "cloud-only", "device-only"])
async def test_json_form(client: httpx.AsyncClient, package: DevicePackage, mode: str) -> None:
    body = {"prompt": "a red cat unicorn", "seed": 2**64 - 1, "mode": mode}
    answer = (await client.post("/generate", json=body)).raise_for_status().json()
    assert {name: answer[name] for name in body} == body
    assert answer["settings"]["device_digest"] == package.digest
    assert answer["settings"]["cloud_digest"] == package.cloud_digest
    assert len(answer["sources"]) == GRID * GRID and set(answer["sources"]) <= {
        s.name.lower() for s in Source
    }
    assert (answer["counters"]["cloud_forwards"] == 0) == (mode == "device-only")
    assert "unicorn" in answer["notes"][0]
    with Image.open(BytesIO(base64.b64decode(answer["image"]))) as image:
        settings = json.loads(str(image.info[CHUNK]))
        assert image.size == (GRID * package.vq.config.factor,) * 2
    assert settings["counters"] == answer["counters"] and settings["seed"] == 2**64 - 1


async def test_png_form_shows_the_same_picture(client: httpx.AsyncClient) -> None:
    body = {
        "prompt": "a dog",
        "seed": 3,
        "span": "adaptive",
        "cloud_budget": 0.3,
        "gate": "entropy",
        "top_k": 9,
    }
    plain = (await client.post("/generate", json=body)).json()
    answer = await client.post("/generate", json=body, headers={"accept": "image/png"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    counters = json.loads(answer.headers["x-ciar-counters"])
    assert counters["cloud_forwards"] == plain["counters"]["cloud_forwards"]
    pictures = [Image.open(BytesIO(png)) for png in (answer.content, base64.b64decode(plain["image"]))]
    assert pictures[0].tobytes() == pictures[1].tobytes()


async def test_concurrent_requests_are_independent(client: httpx.AsyncClient) -> None:
    bodies = [{"prompt": "cat", "seed": seed, "mode": "exact"} for seed in (1, 2)]
    alone = [(await client.post("/generate", json=body)).json()["image"] for body in bodies]
    together = await asyncio.gather(*(client.post("/generate", json=body) for body in bodies))
    pixels = [[Image.open(BytesIO(base64.b64decode(png))).tobytes() for png in pngs]
              for pngs in (alone, [answer.json()["image"] for answer in together])]  # fmt: skip
    assert pixels[0] == pixels[1] and pixels[0][0] != pixels[0][1]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "prompt field required"),
        ({"prompt": "cat", "promt": 1, "x": 2}, "promt "),
        ({"prompt": "cat", "seed": -1}, "seed -1: "),
        ({"prompt": "cat", "seed": "1"}, "seed '1': "),
        ({"prompt": "cat", "mode": "magic"}, "'exact'"),
        ({"prompt": "cat", "gate": "x"}, "gate 'x': allowed: interval, "),
        ({"prompt": "cat", "span": 0}, "span 0: "),
        ({"prompt": "cat", "top_p": 0}, "top_p 0: "),
        ([1], "[1]: "),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "cat " * 2500}, "10000 characters. allowed: 1 to 1000"),
        ({"prompt": "cat", "mode": "exact", "threshold": 1.0}, "threshold cannot be set in mode 'exact'"),
    ],
)
async def test_impossible_requests_are_422_before_any_network(
    lonely: httpx.AsyncClient, body: Any, says: str
) -> None:
    error = await refused(lonely, 422, body)
    assert error["type"] in ("InvalidRequest", "InvalidPrompt") and says.lower() in error["message"].lower()


async def test_unknown_fields_are_all_named(lonely: httpx.AsyncClient) -> None:
    message = (await refused(lonely, 422, {"prompt": "cat", "promt": 1, "speed": 2}))["message"]
    assert "promt" in message and "speed" in message


async def test_what_is_no_json_and_what_is_not_there(lonely: httpx.AsyncClient) -> None:
    broken = await lonely.post(
        "/generate", content=b'{"prompt": ', headers={"content-type": "application/json"}
    )
    assert (broken.status_code, broken.json()["error"]["type"]) == (422, "InvalidRequest")
    for answer, status in ((await lonely.get("/nope"), 404), (await lonely.get("/generate"), 405)):
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "HttpError")


async def test_no_cloud_is_503(lonely: httpx.AsyncClient) -> None:
    error = await refused(lonely, 503, {"prompt": "cat"})
    assert error["type"] == "CloudUnreachable" and "cloud-server" in error["next_step"]
    assert (await lonely.post("/generate", json={"prompt": "cat", "mode": "device-only"})).status_code == 200


async def test_without_a_target_only_the_device_draws(package: DevicePackage) -> None:
    async with caller(create_app(package, Upstream(None))) as client:
        assert "--server" in (await refused(client, 422, {"prompt": "cat"}))["next_step"]
        assert (
            await client.post("/generate", json={"prompt": "cat", "mode": "device-only"})
        ).status_code == 200
        assert (await client.get("/readyz")).status_code == 503


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidPrompt("what", "why", "next"), 422),
        (ModelMismatch("what", "why", "next"), 409),
        (Overloaded("what", "why", "next", retry_after_s=1.2), 429),
        (CloudUnreachable("what", "why", "next"), 503),
        (SessionLost("what", "why", "next"), 503),
        (InvalidDraft("what", "why", "next"), 500),
        (CiarError("what", "why", "next"), 500),
    ],
)
async def test_errors_on_the_way_have_their_status(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, error: CiarError, status: int
) -> None:
    fail_with(monkeypatch, error)
    answer = await client.post("/generate", json={"prompt": "cat"})
    want = {"type": type(error).__name__, "message": "what. why", "next_step": "next"}
    assert (answer.status_code, answer.json()) == (status, {"error": want})
    assert answer.headers.get("retry-after") == ("2" if status == 429 else None)


async def test_a_bug_shows_nothing_of_the_inside(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, RuntimeError("secret path"))
    error = await refused(client, 500, {"prompt": "cat"})
    assert error["type"] == "InternalError" and "secret" not in str(error)


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def failing(*_: Any) -> AsyncGenerator[Progress, None]:
        raise error
        yield

    monkeypatch.setattr(jobs, "steps", failing)


async def test_a_full_cloud_is_429(package: DevicePackage, cloud_model: CloudModel) -> None:
    async with running(cloud_model, Settings(max_sessions=1)) as cloud:
        upstream = Upstream(f"127.0.0.1:{cloud.port}", retry_s=0.0)
        plan = make_plan(package, GenerateBody(prompt="cat"))
        async with (
            aclosing(draw.steps(package, plan, upstream)) as busy,
            caller(create_app(package, upstream)) as client,
        ):
            await anext(busy)
            answer = await client.post("/generate", json={"prompt": "cat"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "Overloaded")
    assert int(answer.headers["retry-after"]) >= 1


async def test_the_small_pages(
    client: httpx.AsyncClient, package: DevicePackage, cloud_model: CloudModel
) -> None:
    assert (await client.get("/livez")).json() == {"status": "alive"}
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["models"]) == (200, [cloud_model.name])
    assert (await client.get("/version")).json()["device_digest"] == package.digest
    (model,) = (await client.get("/models")).json()["models"]
    assert (model["name"], model["image_tokens"]) == (package.name, GRID * GRID) and "margin" in model[
        "gates"
    ]


async def test_not_ready_without_a_cloud_or_with_another(
    lonely: httpx.AsyncClient, package: DevicePackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "PROBE_S", 0.3)
    answer = await lonely.get("/readyz")
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "CloudUnreachable")
    other = load_cloud(str(build_tiny_model(tmp_path / "other", seed=1, grid=GRID)), Path("nowhere"))
    async with running(replace(other, name=package.name), Settings()) as cloud:
        app = create_app(package, Upstream(f"127.0.0.1:{cloud.port}"))
        async with caller(app) as client:
            answer = await client.get("/readyz")
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "ModelMismatch")
            assert (await refused(client, 409, {"prompt": "cat"}))["type"] == "ModelMismatch"


async def test_the_documentation_has_an_example(client: httpx.AsyncClient) -> None:
    api = (await client.get("/openapi.json")).json()
    assert api["components"]["schemas"]["GenerateBody"]["examples"][0]["prompt"] == "a cat"
    post = api["paths"]["/generate"]["post"]
    assert set(post["responses"]) == {"200", "400", "409", "422", "429", "500", "503"}
    content = post["responses"]["200"]["content"]
    assert set(content) == {"application/json", "image/png", "text/event-stream"}
    assert (await client.get("/docs")).status_code == 200
    images = api["paths"]["/v1/images/generations"]["post"]
    for operation in (post, images):
        body = operation["requestBody"]["content"]["application/json"]
        assert all(example["value"]["prompt"] for example in body["examples"].values())
    documented = {int(code) for operation in (post, images) for code in operation["responses"]}
    assert set(answers.STATUS.values()) <= documented


async def test_a_caller_who_hangs_up_stops_the_work(
    package: DevicePackage, cloud: CloudServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    ended = asyncio.Event()

    async def watched(*args: Any) -> AsyncGenerator[Progress, None]:
        try:
            async with aclosing(draw.steps(*args)) as progress:
                async for step in progress:
                    seen.append(len(step.tokens))
                    yield step
                    await asyncio.sleep(0.05)
        finally:
            ended.set()

    monkeypatch.setattr(jobs, "steps", watched)
    app = create_app(package, Upstream(f"127.0.0.1:{cloud.port}"))
    async with serving(app) as address, httpx.AsyncClient(base_url=address) as client:
        with pytest.raises(httpx.ReadTimeout):
            wish = {"prompt": "cat", "mode": "exact", "span": 1, "max_forwards": 1}
            await client.post("/generate", json=wish, timeout=0.3)
        async with asyncio.timeout(5):
            await ended.wait()
            while cloud.telemetry.value("ciar_sessions_active"):
                await asyncio.sleep(0.01)
    assert 0 < seen[-1] < GRID * GRID


async def test_it_answers_over_a_socket(package: DevicePackage, cloud: CloudServer) -> None:
    app = create_app(package, Upstream(f"127.0.0.1:{cloud.port}"))
    async with serving(app) as address, httpx.AsyncClient(base_url=address, timeout=30) as client:
        answer = await client.post("/generate", json={"prompt": "cat"}, headers={"accept": "image/png"})
        assert answer.content.startswith(b"\x89PNG")


def test_a_taken_port_is_refused() -> None:
    with gateway.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(gateway.InvalidRequest, match=f"127.0.0.1:{port}"):
            gateway.listen("127.0.0.1", port)


async def test_every_route_but_the_probes_wants_a_token(package: DevicePackage) -> None:
    app = create_app(package, Upstream(None), ("a-token-of-somebody", "a-token-of-another"))
    async with caller(app) as client:
        paths = {route.path for route in app.routes if isinstance(route, Route)} | {"/nowhere", "/v1/nowhere"}
        closed = sorted(paths - {"/livez", "/readyz"})
        assert len(closed) > 8
        texts = ("Bearer wrong", "a-token-of-somebody", "Bearer ")
        wrong = [{}, *({"authorization": text} for text in texts)]
        for path, headers in product(closed, wrong):
            answer = await client.request("POST", path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
            error = answer.json()["error"]
            assert ("code" in error) == path.startswith("/v1/") and "token" in error["message"]
        assert answer.headers["x-request-id"]
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503  # known without a token: there is no cloud
        for token in ("a-token-of-somebody", "a-token-of-another"):
            known = await client.get("/version", headers={"authorization": f"bearer {token}"})
            assert known.status_code == 200


async def test_the_name_of_a_request_reaches_the_cloud(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    caplog.handler.setFormatter(JsonLines("both"))
    body = {"prompt": "a cat", "mode": "exact"}
    (await client.post("/generate", json=body, headers={"x-request-id": "mine-1"})).raise_for_status()
    lines = [json.loads(line) for line in caplog.text.splitlines() if line.startswith("{")]
    named = {line["logger"] for line in lines if line.get("request_id") == "mine-1"}
    assert {"cloud_server.service", "device_client.link"} <= named
