"""One replica: the service of `cloud-server` with Ray's streams instead of gRPC's own. Imports no Ray.

Ray holds the port, so this has none: no reflection or metrics page of its own, no interceptor before it. Its
methods look for a known token themselves, and Ray asks after the health of the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, cast

import torch

from cloud_server.security import UNKNOWN, mark_refused
from cloud_server.server import CloudServer, Settings
from shared.errors import CiarError, InvalidRequest
from shared.models.zoo import load_cloud
from shared.wire import codec
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

    def __init__(self, model: str, models: str, threads: int, settings: Settings) -> None:
        torch.set_num_threads(threads)
        self.server = CloudServer(load_cloud(model, Path(models)), settings)  # never started: Ray listens
        self._service = self.server.service

    def check_health(self) -> None:
        """Ray asks this regularly, and replaces a replica that raises: one whose engine is dead, not busy."""
        if problem := self.server.problem:
            raise CiarError("the engine is dead", problem)

    async def GetInfo(self, request: pb.GetInfoRequest, grpc_context: object) -> pb.GetInfoResponse:
        """What every replica serves, and the limits of each; nothing for a stranger."""
        if self._refuses(grpc_context):
            return pb.GetInfoResponse()
        return await self._service.GetInfo(request, None)

    async def Generate(
        self, frames: AsyncIterator[pb.GenerateRequest], grpc_context: object
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """One image. A stranger is told so in the stream too, where all errors are: a status may get lost."""
        if self._refuses(grpc_context):
            yield codec.encode_response(InvalidRequest(UNKNOWN, "", "--token-file FILE, or CIAR_TOKEN"))
            return
        talk = Conversation(frames, grpc_context)
        work = asyncio.create_task(self._service.Generate(None, cast(Any, talk)))
        async for frame in talk.answers(work):
            yield frame

    def _refuses(self, context: Any) -> bool:  # noqa: ANN401 - Ray's
        if self.server.guard.knows(context.invocation_metadata()):
            return False
        mark_refused(context)
        return True
