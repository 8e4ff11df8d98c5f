"""The page for those who run the server: /livez /readyz /metrics /version over HTTP, on a thread of its own.

So it answers while the event loop does not, and says so. Knows nothing of sessions or gRPC.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from shared.errors import CiarError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

PATHS = "/livez /readyz /metrics /version"


@dataclass(frozen=True)
class State:
    """How a server is. A problem is one sentence, or None."""

    dead: str | None  # a restart would help
    unready: str | None  # send new images elsewhere


class OperationsPage:
    """Serves until `close`. `state` is asked from another thread. Raises CiarError if the port is taken."""

    def __init__(
        self, registry: CollectorRegistry, state: Callable[[], State], about: Mapping[str, object]
    ) -> None:
        self._metrics, self._state, self._about = make_wsgi_app(registry), state, about

    def open(self, host: str, port: int) -> int:
        """Listen; returns the real port."""
        try:
            self._server = make_server(host, port, self._answer, _Server, _Quiet)
        except OSError as error:
            what = f"the metrics port {port} cannot be used"
            raise CiarError(what, str(error.strerror), "choose another --metrics-port") from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="operations", daemon=True)
        self._thread.start()
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, asked: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        match asked["PATH_INFO"]:
            case "/metrics":
                page: Iterable[bytes] = self._metrics(asked, start)
                return page
            case "/livez":
                return _json(start, *_health("alive", self._state().dead))
            case "/readyz":
                state = self._state()
                return _json(start, *_health("ready", state.dead or state.unready))
            case "/version":
                return _json(start, HTTPStatus.OK, self._about)
            case _:
                return _json(start, HTTPStatus.NOT_FOUND, {"error": f"there are {PATHS}"})


def _health(well: str, problem: str | None) -> tuple[HTTPStatus, Mapping[str, object]]:
    if problem is None:
        return HTTPStatus.OK, {"status": well}
    return HTTPStatus.SERVICE_UNAVAILABLE, {"status": f"not {well}", "why": problem}


def _json(start: StartResponse, status: HTTPStatus, body: Mapping[str, object]) -> list[bytes]:
    start(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
    return [json.dumps(body).encode()]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 5.0  # for whoever connects and says nothing

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401 - the base class's own
        """Probes come every second; nobody reads that."""
