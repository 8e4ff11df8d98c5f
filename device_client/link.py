"""One device's end of the wire: deadlines, replay after a loss, foreign errors translated. Knows no models.

The device owns the image and the cloud's session is a cache (the proto's comments say how). So a stream that
ends unannounced costs one new stream that begins with everything owned, and the pending draft is sent again.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np

from shared.errors import CiarError, CloudUnreachable, InvalidRequest, ModelMismatch, Overloaded, SessionLost
from shared.messages import (
    Draft,
    Features,
    Finish,
    Open,
    Opened,
    ServerInfo,
    Tokens,
    Usage,
    Verdict,
    no_tokens,
)
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


@dataclass
class _Owned:
    """What the device owns, as far as the cloud has committed it: tokens, and features of some of them."""

    tokens: Tokens = field(default_factory=no_tokens)
    features: list[Features] = field(default_factory=list)  # index: places in `tokens`

    def add(self, tokens: Tokens, features: Features | None = None) -> None:
        """Append tokens; the features' places count from the first of them."""
        if features is not None:
            index = (features.index + np.uint16(len(self.tokens))).astype(np.uint16)
            self.features.append(replace(features, index=index))
        self.tokens = np.concatenate([self.tokens, tokens])

    def all_features(self) -> Features | None:
        """One Features value for all tokens."""
        if not self.features:
            return None
        return Features(
            np.concatenate([part.index for part in self.features]),
            np.concatenate([part.codes for part in self.features]),
            np.concatenate([part.scale for part in self.features]),
        )


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
        self._order: Open | None = None
        self._owned = _Owned()
        self._image_tokens = 0

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
        self._order, self._owned = order, _Owned()
        self._owned.add(order.resume, order.resume_features)
        opened = await self._persist(self._start)
        self._image_tokens = opened.image_tokens
        self._owned.add(opened.prefix)
        return opened

    async def verify(self, draft: Draft) -> Verdict:
        """One round, on a new stream if the old one is lost."""

        async def attempt() -> Verdict:
            if self._stream is None:
                await self._start()
                self.resumes += 1
            verdict = await self._exchange(codec.encode_draft(draft), Verdict, self._deadline_s)
            return self._checked(draft, verdict)

        verdict = await self._persist(attempt)
        token = no_tokens() if verdict.token is None else np.array([verdict.token], np.int32)
        self._owned.add(draft.catch_up, draft.features)
        self._owned.add(np.concatenate([draft.span[: verdict.accepted], token]))
        return verdict

    async def finish(self) -> Usage:
        """End the image. Raises SessionLost where the stream is gone: nothing is worth rebuilding then."""
        try:
            return await self._exchange(codec.encode_finish(Finish()), Usage, self._connect_s)
        finally:
            self._drop()

    async def _start(self) -> Opened:
        """A new stream that begins with everything the device owns."""
        assert self._order is not None, "open comes first"
        await self._connect()
        order = replace(self._order, resume=self._owned.tokens, resume_features=self._owned.all_features())
        frame = codec.encode_open(order)
        self._stream = self._stub.Generate()
        opened = await self._exchange(frame, Opened, self._deadline_s)
        self._check_ids(opened.prefix.tolist())
        if len(order.resume) + len(opened.prefix) > opened.image_tokens:
            raise self._nonsense(f"a prefix of {len(opened.prefix)} of {opened.image_tokens} tokens")
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
        """Send one frame and read its answer: the one place where foreign errors become ours."""
        if self._stream is None:
            raise SessionLost(f"there is no open stream to {self._target}")
        answered = False
        try:
            async with asyncio.timeout(deadline_s):
                await self._stream.write(frame)
                self.bytes_up += frame.ByteSize() + FRAME_OVERHEAD
                answer = await self._stream.read()
            answered = isinstance(answer, pb.GenerateResponse)
        except TimeoutError as error:
            raise SessionLost(f"{self._target} gave no answer within {deadline_s:g} s") from error
        except asyncio.InvalidStateError as error:  # what gRPC says about writing to a finished stream
            raise SessionLost(f"the stream to {self._target} had ended") from error
        except grpc.aio.AioRpcError as error:
            raise self._refused(error) or SessionLost(f"lost {self._target}: {error.details()}") from error
        finally:
            if not answered:
                self._drop()
        if not answered:
            raise SessionLost(f"{self._target} ended the stream unannounced")
        return self._decoded(answer, kind)

    def _decoded(self, answer: pb.GenerateResponse, kind: type[AnswerT]) -> AnswerT:
        """The message in an answer. Raises what an Error frame says; after that the stream is over."""
        self.bytes_down += answer.ByteSize() + FRAME_OVERHEAD
        try:
            message = codec.decode_response(answer)
            if not isinstance(message, kind):
                raise self._nonsense(f"{type(message).__name__} instead of {kind.__name__}")
        except CiarError:
            self._drop()
            raise
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

    def _checked(self, draft: Draft, verdict: Verdict) -> Verdict:
        """The verdict, if it can be one on this draft."""
        end = draft.base + len(draft.catch_up) + verdict.accepted
        if verdict.round != draft.round or verdict.accepted > len(draft.span):
            raise self._nonsense(f"round {verdict.round} with {verdict.accepted} tokens accepted")
        if (verdict.token is None) != (end == self._image_tokens):
            raise self._nonsense(f"token {verdict.token} behind {end} of {self._image_tokens}")
        self._check_ids([] if verdict.token is None else [verdict.token])
        return verdict

    def _check_ids(self, tokens: list[int]) -> None:
        assert self._order is not None
        if tokens and max(tokens) >= self._order.codebook_size:
            raise self._nonsense(f"token {max(tokens)} of a codebook of {self._order.codebook_size}")

    def _nonsense(self, what: str) -> CiarError:
        self._drop()
        return CiarError(f"the server at {self._target} answered {what}", "that is not in the protocol")

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
