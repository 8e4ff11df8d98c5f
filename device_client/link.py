"""One device's end of the wire: deadlines, replay after a loss, foreign errors translated. Knows no models.

The device owns the image and the cloud's session is a cache (the proto's comments say how). So a stream that
ends unannounced costs one new stream that begins with everything owned, and what is under way is sent again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from device_client.identity import Identity
from device_client.owned import Owned, owned
from device_client.replicas import FIRST_PAUSE_S, LONGEST_PAUSE_S, Replicas
from device_client.trace import ImageTrace
from shared.errors import CiarError, ModelMismatch, Overloaded, SessionLost
from shared.logs import REQUEST_FIELD, new_request_id
from shared.messages import Draft, Finish, Open, Opened, ServerInfo, Usage, Verdict
from shared.wire import codec
from shared.wire.echoes import Echoes
from shared.wire.info import decode_info
from shared.wire.pb import ciar_pb2 as pb

FRAME_OVERHEAD = 5  # bytes gRPC puts before each message: a flag and the length
NOBODY = Identity()
log = logging.getLogger(__name__)
AnswerT = TypeVar("AnswerT", Opened, Verdict, Usage)
ResultT = TypeVar("ResultT")


class CloudLink:
    """A connection to a cloud server, for one image at a time; an async context manager.

    target      "host:port"; IPv6 in brackets; several, separated by commas, where any will do
    connect_s   a server that never answered is given up after this
    deadline_s  for every single answer; opening may draw a whole image
    retry_s     how long a lost or overloaded server is tried again
    request_id  what both sides log about the image

    All methods raise CloudUnreachable where no server answers; Overloaded after `retry_s` of refusals; and,
    at once, whatever else the server says. Links to one target share a connection: one per image is cheap.
    """

    def __init__(  # noqa: PLR0913 - each is an option of the command line
        self,
        target: str,
        *,
        connect_s: float = 5.0,
        deadline_s: float = 60.0,
        retry_s: float = 30.0,
        identity: Identity = NOBODY,
        request_id: str | None = None,
    ) -> None:
        self._replicas = Replicas(target, identity, connect_s)
        self._connect_s, self._deadline_s, self._retry_s = connect_s, deadline_s, retry_s
        self.request_id = request_id or new_request_id()
        self._log = logging.LoggerAdapter(log, {REQUEST_FIELD: self.request_id})
        self._trace = ImageTrace(self.request_id)
        self.bytes_up = self.bytes_down = 0  # frames of all streams so far
        self.resumes = 0  # sessions rebuilt after a loss
        self._dice = random.Random()  # jitter of pauses; in no image
        self._stream: Any = None
        self._owned: Owned | None = None
        self._echoes = Echoes()  # of the stream
        self._hearing: asyncio.Task[Verdict] | None = None  # what is read while the device draws

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()
        self._trace.end()
        await self._replicas.close()

    async def info(self) -> ServerInfo:
        """What the server serves. Raises ModelMismatch when it speaks another version of the protocol."""
        replicas = self._replicas
        await replicas.connect()
        try:
            metadata = replicas.metadata(self.request_id)
            answer = await replicas.stub.GetInfo(
                pb.GetInfoRequest(), timeout=self._connect_s, metadata=metadata
            )
        except grpc.aio.AioRpcError as error:
            raise replicas.refused(error) or replicas.unreachable(str(error.details())) from error
        info = decode_info(answer)
        if info.protocol_version != codec.PROTOCOL_VERSION:
            raise ModelMismatch(
                f"the server at {replicas.target} speaks protocol version {info.protocol_version}",
                f"this device speaks version {codec.PROTOCOL_VERSION}",
                "update the older of the two",
            )
        return info

    async def open(self, order: Open) -> Opened:
        """Begin an image, or resume one from order.resume; a stream still open is given up."""
        self._drop()
        self._trace.begin()
        self._owned = owned(order)
        return await self._persist(self._start)

    @property
    def answered(self) -> bool:
        """Whether `receive` has something to return or to raise at once."""
        return self._hearing is not None and self._hearing.done()

    async def send(self, draft: Draft) -> None:
        """Send one round, or keep it for `receive` to send on a new stream if this one is found lost."""
        assert self._owned is not None, "open comes first"
        self._owned.pending.append(draft)
        self._trace.sent(draft)
        with suppress(SessionLost):
            await self._write_draft(draft)
            self._hearing = self._hearing or self._listen()

    async def receive(self) -> Verdict:
        """The verdict on the oldest round under way, from a new stream if the old one is lost.

        Rounds that it makes void are forgotten.
        """
        return await self._persist(self._heard)

    async def finish(self) -> Usage:
        """End the image. Raises SessionLost where the stream is gone: nothing is worth rebuilding then."""
        try:
            await self._write(codec.encode_finish(Finish()), self._connect_s)
            if self._hearing is not None:
                await self._hearing  # what is still under way when an image is given up
            while isinstance(answer := await self._read(self._connect_s), Verdict):
                pass
            return self._expect(answer, Usage)
        finally:
            self._drop()

    async def _heard(self) -> Verdict:
        """Receive once. A lost stream is first replaced, and everything pending sent again."""
        assert self._owned is not None, "open comes first"
        if self._stream is None and self._hearing is None:
            await self._start()
            self.resumes += 1
            for draft in self._owned.pending:
                await self._write_draft(draft)
        hearing, self._hearing = self._hearing or self._listen(), None
        verdict = await hearing
        with self._dropping():
            self._owned.settle(verdict)
        self._trace.settled(verdict, self._owned.pending)
        if self._owned.pending:
            self._hearing = self._listen()
        return verdict

    def _listen(self) -> asyncio.Task[Verdict]:
        """Read on in the background while the device draws."""
        task = asyncio.create_task(self._next_verdict())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # a lost one is no leak
        return task

    async def _next_verdict(self) -> Verdict:
        """The next verdict that is not about a void round."""
        while (verdict := self._expect(await self._read(self._deadline_s), Verdict)).stale:
            pass
        return verdict

    async def _start(self) -> Opened:
        """A new stream that begins with everything the device owns."""
        assert self._owned is not None, "open comes first"
        with self._trace.opening() as headers:
            await self._replicas.connect()
            order, self._echoes = self._owned.order(), Echoes()
            frame = codec.encode_open(order)
            self._echoes.ask(frame.open, order)
            metadata = [*self._replicas.metadata(self.request_id), *headers]
            self._stream = self._replicas.stub.Generate(metadata=metadata)
            opened = await self._exchange(frame, Opened, self._deadline_s)
            with self._dropping():
                self._owned.begin(opened)
        self._log.info("session %s at %s", opened.session, self._replicas.target)
        return opened

    async def _exchange(self, frame: pb.GenerateRequest, kind: type[AnswerT], deadline_s: float) -> AnswerT:
        """Send one frame and read its answer."""
        await self._write(frame, deadline_s)
        return self._expect(await self._read(deadline_s), kind)

    async def _write_draft(self, draft: Draft) -> None:
        frame = codec.encode_draft(draft)
        self._echoes.cut_draft(frame.draft, draft)
        await self._write(frame, self._deadline_s)

    async def _write(self, frame: pb.GenerateRequest, deadline_s: float) -> None:
        async with self._talking(deadline_s) as stream:
            await stream.write(frame)
            self.bytes_up += frame.ByteSize() + FRAME_OVERHEAD

    async def _read(self, deadline_s: float) -> Opened | Verdict | Usage:
        """The next message. Raises what an Error frame says; after that the stream is over."""
        async with self._talking(deadline_s) as stream:
            answer = await stream.read()
            if not isinstance(answer, pb.GenerateResponse):
                raise SessionLost(f"{self._replicas.target} ended the stream unannounced")
            self.bytes_down += answer.ByteSize() + FRAME_OVERHEAD
            if answer.HasField("opened"):
                self._echoes.granted = answer.opened.echoes
            elif answer.HasField("verdict") and self._owned is not None and self._owned.pending:
                self._echoes.mend_verdict(answer.verdict, self._owned.pending[0])
            return codec.decode_response(answer)

    @asynccontextmanager
    async def _talking(self, deadline_s: float) -> AsyncGenerator[Any, None]:
        """The stream, for one act: the one place where foreign errors become ours."""
        if self._stream is None:
            raise SessionLost(f"there is no open stream to {self._replicas.target}")
        with self._dropping():
            try:
                async with asyncio.timeout(deadline_s):
                    yield self._stream
            except TimeoutError as error:
                what = f"{self._replicas.target} gave no answer within {deadline_s:g} s"
                raise SessionLost(what) from error
            except asyncio.InvalidStateError as error:  # what gRPC says about writing to a finished stream
                raise SessionLost(f"the stream to {self._replicas.target} had ended") from error
            except grpc.aio.AioRpcError as error:
                lost = SessionLost(f"lost {self._replicas.target}: {error.details()}")
                raise self._replicas.refused(error) or lost from error

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """Whatever goes wrong in here, cancellation included, ends the stream."""
        done = False
        try:
            yield
            done = True
        finally:
            if not done:
                self._drop()

    def _expect(self, message: Opened | Verdict | Usage, kind: type[AnswerT]) -> AnswerT:
        """The message, if it is of the kind that comes next."""
        if not isinstance(message, kind):
            self._drop()
            what = f"{type(message).__name__} instead of {kind.__name__}"
            raise CiarError(f"{self._replicas.target} answered {what}", "that is not in the protocol")
        return message

    async def _persist(self, act: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Act, again while the stream is lost or the server full, for `retry_s` after the first failure.

        Every further try is with the next server; the pause before it comes once all have had their turn.
        """
        pause_s, until, tries = FIRST_PAUSE_S, None, 0
        while True:
            problem: Overloaded | SessionLost
            try:
                return await act()
            except Overloaded as full:  # never sooner than it says, and not all of those refused at once
                problem = full
                wait_s = max(full.retry_after_s, FIRST_PAUSE_S) * self._dice.uniform(1.0, 1.25)
            except SessionLost as lost:
                problem, wait_s = lost, pause_s * self._dice.uniform(0.5, 1.0)
            until = until or time.monotonic() + self._retry_s
            tries += 1
            if tries % len(self._replicas):
                wait_s = 0.0
            else:
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            if time.monotonic() + wait_s > until:
                if isinstance(problem, Overloaded):
                    raise problem
                raise self._replicas.unreachable(str(problem)) from problem
            self._log.warning("%s; trying again in %.2f s", problem.what, wait_s)
            self._replicas.move_on()
            await asyncio.sleep(wait_s)

    def _drop(self) -> None:
        """Give the stream up; its session ends with it."""
        if self._hearing is not None and self._hearing is not asyncio.current_task():
            self._hearing.cancel()
            self._hearing = None  # a task that drops its own stream stays, with what it has to say
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None
