"""One device's end of the wire: deadlines, replay after a loss, foreign errors translated. Knows no models.

The device owns the image and the cloud's session is a cache (the proto's comments say how). So a stream that
ends unannounced costs one new stream that begins with everything owned, and what is under way is sent again.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from device_client.owned import Owned
from shared.errors import CiarError, CloudUnreachable, InvalidRequest, ModelMismatch, Overloaded, SessionLost
from shared.messages import Draft, Finish, Open, Opened, ServerInfo, Usage, Verdict
from shared.wire import codec
from shared.wire.pb import ciar_pb2 as pb
from shared.wire.pb.ciar_pb2_grpc import CiarServiceStub

FRAME_OVERHEAD = 5  # bytes gRPC puts before each message: a flag and the length
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Without this one gRPC waits 60 s for the answer to a ping, whatever the line above says.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", int(1000 * FIRST_PAUSE_S)),
    ("grpc.max_reconnect_backoff_ms", int(1000 * LONGEST_PAUSE_S)),
)
# Statuses that say "you are wrong here"; every other is a lost session (proxies disagree on naming that).
_REFUSALS = {
    grpc.StatusCode.UNIMPLEMENTED: "it is no CIAR cloud server of protocol version 1",
    grpc.StatusCode.UNAUTHENTICATED: "it wants to know who you are",
    grpc.StatusCode.PERMISSION_DENIED: "you may not use it",
}
AnswerT = TypeVar("AnswerT", Opened, Verdict, Usage)
ResultT = TypeVar("ResultT")


class CloudLink:
    """A connection to a cloud server, for one image at a time; an async context manager.

    target      "host:port"; IPv6 in brackets
    connect_s   a server that never answered is given up after this
    deadline_s  for every single answer; opening may draw a whole image
    retry_s     how long a lost or overloaded server is tried again

    All methods raise CloudUnreachable where no server answers; Overloaded after `retry_s` of refusals; and,
    at once, whatever else the server says. Links to one target share a connection: one per image is cheap.
    """

    def __init__(
        self, target: str, *, connect_s: float = 5.0, deadline_s: float = 60.0, retry_s: float = 30.0
    ) -> None:
        self._target = _checked_target(target)
        self._connect_s, self._deadline_s, self._retry_s = connect_s, deadline_s, retry_s
        self.bytes_up = self.bytes_down = 0  # frames of all streams so far
        self.resumes = 0  # sessions rebuilt after a loss
        self._reached = False
        self._channel: Any = None
        self._stub: Any = None
        self._stream: Any = None
        self._owned: Owned | None = None
        self._hearing: asyncio.Task[Verdict] | None = None  # what is read while the device draws

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._target, options=_OPTIONS)
        self._stub = CiarServiceStub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()
        await self._channel.close()

    async def info(self) -> ServerInfo:
        """What the server serves. Raises ModelMismatch when it speaks another version of the protocol."""
        await self._connect()
        try:
            answer = await self._stub.GetInfo(pb.GetInfoRequest(), timeout=self._connect_s)
        except grpc.aio.AioRpcError as error:
            raise self._refused(error) or self._unreachable(str(error.details())) from error
        info = codec.decode_info(answer)
        if info.protocol_version != codec.PROTOCOL_VERSION:
            raise ModelMismatch(
                f"the server at {self._target} speaks protocol version {info.protocol_version}",
                f"this device speaks version {codec.PROTOCOL_VERSION}",
                "update the older of the two",
            )
        return info

    async def open(self, order: Open) -> Opened:
        """Begin an image, or resume one from order.resume; a stream still open is given up."""
        self._drop()
        self._owned = Owned(order)
        return await self._persist(self._start)

    @property
    def answered(self) -> bool:
        """Whether `receive` has something to return or to raise at once."""
        return self._hearing is not None and self._hearing.done()

    async def send(self, draft: Draft) -> None:
        """Send one round, or keep it for `receive` to send on a new stream if this one is found lost."""
        assert self._owned is not None, "open comes first"
        self._owned.pending.append(draft)
        with suppress(SessionLost):
            await self._write(codec.encode_draft(draft), self._deadline_s)
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
                await self._write(codec.encode_draft(draft), self._deadline_s)
        hearing, self._hearing = self._hearing or self._listen(), None
        verdict = await hearing
        with self._dropping():
            self._owned.settle(verdict)
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
        await self._connect()
        frame = codec.encode_open(self._owned.order())
        self._stream = self._stub.Generate()
        opened = await self._exchange(frame, Opened, self._deadline_s)
        with self._dropping():
            self._owned.begin(opened)
        return opened

    async def _connect(self) -> None:
        """Wait for a connection. Raises CloudUnreachable after `connect_s`, SessionLost if there was one."""
        try:
            async with asyncio.timeout(self._connect_s):
                await self._channel.channel_ready()
        except TimeoutError:
            if self._reached:
                raise SessionLost(f"no connection to {self._target} within {self._connect_s:g} s") from None
            raise self._unreachable(f"nobody answered within {self._connect_s:g} s") from None
        self._reached = True

    async def _exchange(self, frame: pb.GenerateRequest, kind: type[AnswerT], deadline_s: float) -> AnswerT:
        """Send one frame and read its answer."""
        await self._write(frame, deadline_s)
        return self._expect(await self._read(deadline_s), kind)

    async def _write(self, frame: pb.GenerateRequest, deadline_s: float) -> None:
        async with self._talking(deadline_s) as stream:
            await stream.write(frame)
            self.bytes_up += frame.ByteSize() + FRAME_OVERHEAD

    async def _read(self, deadline_s: float) -> Opened | Verdict | Usage:
        """The next message. Raises what an Error frame says; after that the stream is over."""
        async with self._talking(deadline_s) as stream:
            answer = await stream.read()
            if not isinstance(answer, pb.GenerateResponse):
                raise SessionLost(f"{self._target} ended the stream unannounced")
            self.bytes_down += answer.ByteSize() + FRAME_OVERHEAD
            return codec.decode_response(answer)

    @asynccontextmanager
    async def _talking(self, deadline_s: float) -> AsyncGenerator[Any, None]:
        """The stream, for one act: the one place where foreign errors become ours."""
        if self._stream is None:
            raise SessionLost(f"there is no open stream to {self._target}")
        with self._dropping():
            try:
                async with asyncio.timeout(deadline_s):
                    yield self._stream
            except TimeoutError as error:
                raise SessionLost(f"{self._target} gave no answer within {deadline_s:g} s") from error
            except asyncio.InvalidStateError as error:  # what gRPC says about writing to a finished stream
                raise SessionLost(f"the stream to {self._target} had ended") from error
            except grpc.aio.AioRpcError as error:
                lost = SessionLost(f"lost {self._target}: {error.details()}")
                raise self._refused(error) or lost from error

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
            raise CiarError(f"{self._target} answered {what}", "that is not in the protocol")
        return message

    async def _persist(self, act: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Act, again while the stream is lost or the server full, for `retry_s` after the first failure."""
        pause_s, until = FIRST_PAUSE_S, None
        while True:
            problem: Overloaded | SessionLost
            try:
                return await act()
            except Overloaded as full:
                problem, wait_s = full, max(full.retry_after_s, FIRST_PAUSE_S)
            except SessionLost as lost:
                problem, wait_s, pause_s = lost, pause_s, min(2 * pause_s, LONGEST_PAUSE_S)
            until = until or time.monotonic() + self._retry_s
            if time.monotonic() + wait_s > until:
                if isinstance(problem, Overloaded):
                    raise problem
                raise self._unreachable(str(problem)) from problem
            await asyncio.sleep(wait_s)

    def _refused(self, error: grpc.aio.AioRpcError) -> CloudUnreachable | None:
        """The error of a status that no repetition can help; None for any other."""
        code = error.code()
        if code not in _REFUSALS:
            return None
        return CloudUnreachable(f"{self._target} refuses ({code.name}: {error.details()})", _REFUSALS[code])

    def _unreachable(self, why: str) -> CloudUnreachable:
        port = self._target.rpartition(":")[2]
        return CloudUnreachable(
            f"no cloud server at {self._target}", why, f"start one: cloud-server --model emoji --port {port}"
        )

    def _drop(self) -> None:
        """Give the stream up; its session ends with it."""
        if self._hearing is not None and self._hearing is not asyncio.current_task():
            self._hearing.cancel()
            self._hearing = None  # a task that drops its own stream stays, with what it has to say
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None


def _checked_target(target: str) -> str:
    """`target`, or InvalidRequest unless it is host:port."""
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(\d{1,5})", target)
    if match is None or not 1 <= int(match[1]) <= 65535:
        raise InvalidRequest(
            f"server {target!r} is not host:port",
            "a port is 1 to 65535",
            "try 127.0.0.1:50051 or [::1]:50051",
        )
    return target
