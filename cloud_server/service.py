"""One stream is one image: frames in, frames out, and every error said in the stream. Touches no tensors.

The conversation is specified in proto/ciar/v1/ciar.proto. What goes wrong with a session is its last frame;
gRPC status codes are left to the transport.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import grpc
import numpy as np

from cloud_server.alone import artist
from cloud_server.scheduler import Scheduler
from cloud_server.session import Job, Session
from cloud_server.telemetry import Telemetry
from cloud_server.tree import job_of
from shared.decoding.acceptance import Judgement
from shared.errors import CiarError, InvalidRequest, SessionLost
from shared.messages import Draft, Finish, Open, Opened, ServerInfo, Usage, Verdict
from shared.wire import codec
from shared.wire.pb import ciar_pb2 as pb
from shared.wire.pb import ciar_pb2_grpc as rpc

Stream = grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How many seconds the server waits for a frame: the first one, and any later one."""

    open_s: float = 10.0
    idle_s: float = 120.0


class CiarService(rpc.CiarServiceServicer):
    """The servicer. All sessions share one scheduler; none sees another."""

    def __init__(
        self, scheduler: Scheduler, telemetry: Telemetry, info: ServerInfo, patience: Patience
    ) -> None:
        self._scheduler, self._telemetry, self._info, self._patience = scheduler, telemetry, info, patience
        self._running: set[asyncio.Timeout] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    async def GetInfo(self, request: pb.GetInfoRequest, context: object) -> pb.GetInfoResponse:
        """What this server serves, and its limits."""
        return codec.encode_info(self._info)

    async def Generate(self, request_iterator: object, context: Stream) -> None:
        """Serve one image. Whatever ends it but the device's own departure is said in the last frame."""
        try:
            last: Usage | CiarError | None = await self._image(context)
        except CiarError as error:
            last = error
        except Exception:
            log.exception("a session failed")
            last = CiarError("the cloud failed", "its log says why", "try again, or resume on another server")
        if isinstance(last, CiarError):
            self._telemetry.error(last)
        if last is not None:
            with suppress(SessionLost):  # a device that reads nothing need not be told so
                await self._write(context, last)

    async def drain(self, grace_s: float) -> None:
        """Wait up to `grace_s` seconds for running sessions, then end the rest with SessionLost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        for limit in tuple(self._running):
            limit.reschedule(asyncio.get_running_loop().time())

    async def _image(self, stream: Stream) -> Usage | None:
        """The conversation of one stream: Usage if it was finished, None if the device went away without."""
        async with self._until_shutdown():
            order = await self._read(stream, self._patience.open_s)
            if order is None:
                return None
            if not isinstance(order, Open):
                raise InvalidRequest(
                    f"the first frame is {type(order).__name__}", "a stream begins with Open"
                )
            async with self._session(order) as session:
                await self._write(stream, await self._draw_prefix(session))
                while isinstance(draft := await self._read(stream, self._patience.idle_s), Draft):
                    await self._write(stream, await self._judge(session, draft))
            # The place is free before the device hears of the end: it may open its next image at once.
            if isinstance(draft, Open):
                raise InvalidRequest("a second Open came", "one stream is one image", "open another stream")
            return session.usage() if isinstance(draft, Finish) else None

    async def _read(self, stream: Stream, patience_s: float) -> Open | Draft | Finish | None:
        """The next message; None at the end of the stream. A vanished device looks like that as well."""
        try:
            async with asyncio.timeout(patience_s):
                frame: object = await stream.read()  # the type stubs leave out EOF
        except TimeoutError:
            raise SessionLost(f"no frame came for {patience_s:g} s", "", "open again and resume") from None
        except codec.UnreadableFrame:
            raise InvalidRequest(
                "the bytes received are no frame", "ciar.v1.GenerateRequest is expected"
            ) from None
        return codec.decode_request(frame) if isinstance(frame, pb.GenerateRequest) else None

    async def _write(self, stream: Stream, message: Opened | Verdict | Usage | CiarError) -> None:
        """Send one message. A device that does not read is given up as one that does not write."""
        try:
            async with asyncio.timeout(self._patience.idle_s):
                await stream.write(codec.encode_response(message))
        except TimeoutError:
            raise SessionLost(f"no frame was read for {self._patience.idle_s:g} s") from None

    async def _draw_prefix(self, session: Session) -> Opened:
        """Draw what is missing of the prefix as was ordered, in batches with other sessions."""
        owned, drawing = len(session.tokens), artist(session)
        while session.missing_prefix:
            answer = await self._scheduler.submit(drawing.job())
            drawing.take(answer.judgement)
        prefix = np.array(session.tokens[owned:], dtype=np.int32)
        tokens = session.limits.image_tokens
        return Opened(session.name, tokens, prefix, session.forwards, session.cloud_s)

    async def _judge(self, session: Session, draft: Draft) -> Verdict:
        known = session.answered(draft)
        if known is not None:
            return known
        settled = session.settled(draft)
        if settled is None:
            return session.void(draft)
        session.check(settled)
        judgements, cloud_s = await self._forwards(session, settled)
        self._telemetry.draft(len(draft.span), judgements[0].accepted)
        return session.record(draft, judgements, cloud_s)

    async def _forwards(self, session: Session, draft: Draft) -> tuple[list[Judgement], float]:
        """Judge a draft, then what the cloud guessed behind its correction, as often as the order allows.

        Every forward is a job like any other: between two of them the other sessions have their turn.
        """
        answers = [await self._scheduler.submit(job_of(session, draft))]
        while job := Job.iterating(session, [answer.judgement for answer in answers]):
            answers.append(await self._scheduler.submit(job))
        return [answer.judgement for answer in answers], sum(answer.cloud_s for answer in answers)

    @asynccontextmanager
    async def _session(self, order: Open) -> AsyncIterator[Session]:
        session = await self._scheduler.open(order)
        self._telemetry.session_opened()
        try:
            yield session
        finally:
            self._scheduler.close(session)
            self._telemetry.session_closed()
            cost = f"{session.forwards} forwards, {session.cloud_s:.2f} s of model time"
            log.info("session %s: %d tokens, %s", session.name, len(session.tokens), cost)

    @asynccontextmanager
    async def _until_shutdown(self) -> AsyncIterator[None]:
        limit = asyncio.timeout(None)
        self._running.add(limit)
        self._empty.clear()
        try:
            async with limit:
                yield
        except TimeoutError:
            why = "it waited as long as --shutdown-timeout allows"
            raise SessionLost("the server is stopping", why, "resume on another server") from None
        finally:
            self._running.discard(limit)
            if not self._running:
                self._empty.set()
