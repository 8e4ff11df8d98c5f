"""OpenTelemetry spans of both programs, one trace per image. Off unless `start` or `use` was called.

The device's root span travels as W3C `traceparent` beside the request id; what the cloud begins for a stream
is its child. Needs `ciar[otel]`, and imports nothing of it while off. Knows no images, no gRPC: prompts and
tokens stay out of spans, an error is named by its class alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry import trace

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
log = logging.getLogger(__name__)
_tracer: trace.Tracer | None = None


@dataclass(frozen=True)
class Span:
    """One act with a beginning and an end; of no effect where tracing is off."""

    _open: trace.Span | None = None

    def note(self, **attributes: str | int | float) -> None:
        """Say something about it, as attributes `ciar.<name>`."""
        if self._open is not None:
            self._open.set_attributes({f"ciar.{name}": value for name, value in attributes.items()})

    def child(self, name: str) -> Span:
        """A span that begins now, within this one."""
        return self if self._open is None else _begin(name, self._open)

    def end(self) -> None:
        """It is over."""
        if self._open is not None:
            self._open.end()

    def fail(self, error: BaseException) -> None:
        """It is over, by an error."""
        if self._open is not None:
            _blame(self._open, error)
            self._open.end()

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The metadata that makes spans of another program its children."""
        if self._open is None:
            return []
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, set_span_in_context(self._open))
        return list(carrier.items())


OFF = Span()
_NOTHING = nullcontext(OFF)


def start(program: str, environment: Mapping[str, str]) -> None:
    """Send spans to the collector that the OTEL_* variables name; without one, or the extra, stay off.

    Spans leave in batches from a thread of the SDK's; what is left at the end of the process leaves then.
    """
    if not _wanted(environment):
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning('no traces: %s is not installed (pip install "ciar[otel]")', error.name)
        return
    own_name = Resource({"service.name": program})  # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win
    provider = TracerProvider(resource=own_name.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider.get_tracer("ciar"))


def use(tracer: trace.Tracer | None) -> None:
    """Begin all spans of this process with `tracer`; None: begin none."""
    global _tracer
    _tracer = tracer


def root(name: str) -> Span:
    """A span that begins a trace."""
    return OFF if _tracer is None else _begin(name, None)


def span(name: str) -> AbstractContextManager[Span]:
    """A span around what is done in here, within the one this task is in."""
    return _NOTHING if _tracer is None else _around(_tracer, name)


def caller(metadata: Mapping[str, object]) -> AbstractContextManager[object]:
    """Spans begun in here, in this task, are children of the one that `metadata` names, if it names one."""
    return nullcontext() if _tracer is None else _within(metadata)


def _wanted(environment: Mapping[str, str]) -> bool:
    """What the OTEL_* variables say that the SDK leaves to programs."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporters = environment.get("OTEL_TRACES_EXPORTER", "") or "otlp"
    if disabled or exporters == "none" or not any(environment.get(name) for name in _ENDPOINTS):
        return False
    protocol = next((value for name in _PROTOCOLS if (value := environment.get(name))), "grpc")
    if (exporters, protocol) != ("otlp", "grpc"):
        log.warning("no traces: exporter %r with protocol %r; allowed: otlp, grpc", exporters, protocol)
        return False
    return True


def _begin(name: str, parent: trace.Span | None) -> Span:
    from opentelemetry.context import Context
    from opentelemetry.trace import set_span_in_context

    assert _tracer is not None, "there is no span to be a parent without it"
    nobody = Context()  # not the surrounding task: rounds overlap, and their spans with them
    inside = nobody if parent is None else set_span_in_context(parent, nobody)
    return Span(_tracer.start_span(name, inside))


@contextmanager
def _around(tracer: trace.Tracer, name: str) -> Iterator[Span]:
    # Neither exceptions nor their texts: a traceback tells paths of the machine.
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as opened:
        try:
            yield Span(opened)
        except BaseException as error:
            _blame(opened, error)
            raise


@contextmanager
def _within(metadata: Mapping[str, object]) -> Iterator[None]:
    from opentelemetry import context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    texts = {name: value for name, value in metadata.items() if isinstance(value, str)}
    token = context.attach(TraceContextTextMapPropagator().extract(texts, context.Context()))
    try:
        yield
    finally:
        context.detach(token)


def _blame(opened: trace.Span, error: BaseException) -> None:
    from opentelemetry.trace import StatusCode

    opened.set_status(StatusCode.ERROR, type(error).__name__)
