"""What all handlers of the REST service share: the model, the cloud's address, the jobs, the tiles.

Knows how to notice that a caller is gone; knows nothing of paths and bodies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from device_client.draw import Upstream
from device_client.jobs import Jobs
from device_client.tiles import Tiles
from shared.models.zoo import DevicePackage

POLL_S = 0.1  # how often a running request looks whether its caller is still there
ResultT = TypeVar("ResultT")


class Studio:
    """One model, one cloud, and what is being drawn with the two."""

    def __init__(self, package: DevicePackage, upstream: Upstream) -> None:
        self.package, self.upstream = package, upstream
        self.jobs = Jobs(package, upstream)
        self._tiles: Tiles | None = None
        self._fitting = asyncio.Lock()

    @property
    def pixels(self) -> int:
        """Width and height of a picture."""
        return self.package.model.base.config.grid * self.package.vq.config.factor

    async def tiles(self) -> Tiles:
        """The tiles of the model, fitted when they are first asked for."""
        async with self._fitting:
            if self._tiles is None:
                self._tiles = await asyncio.to_thread(Tiles, self.package.vq)
        return self._tiles


async def while_connected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT | None:
    """The result of `work`, or None, with the work stopped, once the caller has hung up.

    Nobody tells a handler that its caller is gone: it has to look.
    """
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=POLL_S))[0]:
            if await request.is_disconnected():
                return None
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})
