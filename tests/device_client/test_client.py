"""The Python API."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cloud_server.server import CloudServer
from device_client import Client, Source, Wish
from device_client.render import read_settings
from device_client.tiles import BLANK
from shared.errors import CloudUnreachable, InvalidPrompt, InvalidRequest, ModelUnavailable
from shared.models.zoo import DevicePackage
from tests.device_client.rig import GRID, NOBODY


@pytest.fixture
def client(folder: str, cloud: CloudServer) -> Client:
    return Client(f"127.0.0.1:{cloud.port}", model=folder, retry_s=0.2)


async def test_the_progress_ends_with_the_picture(client: Client) -> None:
    sizes = []
    async for progress in client.generate("a red cat", seed=3):
        sizes.append(len(progress.tokens))
    assert sizes == sorted(sizes) and len(sizes) > 5 and progress.done
    drawing = await client.drawing("a red cat", seed=3)
    assert drawing.progress.tokens == progress.tokens
    assert drawing.image.tobytes() == client.picture(progress).tobytes()


async def test_an_unfinished_picture_is_a_mosaic(client: Client, package: DevicePackage) -> None:
    async with aclosing(client.generate("a dog", mode="exact")) as news:
        async for progress in news:
            if len(progress.tokens) >= GRID:
                break
    picture = client.picture(progress)
    assert picture.size == (GRID * package.vq.config.factor,) * 2
    corner = picture.width - 1
    assert picture.getpixel((corner, corner)) == (BLANK,) * 3 != picture.getpixel((0, 0))


async def test_a_wish_has_all_settings_and_keywords_go_before_it(client: Client) -> None:
    wish = Wish(prompt="a dog", seed=1, gate="entropy", cloud_budget=0.4, span=2)
    drawing = await client.drawing(wish, seed=9)
    assert drawing.record["seed"] == 9 and drawing.record["policy"]["span"] == 2
    assert drawing.record["counters"] == drawing.progress.counters.as_dict()
    base = await client.drawing("a dog", seed=9, mode="cloud-only")
    exact = await client.drawing("a dog", seed=9, mode="exact")
    assert exact.progress.tokens == base.progress.tokens


async def test_pictures_at_a_time_are_independent(client: Client) -> None:
    alone = [(await client.drawing("cat", seed=seed)).progress.tokens for seed in (1, 2)]
    together = await asyncio.gather(*(client.drawing("cat", seed=seed) for seed in (1, 2)))
    assert [drawing.progress.tokens for drawing in together] == alone


def test_at_once_and_without_a_cloud(folder: str, tmp_path: Path) -> None:
    drawing = Client(model=folder).draw("a cat unicorn", mode="device-only")
    assert set(drawing.progress.sources) == {Source.KEPT} and "unicorn" in drawing.notes[0]
    drawing.save(tmp_path / "cat.png")
    assert read_settings(tmp_path / "cat.png") == drawing.record
    with Image.open(tmp_path / "cat.png") as image:
        assert image.tobytes() == drawing.image.tobytes()


async def test_what_is_wrong_is_said_before_anybody_is_asked(folder: str) -> None:
    client = Client(NOBODY, model=folder, retry_s=0.0)
    wrong: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        ("", {}, InvalidPrompt, "the prompt is empty"),
        ("cat", {"seed": -1}, InvalidRequest, "seed -1: input should be greater"),
        ("cat", {"mode": "magic"}, InvalidRequest, "mode 'magic': .*exact"),
        (Wish(prompt="cat", gate="margin"), {"mode": "exact"}, InvalidRequest, "gate cannot be set"),
    ]
    for what, settings, kind, says in wrong:
        with pytest.raises(kind, match=says):
            client.generate(what, **settings)
    with pytest.raises(InvalidRequest, match=r"inside a running event loop.*await drawing"):
        client.draw("cat")
    with pytest.raises(ModelUnavailable):
        Client(NOBODY, model="no-such").generate("cat")
    with pytest.raises(InvalidRequest, match="needs a cloud server"):
        await Client(model=folder).drawing("cat")
    with pytest.raises(CloudUnreachable):
        await client.drawing("cat")
