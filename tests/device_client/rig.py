"""What the tests of the REST service share: the application behind a real socket, callers, slow drawing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from device_client import draw, gateway
from device_client.loop import Progress

GRID = 8
NOBODY = "127.0.0.1:1"


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """The application behind a real socket: its address."""
    listening = gateway.listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


class Pace:
    """Stands between the jobs and the loop: how far every picture came, and whether its drawing ended."""

    def __init__(self, pause_s: float) -> None:
        self.pause_s = pause_s
        self.seen: list[int] = []
        self.begun = 0
        self.ended = asyncio.Event()

    async def steps(self, *args: Any) -> AsyncGenerator[Progress, None]:
        self.begun += 1
        try:
            async with aclosing(draw.steps(*args)) as progress:
                async for step in progress:
                    self.seen.append(len(step.tokens))
                    yield step
                    await asyncio.sleep(self.pause_s)
        finally:
            self.ended.set()


@asynccontextmanager
async def caller(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, without a socket."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://device", timeout=30) as client:
        yield client


async def eventually(holds: Callable[[], bool], patience_s: float = 5.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(patience_s):
        while not holds():
            await asyncio.sleep(0.005)
