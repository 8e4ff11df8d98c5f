"""One stream's frames as messages, each with a deadline. Knows nothing of sessions."""

from __future__ import annotations

import asyncio

import grpc

from cloud_server.telemetry import Telemetry
from shared.errors import CiarError, InvalidRequest, SessionLost
from shared.messages import Draft, Finish, Open, Opened, Usage, Verdict
from shared.wire import codec
from shared.wire.echoes import Echoes
from shared.wire.pb import ciar_pb2 as pb

Stream = grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
FRAME_OVERHEAD = 5  # bytes gRPC puts before each message: a flag and the length


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
