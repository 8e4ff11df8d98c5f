"""The servers an image may be drawn with, and the connection to the one in use. Knows no conversation.

Any of them will do: whatever the device owns of an image it brings along.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import grpc

from device_client.identity import Identity
from shared.errors import CloudUnreachable, InvalidRequest, Refused, SessionLost
from shared.logs import REQUEST_ID
from shared.wire.pb.ciar_pb2_grpc import CiarServiceStub

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
    grpc.StatusCode.UNIMPLEMENTED: ("it is no CIAR cloud server of protocol version 1", ""),
    grpc.StatusCode.UNAUTHENTICATED: (
        "it wants to know who you are",
        "give the token it was given: --token-file FILE, or CIAR_TOKEN",
    ),
    grpc.StatusCode.PERMISSION_DENIED: ("you may not use it", ""),
}


class Replicas:
    """One connection at a time to one of `targets`, "host:port,host:port,...". Raises InvalidRequest."""

    def __init__(self, targets: str, identity: Identity, connect_s: float) -> None:
        self._targets = [_checked_target(target.strip()) for target in targets.split(",")]
        self._identity, self._connect_s = identity, connect_s
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._place = 0
        self._reached = False

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def target(self) -> str:
        """The one in use."""
        return self._targets[self._place]

    @property
    def stub(self) -> Any:  # noqa: ANN401 - generated without types
        """The service on the one in use."""
        return CiarServiceStub(self._channel())

    def metadata(self, request_id: str) -> list[tuple[str, str]]:
        """What goes along with every call."""
        token = self._identity.token
        return [(REQUEST_ID, request_id), *([("authorization", f"Bearer {token}")] if token else [])]

    def move_on(self) -> None:
        """Use the next one."""
        self._place = (self._place + 1) % len(self)

    async def connect(self) -> None:
        """Wait for a connection to the one in use, or to one of the others if that does not answer.

        Raises CloudUnreachable after `connect_s`, SessionLost if there was a connection before.
        """
        try:
            async with asyncio.timeout(self._connect_s):
                while not await self._answers():
                    self.move_on()
        except TimeoutError:
            if self._reached:
                targets = " or ".join(self._targets)
                raise SessionLost(f"no connection to {targets} within {self._connect_s:g} s") from None
            raise self.unreachable(f"nobody answered within {self._connect_s:g} s") from None
        self._reached = True

    async def close(self) -> None:
        """End all connections."""
        for channel in self._channels.values():
            await channel.close()

    def refused(self, error: grpc.aio.AioRpcError) -> Refused | None:
        """The error of a status that no repetition can help; None for any other."""
        code = error.code()
        if code not in _REFUSALS:
            return None
        return Refused(f"{self.target} refuses ({code.name}: {error.details()})", *_REFUSALS[code])

    def unreachable(self, why: str) -> CloudUnreachable:
        """The error of somebody who tried long enough."""
        port = self.target.rpartition(":")[2]
        targets = " or ".join(self._targets)
        hint = f"start one: cloud-server --model emoji --port {port}"
        if self._identity.tls:
            hint += "; and look whether it speaks TLS with a certificate of --tls-ca for this name"
        return CloudUnreachable(f"no cloud server at {targets}", why, hint)

    async def _answers(self) -> bool:
        """Whether the one in use can be talked to; where there are others, it is not waited for long."""
        channel, alone = self._channel(), len(self) == 1
        try:
            async with asyncio.timeout(None if alone else self._connect_s / len(self)):
                state = channel.get_state(try_to_connect=True)
                while state is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE and not alone:
                        await asyncio.sleep(FIRST_PAUSE_S / len(self))
                        return False
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        except TimeoutError:
            return False
        return True

    def _channel(self) -> grpc.aio.Channel:
        if self.target not in self._channels:
            self._channels[self.target] = self._dial()
        return self._channels[self.target]

    def _dial(self) -> grpc.aio.Channel:
        own = self._identity
        if not own.tls:
            return grpc.aio.insecure_channel(self.target, options=_OPTIONS)
        credentials = grpc.ssl_channel_credentials(own.ca, own.key, own.cert)
        return grpc.aio.secure_channel(self.target, credentials, options=_OPTIONS)


def _checked_target(target: str) -> str:
    """`target`, or InvalidRequest unless it is host:port."""
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:/\[\],]+):(\d{1,5})", target)
    if match is None or not 1 <= int(match[1]) <= 65535:
        raise InvalidRequest(
            f"server {target!r} is not host:port",
            "a port is 1 to 65535",
            "try 127.0.0.1:50051 or [::1]:50051; several are separated by commas",
        )
    return target
