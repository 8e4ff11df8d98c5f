"""What an operator watches: counters of one server, in a registry of its own. Knows no models and no wire."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from shared.errors import CiarError

_FORWARD_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_BATCH = (1, 2, 4, 8, 16, 32, 64)


class Telemetry:
    """Names start with `ciar_`; times are in seconds. Safe to use from any thread."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self._sessions = Gauge("ciar_sessions_active", "Images being drawn now", registry=own)
        self._forward_s = Histogram(
            "ciar_forward_seconds", "One run of the cloud model", buckets=_FORWARD_S, registry=own
        )
        self._batch = Histogram(
            "ciar_batch_jobs", "Jobs judged by one run of the cloud model", buckets=_BATCH, registry=own
        )
        self._drafts = Counter("ciar_drafts", "Drafts judged", registry=own)
        self._judged = Counter("ciar_span_tokens_judged", "Span tokens judged", registry=own)
        self._accepted = Counter("ciar_span_tokens_accepted", "Span tokens accepted", registry=own)
        self._errors = Counter(
            "ciar_errors", "Sessions ended by an error, by its class", ["error"], registry=own
        )

    def session_opened(self) -> None:
        """One more image is being drawn."""
        self._sessions.inc()

    def session_closed(self) -> None:
        """One image less is being drawn."""
        self._sessions.dec()

    def forward(self, jobs: int, seconds: float) -> None:
        """The model ran once for that many jobs."""
        self._batch.observe(jobs)
        self._forward_s.observe(seconds)

    def draft(self, judged: int, accepted: int) -> None:
        """One draft was judged."""
        self._drafts.inc()
        self._judged.inc(judged)
        self._accepted.inc(accepted)

    def error(self, error: CiarError) -> None:
        """A session ended with this error."""
        self._errors.labels(type(error).__name__).inc()

    def value(self, name: str) -> float:
        """The current value of an unlabelled sample. Raises KeyError if there is none of that name."""
        value = self.registry.get_sample_value(name)
        if value is None:
            raise KeyError(name)
        return value


class MetricsPage:
    """The registry over HTTP at 127.0.0.1, path /metrics, until `close`."""

    def __init__(self, telemetry: Telemetry, port: int) -> None:
        try:
            self._server, self._thread = start_http_server(port, "127.0.0.1", telemetry.registry)
        except OSError as error:
            what = f"the metrics port {port} cannot be used"
            raise CiarError(what, str(error.strerror), "choose another --metrics-port") from None

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
