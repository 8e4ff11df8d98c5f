"""One replica: the service of `cloud-server` with Ray's streams instead of gRPC's own. Imports no Ray.

Ray holds the port, so this has none: no health, reflection or metrics page of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, cast

import torch

from cloud_server.server import CloudServer, Settings
from shared.models.zoo import load_cloud
from shared.wire.pb import ciar_pb2 as pb


class Conversation:
    """What `CiarService.Generate` asks of a gRPC context: `read` and `write`, and whose stream it is.

    frames   what the device sends; its end is the end of the stream, announced or not
    context  Ray's copy of the gRPC context
    """

    def __init__(self, frames: AsyncIterator[pb.GenerateRequest], context: Any) -> None:  # noqa: ANN401 - Ray's
        self._frames, self._context = frames, context
        self._answers: asyncio.Queue[pb.GenerateResponse | None] = asyncio.Queue(maxsize=1)

    async def read(self) -> pb.GenerateRequest | None:
        """The next frame, None at the end."""
        return await anext(self._frames, None)

    async def write(self, frame: pb.GenerateResponse) -> None:
        """Give one frame away; waits until the one before was taken."""
        await self._answers.put(frame)

    def invocation_metadata(self) -> Any:  # noqa: ANN401 - pairs, as gRPC gives them
        """The stream's headers."""
        return self._context.invocation_metadata()

    def peer(self) -> str:
        """Who is connected: with HAProxy in between, the proxy."""
        return str(self._context.peer())

    async def answers(self, work: asyncio.Task[None]) -> AsyncGenerator[pb.GenerateResponse, None]:
        """The frames that `work` writes, until it is done. Closing this ends `work`."""
        closing = asyncio.create_task(self._close_after(work))
        try:
            while (frame := await self._answers.get()) is not None:
                yield frame
            await work
        finally:
            work.cancel()
            closing.cancel()

    async def _close_after(self, work: asyncio.Task[None]) -> None:
        await asyncio.wait([work])
        await self._answers.put(None)


class Replica:
    """What Ray starts in each replica's process; its methods are named as those of ciar.v1.CiarService."""

    def __init__(self, model: str, models: str, max_sessions: int, threads: int) -> None:
        torch.set_num_threads(threads)
        settings = Settings(max_sessions=max_sessions)
        self.server = CloudServer(load_cloud(model, Path(models)), settings)  # never started: Ray listens
        self._service = self.server.service

    async def GetInfo(self, request: pb.GetInfoRequest) -> pb.GetInfoResponse:
        """What every replica serves, and the limits of each."""
        return await self._service.GetInfo(request, None)

    async def Generate(
        self, frames: AsyncIterator[pb.GenerateRequest], grpc_context: object
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """One image."""
        talk = Conversation(frames, grpc_context)
        work = asyncio.create_task(self._service.Generate(None, cast(Any, talk)))
        async for frame in talk.answers(work):
            yield frame
