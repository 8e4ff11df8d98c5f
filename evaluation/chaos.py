"""A TCP proxy that does on command what networks do unasked: cut, fall silent, end in the middle of a frame.

Slow links are evaluation/network.py's. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

_CHUNK = 1 << 16


class Chaos:
    """A proxy in front of `host:port`; an async context manager on `address` while it is open."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port, self.address = int(port), ""
        self._flows = asyncio.Event()
        self._flows.set()
        self._halve_next = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection; new ones are carried."""
        for writer in self._writers:
            writer.transport.abort()

    def stall(self, seconds: float) -> None:
        """A black hole: for so long no byte moves and no end is seen. TCP sends again, so nothing is missing
        afterwards."""
        self._flows.clear()
        asyncio.get_running_loop().call_later(seconds, self._flows.set)

    def bury(self) -> None:
        """What is connected now never moves a byte again and never ends; new connections are carried."""
        self._flows.clear()
        self._flows = asyncio.Event()
        self._flows.set()

    def halve_next(self) -> None:
        """Of what a device sends next, deliver the first half and cut."""
        self._halve_next = True

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._connection(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, far_writer}
        self._writers |= both
        lanes = {asyncio.create_task(self._carry(reader, far_writer, up=True))}
        lanes.add(asyncio.create_task(self._carry(far_reader, writer, up=False)))
        try:
            await asyncio.wait(lanes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._writers -= both
            for lane in lanes:
                lane.cancel()
            for end in both:
                end.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        flows = self._flows
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(_CHUNK):
                await flows.wait()
                if up and self._halve_next:
                    self._halve_next = False
                    writer.write(chunk[: len(chunk) // 2])
                    await writer.drain()
                    return
                writer.write(chunk)
                await writer.drain()
