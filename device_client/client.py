"""The Python API: pictures from a program, with the progress of each as an async iterator, or simply at once.

    client = Client("host:50051")
    async for progress in client.generate("a cat", seed=3): ...
    client.picture(progress).save("cat.png")

    Client("host:50051").draw("a cat").save("cat.png")

Knows nothing of terminals or HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError

from device_client import render
from device_client.draw import Upstream, record, steps
from device_client.loop import Progress
from device_client.tiles import Tiles
from device_client.wish import Mode, Plan, Wish, complaint, make_plan
from shared.errors import InvalidRequest
from shared.models.zoo import DevicePackage, load_device_package

MODELS = Path("~/.cache/ciar/models")  # where fetched models are looked for


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture: `image` is RGB, `record` holds settings and counters, `notes` are for the reader."""

    image: Image.Image
    progress: Progress
    record: Mapping[str, Any]
    notes: tuple[str, ...]

    def save(self, path: str | Path) -> None:
        """Write a PNG with its record inside. Raises InvalidRequest where `path` cannot be written."""
        render.save_png(Path(path), self.image, self.record)


class Client:
    """Draws with one model, a link to the cloud per picture; any number of pictures at a time.

    server      "host:port" of a cloud server; None: only mode device-only works
    model       name of a model, or its folder; it is loaded when the first picture is asked for
    models      folder of fetched models
    deadline_s  how long to wait for one answer
    retry_s     how long to look for a lost server; the picture goes on where it stopped
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        model: str = "emoji",
        models: Path = MODELS,
        deadline_s: float = 60.0,
        retry_s: float = 30.0,
    ) -> None:
        self._model, self._models = model, models
        self._upstream = Upstream(server, deadline_s=deadline_s, retry_s=retry_s)

    @cached_property
    def package(self) -> DevicePackage:
        """The device side of the model. Raises ModelUnavailable."""
        return load_device_package(self._model, self._models.expanduser())

    def generate(
        self, what: str | Wish, *, seed: int | None = None, mode: Mode | None = None
    ) -> AsyncGenerator[Progress, None]:
        """Draw a prompt, or a Wish with all its settings; `seed` and `mode` go before those of a Wish.

        Yields after every decision; the last Progress is `done` and holds all T tokens. Whoever leaves the
        iteration early closes it (contextlib.aclosing) to free the cloud's session at once. Raises
        InvalidRequest (InvalidPrompt among it) and ModelUnavailable before anything is sent;
        CloudUnreachable, Overloaded and ModelMismatch after.
        """
        return steps(self.package, self.plan(what, seed=seed, mode=mode), self._upstream)

    def plan(self, what: str | Wish, *, seed: int | None = None, mode: Mode | None = None) -> Plan:
        """What `generate` would do: policy, settings, notes. Raises InvalidRequest; asks nobody."""
        settings = {"prompt": what} if isinstance(what, str) else what.model_dump()
        given = {name: value for name, value in (("seed", seed), ("mode", mode)) if value is not None}
        try:
            wish = Wish.model_validate({**settings, **given})
        except ValidationError as error:
            wrong = [f"{item['loc'][0]} {complaint(item)}" for item in error.errors(include_url=False)]
            raise InvalidRequest("; ".join(wrong)) from None
        return make_plan(self.package, wish)

    def picture(self, progress: Progress) -> Image.Image:
        """The picture of a Progress: decoded where it is done, a mosaic with grey where it is not."""
        if progress.done:
            return render.to_image(self.package.vq, progress.tokens)
        grid = self.package.model.base.config.grid
        return self._tiles.mosaic(progress.tokens, grid, grid)

    async def drawing(
        self, what: str | Wish, *, seed: int | None = None, mode: Mode | None = None
    ) -> Drawing:
        """As `generate`, but the finished picture alone."""
        plan = self.plan(what, seed=seed, mode=mode)
        last = None
        async with aclosing(steps(self.package, plan, self._upstream)) as progress:
            async for step in progress:
                last = step
        assert last is not None and last.done, "the loop ends with a finished picture"
        image = await asyncio.to_thread(self.picture, last)
        return Drawing(image, last, record(plan, last), plan.notes)

    def draw(self, what: str | Wish, *, seed: int | None = None, mode: Mode | None = None) -> Drawing:
        """As `drawing`, for programs without an event loop. Raises InvalidRequest inside of one."""
        if _in_a_loop():
            raise InvalidRequest(
                "draw was called inside a running event loop", "it would block it", "await drawing(...) there"
            )
        return asyncio.run(self.drawing(what, seed=seed, mode=mode))

    @cached_property
    def _tiles(self) -> Tiles:
        return Tiles(self.package.vq)


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
