"""Wiring: model, scheduler, service, health, reflection and metrics behind one port, and how all of it stops.

Knows nothing of argv, environment or where models lie.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from cloud_server.engine import MAX_SPAN, Engine
from cloud_server.scheduler import Scheduler
from cloud_server.service import CiarService, Patience
from cloud_server.telemetry import MetricsPage, Telemetry
from shared.errors import CiarError
from shared.messages import ServerInfo
from shared.models.text import MAX_PROMPT_CHARS
from shared.models.zoo import CloudModel
from shared.wire.codec import PROTOCOL_VERSION
from shared.wire.pb import ciar_pb2 as pb
from shared.wire.pb import ciar_pb2_grpc as rpc

SERVICE = pb.DESCRIPTOR.services_by_name["CiarService"].full_name
# After the sessions were told that the server stops, this long for their last frames to leave.
_FAREWELL_S = 1.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Everything about a server but its model. Port 0 takes any free one; metrics_port 0 serves none."""

    host: str = "127.0.0.1"
    port: int = 0
    max_sessions: int = 8
    max_span: int = MAX_SPAN
    fold_prefix: bool = False
    compiled: bool = False
    shutdown_timeout_s: float = 30.0
    metrics_port: int = 0
    max_message_bytes: int = 1 << 20
    patience: Patience = field(default_factory=Patience)

    @property
    def address(self) -> str:
        """host:port, as gRPC wants it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class CloudServer:
    """One server: `start`, then `stop`. `port` is the real one once it has started."""

    def __init__(self, cloud: CloudModel, settings: Settings) -> None:
        self.settings, self.telemetry, self.port = settings, Telemetry(), settings.port
        engine = self._engine = Engine(
            cloud,
            settings.max_sessions,
            settings.max_span,
            fold_prefix=settings.fold_prefix,
            compiled=settings.compiled,
        )
        self._scheduler = Scheduler(engine, self.telemetry)
        info = ServerInfo(
            protocol_version=PROTOCOL_VERSION,
            models=(engine.info,),
            max_prompt_chars=MAX_PROMPT_CHARS,
            max_span_tokens=settings.max_span,
            max_sessions=settings.max_sessions,
            max_message_bytes=settings.max_message_bytes,
        )
        self._service = CiarService(self._scheduler, self.telemetry, info, settings.patience)
        self._metrics: MetricsPage | None = None

    async def start(self) -> None:
        """Warm the engine up, then listen. Raises CiarError when it cannot, or a port cannot be used."""
        settings = self.settings
        began = time.perf_counter()
        if shapes := self._engine.warm():
            log.info("compiled for %d shapes in %.1f s", shapes, time.perf_counter() - began)
        if settings.metrics_port:
            self._metrics = MetricsPage(self.telemetry, settings.metrics_port)
        self._health = health.aio.HealthServicer()
        self._grpc = grpc.aio.server(options=_options(settings))
        rpc.add_CiarServiceServicer_to_server(self._service, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc
        )
        try:
            self.port = self._grpc.add_insecure_port(settings.address)
        except RuntimeError:
            self._release()
            why = "another program listens there, or the address is not one of this machine"
            next_step = "choose another --port (0: any free one) or --host"
            raise CiarError(f"cannot listen on {settings.address}", why, next_step) from None
        await self._grpc.start()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take no more sessions, give running ones `grace_s` seconds to finish, tell the rest, then stop."""
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._grpc.stop(grace_s + _FAREWELL_S))
        await self._service.drain(grace_s)
        await self._grpc.stop(_FAREWELL_S)  # sooner than above: who only watches our health holds nobody up
        await stopping
        self._release()

    def _release(self) -> None:
        self._scheduler.stop()
        if self._metrics is not None:
            self._metrics.close()


@asynccontextmanager
async def running(cloud: CloudModel, settings: Settings) -> AsyncIterator[CloudServer]:
    """A started server, stopped without grace at the end."""
    server = CloudServer(cloud, settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def serve(cloud: CloudModel, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then stop gracefully. A second signal ends the process at once."""
    server, asked = CloudServer(cloud, settings), asyncio.Event()
    await server.start()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    log.info("serving %s (digest %s) on %s:%d", cloud.name, cloud.digest, settings.host, server.port)
    await asked.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
    log.info("stopping: running images have %g s", settings.shutdown_timeout_s)
    await server.stop(settings.shutdown_timeout_s)


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a silent half of the traffic
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # without it a frozen peer is noticed after a minute at best
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
