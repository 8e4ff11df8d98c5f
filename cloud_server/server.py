"""Wiring: model, scheduler, service, health, reflection and metrics behind their ports, and how it stops.

Knows nothing of argv, environment or where models lie.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from cloud_server.admission import Admission, Doors
from cloud_server.engine import MAX_SPAN
from cloud_server.operations import OperationsPage, State
from cloud_server.scheduler import Pace
from cloud_server.security import Guard, Tls, warning
from cloud_server.service import CiarService, House, Patience
from cloud_server.staff import Served, staff
from cloud_server.telemetry import Alarm, Telemetry
from shared.errors import CiarError, SessionLost
from shared.messages import ModelInfo, ServerInfo
from shared.models.text import MAX_PROMPT_CHARS
from shared.wire.codec import PROTOCOL_VERSION
from shared.wire.pb import ciar_pb2 as pb
from shared.wire.pb import ciar_pb2_grpc as rpc

SERVICE = pb.DESCRIPTOR.services_by_name["CiarService"].full_name
# After the sessions were told that the server stops, this long for their last frames to leave.
_FAREWELL_S = 1.0
_BEAT_S = 0.25  # how often the server looks after its engine
_LOOP_LIMIT_S = 10.0  # an event loop that was not seen for so long is dead
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
    metrics_host: str = "127.0.0.1"
    max_message_bytes: int = 1 << 20
    max_prompt_chars: int = MAX_PROMPT_CHARS
    max_queue: int = 0
    queue_s: float = 10.0
    per_caller: int = 0
    per_minute: int = 0
    tls: Tls | None = None
    tokens: tuple[str, ...] = field(default=(), repr=False)
    health_needs_token: bool = False
    version: str = ""
    patience: Patience = field(default_factory=Patience)
    pace: Pace = field(default_factory=Pace)
    alarm: Alarm = field(default_factory=Alarm)

    @property
    def address(self) -> str:
        """host:port, as gRPC wants it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def doors(self) -> Doors:
        """Who is let in."""
        return Doors(self.max_sessions, self.max_queue, self.queue_s, self.per_caller, self.per_minute)

    @property
    def warning(self) -> str | None:
        """What is unsafe about all this; None if nothing is."""
        guarded = bool(self.tokens) or (self.tls is not None and self.tls.client_ca is not None)
        return warning(self.host, encrypted=self.tls is not None, guarded=guarded)


