"""One stream is one image: frames in, frames out, and every error said in the stream. Touches no tensors.

The conversation is specified in proto/ciar/v1/ciar.proto. What goes wrong with a session is its last frame;
gRPC status codes are left to the transport.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import grpc

from cloud_server.admission import Admission
from cloud_server.desk import Desk, Seat
from cloud_server.security import Guard
from cloud_server.telemetry import Telemetry
from shared import tracing
from shared.errors import CiarError, InvalidPrompt, InvalidRequest, Overloaded, SessionLost
from shared.logs import REQUEST_ID, about, known_request_id
from shared.messages import Draft, Finish, Open, Opened, ServerInfo, Usage, Verdict
from shared.wire import codec
from shared.wire.echoes import Echoes
from shared.wire.info import encode_info
from shared.wire.pb import ciar_pb2 as pb
from shared.wire.pb import ciar_pb2_grpc as rpc

Stream = grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
FRAME_OVERHEAD = 5  # bytes gRPC puts before each message: a flag and the length
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How many seconds the server waits for a frame, the first one and any later one, and for an image."""

    open_s: float = 10.0
    idle_s: float = 120.0
    image_s: float = 1800.0


@dataclass(frozen=True)
class House:
    """What all sessions share."""

    desk: Desk
    telemetry: Telemetry
    admission: Admission
    guard: Guard
    info: ServerInfo
    patience: Patience
    max_streams: int  # those that have not sent their Open included


class Line:
    """The cloud's end of a stream; a device that does not read within `patience_s` is given up."""

    def __init__(self, stream: Stream, telemetry: Telemetry, patience_s: float) -> None:
        self.stream = stream
        self._telemetry, self._patience_s = telemetry, patience_s
        self._echoes = Echoes()

    async def read(self, patience_s: float) -> Open | Draft | Finish | None:
        """The next message. None at the end of the stream; a vanished device looks like that as well.

        Raises SessionLost where none comes in time, InvalidRequest or InvalidDraft for a malformed one.
        """
        try:
            async with asyncio.timeout(patience_s):
                frame: object = await self.stream.read()  # the type stubs leave out EOF
        except TimeoutError:
            raise SessionLost(f"no frame came for {patience_s:g} s", "", "open again and resume") from None
        except codec.UnreadableFrame:
            raise InvalidRequest(
                "the bytes received are no frame", "ciar.v1.GenerateRequest is expected"
            ) from None
        if not isinstance(frame, pb.GenerateRequest):
            return None
        self._telemetry.moved(up=frame.ByteSize() + FRAME_OVERHEAD)
        if frame.HasField("open"):
            self._echoes.granted = frame.open.echoes
        elif frame.HasField("draft"):
            self._echoes.mend_draft(frame.draft)
        return codec.decode_request(frame)

    async def write(
        self, message: Opened | Verdict | Usage | CiarError, answered: Draft | None = None
    ) -> None:
        """Send one message; a verdict with the draft it answers. Raises SessionLost where nobody reads it."""
        frame = codec.encode_response(message)
        if isinstance(message, Opened):
            frame.opened.echoes = self._echoes.granted
        elif isinstance(message, Verdict) and answered is not None:
            self._echoes.cut_verdict(frame.verdict, message, answered)
        try:
            async with asyncio.timeout(self._patience_s):
                await self.stream.write(frame)
        except TimeoutError:
            raise SessionLost(f"no frame was read for {self._patience_s:g} s") from None
        self._telemetry.moved(down=frame.ByteSize() + FRAME_OVERHEAD)


