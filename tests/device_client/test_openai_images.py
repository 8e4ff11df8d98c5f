"""OpenAI's own Python client against this server: what it asks for, what it gets, how it is refused."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from cloud_server.server import CloudServer
from device_client.draw import Upstream
from device_client.gateway import create_app
from device_client.render import CHUNK
from device_client.tiles import BLANK
from shared.models.zoo import DevicePackage
from tests.device_client.rig import GRID, NOBODY, Pace, caller, eventually, serving


@pytest.fixture
async def address(package: DevicePackage, upstream: Upstream) -> AsyncIterator[str]:
    async with serving(create_app(package, upstream)) as address:
        yield f"{address}/v1"


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=address, api_key="any", max_retries=0) as client:
        yield client


def opened(b64: str | None) -> Image.Image:
    assert b64 is not None
    return Image.open(BytesIO(base64.b64decode(b64)))


async def test_a_program_for_openai_draws_here(address: str, package: DevicePackage) -> None:
    """The synchronous client, with a model and a size of OpenAI's."""

    def draw() -> openai.types.ImagesResponse:
        with OpenAI(base_url=address, api_key="any") as client:
            return client.images.generate(
                model="gpt-image-2", prompt="a red cat", n=2, size="256x256", quality="high"
            )

    answer = await asyncio.to_thread(draw)
    assert answer.data is not None and answer.size == "256x256" and answer.output_format == "png"
    pictures = [opened(image.b64_json) for image in answer.data]
    assert [picture.size for picture in pictures] == [(256, 256)] * 2
    assert pictures[0].tobytes() != pictures[1].tobytes()
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 2 * GRID**2)
    assert answer._request_id is not None and answer._request_id.startswith("req_")


async def test_a_seed_is_a_picture_and_none_is_a_new_one(client: AsyncOpenAI) -> None:
    async def draw(**settings: Any) -> tuple[bytes, int]:
        answer = await client.images.generate(prompt="a dog", extra_body=settings)
        assert answer.data is not None and answer.data[0].model_extra is not None
        return opened(answer.data[0].b64_json).tobytes(), answer.data[0].model_extra["seed"]

    first, again = await draw(seed=7, mode="exact"), await draw(seed=7, mode="cloud-only")
    assert first == again and first[1] == 7
    (_, one), (_, two) = await draw(), await draw()
    assert one != two


async def test_settings_reach_the_picture_and_lie_in_it(client: AsyncOpenAI) -> None:
    answer = await client.images.generate(
        prompt="a dog", extra_body={"seed": 3, "gate": "entropy", "cloud_budget": 0.4, "span": 2}
    )
    assert answer.data is not None
    settings = json.loads(str(opened(answer.data[0].b64_json).info[CHUNK]))
    assert (settings["policy"]["gate"], settings["policy"]["span"], settings["seed"]) == ("entropy", 2, 3)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_formats(client: AsyncOpenAI, kind: Any) -> None:
    answer = await client.images.generate(
        prompt="a cat", output_format=kind, output_compression=50, response_format="b64_json"
    )
    assert answer.data is not None and answer.output_format == kind
    assert opened(answer.data[0].b64_json).format == kind.upper()


async def test_a_stream_grows_and_ends_with_the_picture(client: AsyncOpenAI, slow: Pace) -> None:
    slow.pause_s, wish = 0.01, {"seed": 3, "mode": "exact", "span": 1, "max_forwards": 1}
    stream = await client.images.generate(prompt="a cat", stream=True, partial_images=3, extra_body=wish)
    events = [event async for event in stream]
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds == ["partial_image"] * 3 + ["completed"]
    assert [event.partial_image_index for event in events if "partial" in event.type] == [0, 1, 2]  # type: ignore[union-attr]
    shares = [grey(opened(event.b64_json)) for event in events]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.4 > shares[2] > shares[3]
    assert events[-1].usage.output_tokens == GRID**2  # type: ignore[union-attr]
    whole = await client.images.generate(prompt="a cat", extra_body=wish)
    assert whole.data is not None
    assert opened(whole.data[0].b64_json).tobytes() == opened(events[-1].b64_json).tobytes()