class CloudServer:
    """One server: `start`, then `stop`. `port` is the real one once it has started."""

    def __init__(self, cloud: Served, settings: Settings) -> None:
        self.settings, self.port, self.metrics_port = settings, settings.port, settings.metrics_port
        self.telemetry = Telemetry(settings.alarm)
        crew = staff(cloud, settings, self.telemetry)
        self._desk, self._warm = crew.desk, crew.warm
        self._about = {"version": settings.version, "model": cloud.name, "digest": cloud.digest}
        self._guard = Guard(settings.tokens, health_too=settings.health_needs_token)
        self._admission = Admission(settings.doors)
        self.service = CiarService(self._house(crew.info))
        self._page: OperationsPage | None = None
        self._watching: asyncio.Task[None] | None = None
        self._seen_s = time.monotonic()  # when the event loop was last seen alive
        self._stopping = False
        self._serving = False  # what health says
        self.telemetry.gauge("queue_jobs", "Jobs that wait for a forward", lambda: self._desk.waiting)
        self.telemetry.gauge("queue_orders", "Orders that wait for a place", lambda: self._admission.queued)
        self.telemetry.gauge("engine_busy_seconds", "The forward under way", lambda: self._desk.busy_s)

    @property
    def guard(self) -> Guard:
        """Who may come in, for those who hold the port in our place."""
        return self._guard

    @property
    def problem(self) -> str | None:
        """Why nothing can be expected of the engine; None if it is well, however busy."""
        return self._desk.problem

    async def start(self) -> None:
        """Warm the engine up, then listen. Raises CiarError when it cannot, or a port cannot be used."""
        settings = self.settings
        began = time.perf_counter()
        if shapes := self._warm():
            log.info("compiled for %d shapes in %.1f s", shapes, time.perf_counter() - began)
        self._health = health.aio.HealthServicer()
        self._grpc = grpc.aio.server(interceptors=[self._guard], options=_options(settings))
        rpc.add_CiarServiceServicer_to_server(self.service, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc
        )
        try:
            if settings.metrics_port:
                page = OperationsPage(self.telemetry.registry, self._state, {**self._about, "protocol": 1})
                self.metrics_port = page.open(settings.metrics_host, settings.metrics_port)
                self._page = page
            self.port = self._listen()
        except CiarError:
            self._release()
            raise
        await self._grpc.start()
        await self._look(0.0)
        self._watching = asyncio.create_task(self._watch())

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take no more sessions, give running ones `grace_s` seconds to finish, tell the rest, then stop."""
        self._stopping = True
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._grpc.stop(grace_s + _FAREWELL_S))
        await self.service.drain(grace_s)
        await self._grpc.stop(_FAREWELL_S)  # sooner than above: who only watches our health holds nobody up
        await stopping
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        self._release()

    def _house(self, info: ModelInfo) -> House:
        settings = self.settings
        served = ServerInfo(
            protocol_version=PROTOCOL_VERSION,
            models=(info,),
            max_prompt_chars=settings.max_prompt_chars,
            max_span_tokens=settings.max_span,
            max_sessions=settings.max_sessions,
            max_message_bytes=settings.max_message_bytes,
        )
        return House(
            self._desk,
            self.telemetry,
            self._admission,
            self._guard,
            served,
            settings.patience,
            max_streams=4 * (settings.max_sessions + settings.max_queue) + 64,
        )

    def _listen(self) -> int:
        settings = self.settings
        try:
            if settings.tls is None:
                return self._grpc.add_insecure_port(settings.address)
            return self._grpc.add_secure_port(settings.address, settings.tls.credentials())
        except RuntimeError:
            why = "another program listens there, or the address is not one of this machine"
            next_step = "choose another --port (0: any free one) or --host"
            raise CiarError(f"cannot listen on {settings.address}", why, next_step) from None

    async def _watch(self) -> None:
        """The heartbeat: what it finds is what health, the operations page and the metrics say."""
        while True:
            asleep_s = time.monotonic()
            await asyncio.sleep(_BEAT_S)
            self._seen_s = time.monotonic()
            await self._look(max(self._seen_s - asleep_s - _BEAT_S, 0.0))

    async def _look(self, lag_s: float) -> None:
        problem = self._desk.problem
        self.telemetry.pulse(alive=problem is None, lag_s=lag_s)
        if self._serving == (problem is None):
            return
        self._serving = problem is None
        status = health_pb2.HealthCheckResponse
        for name in ("", SERVICE):
            await self._health.set(name, status.SERVING if self._serving else status.NOT_SERVING)
        if problem is None:
            self.service.welcome()
            return
        log.error("the engine is dead: %s", problem)
        if self._desk.stuck:
            self.service.abandon(SessionLost("the engine is dead", problem, "resume on another server"))

    def _state(self) -> State:
        """Asked by the operations page, from its thread."""
        silent_s = time.monotonic() - self._seen_s
        dead = f"the event loop was not seen for {silent_s:.0f} s" if silent_s > _LOOP_LIMIT_S else None
        return State(dead or self._desk.problem, "it is stopping" if self._stopping else None)

    def _release(self) -> None:
        self._desk.stop()
        if self._page is not None:
            self._page.close()
            self._page = None


@asynccontextmanager
async def running(cloud: Served, settings: Settings) -> AsyncIterator[CloudServer]:
    """A started server, stopped without grace at the end."""
    server = CloudServer(cloud, settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def serve(cloud: Served, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then stop gracefully. A second signal ends the process at once."""
    server, asked = CloudServer(cloud, settings), asyncio.Event()
    await server.start()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    if settings.warning:
        log.warning("warning: %s", settings.warning)
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