class CiarService(rpc.CiarServiceServicer):
    """The servicer. All images share one desk; none sees another."""

    def __init__(self, house: House) -> None:
        self._house, self._patience = house, house.patience
        self._telemetry = house.telemetry
        self._running: set[asyncio.Timeout] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._ending: tuple[str, str, str] | None = None  # what sessions are told

    async def GetInfo(self, request: pb.GetInfoRequest, context: object) -> pb.GetInfoResponse:
        """What this server serves, and its limits."""
        return encode_info(self._house.info)

    async def Generate(self, request_iterator: object, context: Stream) -> None:
        """Serve one image. Whatever ends it but the device's own departure is said in the last frame."""
        metadata = dict(context.invocation_metadata() or ())
        line = Line(context, self._telemetry, self._patience.idle_s)
        with about(known_request_id(metadata.get(REQUEST_ID))), tracing.caller(metadata):
            try:
                last: Usage | CiarError | None = await self._image(line)
            except CiarError as error:
                last = error
            except Exception:
                log.exception("a session failed")
                next_step = "try again, or resume on another server"
                last = CiarError("the cloud failed", "its log says why", next_step)
            if isinstance(last, CiarError):
                self._telemetry.error(last)
                log.info("ended by %s: %s", type(last).__name__, last.what)
            if last is not None:
                with suppress(SessionLost):  # a device that reads nothing need not be told so
                    await line.write(last)

    async def drain(self, grace_s: float) -> None:
        """Wait up to `grace_s` seconds for running sessions, then end the rest with SessionLost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        why = "it waited as long as --shutdown-timeout allows"
        self.abandon(SessionLost("the server is stopping", why, "resume on another server"))

    def abandon(self, why: SessionLost) -> None:
        """End all running sessions with this error; what they wait for will not come."""
        self._ending = (why.what, why.why, why.next_step)
        for limit in tuple(self._running):
            limit.reschedule(asyncio.get_running_loop().time())

    def welcome(self) -> None:
        """Take sessions again after `abandon`."""
        self._ending = None

    async def _image(self, line: Line) -> Usage | None:
        """The conversation of one stream: Usage if it was finished, None if the device went away without."""
        async with self._while_serving():
            order = await line.read(self._patience.open_s)
            if order is None:
                return None
            order = self._checked(order)
            if self._ending is not None:  # said now, not before: who still writes would not hear it
                raise SessionLost(*self._ending)
            end, seat = await self._sitting(line, order)
            # The place is free before the device hears of the end: it may open its next image at once.
            if isinstance(end, Open):
                raise InvalidRequest("a second Open came", "one stream is one image", "open another stream")
            if end is None:
                return None
            self._telemetry.session_finished(seat.rates)
            return seat.usage()

    async def _sitting(self, line: Line, order: Open) -> tuple[Open | Finish | None, Seat]:
        """From the order to what came instead of another draft; the seat is left, and the place free."""
        with ExitStack() as opening:
            span = opening.enter_context(tracing.span("open"))
            span.note(resumed=order.owned)
            async with (
                self._house.admission.place(self._house.guard.caller(line.stream)),
                self._seat(order) as seat,
            ):
                await line.write(await seat.begin())
                opening.close()
                return await self._rounds(line, seat), seat

    def _checked(self, order: Open | Draft | Finish) -> Open:
        if not isinstance(order, Open):
            raise InvalidRequest(f"the first frame is {type(order).__name__}", "a stream begins with Open")
        length, most = len(order.prompt), self._house.info.max_prompt_chars
        if length > most:
            raise InvalidPrompt(f"the prompt has {length} characters", f"allowed: up to {most}")
        return order

    async def _rounds(self, line: Line, seat: Seat) -> Open | Finish | None:
        """Judge drafts until something else comes."""
        waited_from_s = time.perf_counter()
        while isinstance(draft := await line.read(self._patience.idle_s), Draft):
            came_s = time.perf_counter()
            verdict, judged = await self._judge(seat, draft)
            judged_s = time.perf_counter()
            try:
                await line.write(verdict, draft)
            finally:  # counted while the device reads, so that nobody waits for it
                self._telemetry.turn(came_s - waited_from_s)
                if judged:
                    self._telemetry.draft(draft.drafted, verdict.accepted, judged_s - came_s)
            waited_from_s = time.perf_counter()
        return draft

    async def _judge(self, seat: Seat, draft: Draft) -> tuple[Verdict, bool]:
        with tracing.span("verify") as span:
            span.note(round=draft.round, tokens=draft.drafted)
            verdict, judged = await seat.judge(draft)
            span.note(accepted=verdict.accepted)
        return verdict, judged

    @asynccontextmanager
    async def _seat(self, order: Open) -> AsyncIterator[Seat]:
        seat = await self._house.desk.open(order)
        self._telemetry.session_opened(resumed=order.owned > 0)
        try:
            yield seat
        finally:
            seat.leave()
            self._telemetry.session_closed()
            log.info("session %s", seat.story)

    @asynccontextmanager
    async def _while_serving(self) -> AsyncIterator[None]:
        """Counted among the running ones, until `abandon` or the time for one image is up."""
        if len(self._running) >= self._house.max_streams:
            raise Overloaded("the server has too many open streams", f"allowed: {self._house.max_streams}")
        limit = asyncio.timeout(self._patience.image_s)
        self._running.add(limit)
        self._empty.clear()
        try:
            async with limit:
                yield
        except TimeoutError:
            too_long = f"the image took longer than {self._patience.image_s:g} s"
            raise SessionLost(*(self._ending or (too_long, "", "open again and resume"))) from None
        finally:
            self._running.discard(limit)
            if not self._running:
                self._empty.set()