def grey(image: Image.Image) -> float:
    """The share of a picture that is not drawn yet."""
    return float((np.asarray(image.convert("RGB")) == BLANK).all(-1).mean())


async def test_a_stream_without_partial_pictures_is_one_event(client: AsyncOpenAI) -> None:
    stream = await client.images.generate(prompt="a cat", stream=True, n=2)
    assert [event.type async for event in stream] == ["image_generation.completed"] * 2


@pytest.mark.parametrize(
    ("wish", "param", "says"),
    [
        ({"prompt": ""}, "prompt", "the prompt is empty"),
        ({"n": 11}, "n", "less than or equal to 10"),
        ({"size": "1024x512"}, None, "squares from 32x32 to 2048x2048"),
        ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
        ({"response_format": "url"}, "response_format", "b64_json"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"extra_body": {"gate": "magic"}}, "gate", "interval, margin"),
        ({"extra_body": {"sampler": "ddim"}}, "sampler", "sampler"),
        ({"extra_body": {"seed": -1}}, "seed", "greater than or equal to 0"),
        ({"extra_body": {"mode": "exact", "threshold": 1.0}}, None, "cannot be set in mode 'exact'"),
    ],
)
async def test_refusals_name_the_field(
    client: AsyncOpenAI, wish: dict[str, Any], param: str | None, says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.images.generate(**{"prompt": "cat", **wish})
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    assert says in caught.value.message and caught.value.request_id


async def test_models_are_listed_and_others_unknown(client: AsyncOpenAI, package: DevicePackage) -> None:
    assert [model.id async for model in client.models.list()] == [package.name]
    with pytest.raises(openai.NotFoundError, match=r"model 'flux' is not served here.*allowed: ") as caught:
        await client.images.generate(prompt="cat", model="flux")
    assert caught.value.code == "unknown_model"
    with pytest.raises(openai.NotFoundError):
        await client.images.edit(image=b"", prompt="cat")


async def test_no_cloud_is_a_server_error(package: DevicePackage) -> None:
    app = create_app(package, Upstream(NOBODY, connect_s=0.2, retry_s=0.0))
    async with (
        serving(app) as address,
        AsyncOpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError, match="no cloud server at 127") as caught:
            await client.images.generate(prompt="cat")
        assert (caught.value.code, caught.value.status_code) == ("cloud_unreachable", 503)
        stream = await client.images.generate(prompt="cat", stream=True)
        with pytest.raises(openai.APIError, match="start one: cloud-server"):
            [event async for event in stream]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_work(
    client: AsyncOpenAI, slow: Pace, cloud: CloudServer, stream: Any
) -> None:
    wish = {"mode": "exact", "span": 1, "max_forwards": 1}
    task = asyncio.create_task(client.images.generate(prompt="cat", stream=stream, extra_body=wish))
    await eventually(lambda: len(slow.seen) > 3)
    if stream:
        await (await task).close()
    task.cancel()
    await eventually(slow.ended.is_set)
    await eventually(lambda: not cloud.telemetry.value("ciar_sessions_active"))
    assert slow.seen[-1] < GRID * GRID


async def test_a_repeated_key_is_one_picture(client: AsyncOpenAI, slow: Pace) -> None:
    slow.pause_s = 0.0
    headers = {"Idempotency-Key": "k1"}
    answers = [await client.images.generate(prompt="cat", extra_headers=headers) for _ in range(2)]
    assert answers[0].data == answers[1].data and slow.begun == 1
    with pytest.raises(openai.BadRequestError, match="'k1' came with another request"):
        await client.images.generate(prompt="dog", extra_headers=headers)


async def test_the_name_of_a_request_comes_back(package: DevicePackage, upstream: Upstream) -> None:
    async with caller(create_app(package, upstream)) as client:
        for name, kept in (("mine-1", True), ("no spaces", False), ("", False)):
            answer = await client.get("/v1/models", headers={"x-request-id": name})
            assert (answer.headers["x-request-id"] == name) == kept
            assert len(answer.headers.get_list("x-request-id")) == 1
