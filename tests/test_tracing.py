"""One trace from the device to the cloud, over a real server; and nothing at all where nobody asked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloud_server.server import Settings, running
from device_client.link import CloudLink
from device_client.loop import Request, decode
from device_client.policy import policy_for
from shared import tracing
from shared.errors import ModelMismatch
from shared.messages import Open
from shared.models.zoo import load_cloud, load_device_package
from tests.tiny import WARP, build_tiny_model

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

NOWHERE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def seen() -> Iterator[InMemorySpanExporter]:
    """What both sides end, as this process is both of them."""
    why = "OpenTelemetry is not installed: pip install 'ciar[otel]'"
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason=why)
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider.get_tracer("test"))
    yield exporter
    tracing.use(None)


def tree(spans: tuple[ReadableSpan, ...]) -> list[tuple[str, str]]:
    """(name, name of the parent) of every span, without repetitions; an unknown parent is an error."""
    name_of = {span.context.span_id: span.name for span in spans}
    return sorted({(span.name, name_of[span.parent.span_id] if span.parent else "") for span in spans})


def verdict(span: ReadableSpan) -> tuple[object, object]:
    """Which round, and how much of it stands."""
    return span.attributes["ciar.round"], span.attributes["ciar.accepted"]


@pytest.mark.parametrize("in_flight", [1, 3])
async def test_an_image_is_one_trace(folder: str, seen: InMemorySpanExporter, in_flight: int) -> None:
    cloud = load_cloud(folder, Path("nowhere"))
    package = load_device_package(folder, Path("nowhere"))
    policy = policy_for("exact", package.calibration, in_flight=in_flight, prefix_rate=0.2)
    async with (
        running(cloud, Settings()) as server,
        CloudLink(f"127.0.0.1:{server.port}", request_id="abc-1") as link,
        aclosing(decode(package, Request("a red cat", 7, WARP), policy, link)) as steps,
    ):
        *_, last = [step async for step in steps]
    spans = seen.get_finished_spans()
    assert len({span.context.trace_id for span in spans}) == 1
    assert tree(spans) == [
        ("forward", "open"),
        ("forward", "verify"),
        ("image", ""),
        ("open", "image"),  # the device's, and the cloud's
        ("round", "image"),
        ("verify", "image"),
    ]
    assert [span.name for span in spans].count("open") == 2
    (image,) = (span for span in spans if span.name == "image")
    assert image.attributes == {"ciar.request_id": "abc-1"}
    ended = [span for span in spans if span.name == "round" and "ciar.accepted" in span.attributes]
    assert len(ended) == last.counters.rounds
    judged = {verdict(span) for span in spans if span.name == "verify"}
    assert {verdict(span) for span in ended} <= judged
    assert not any(span.status.description or span.events for span in spans)


async def test_an_error_is_named_by_its_class_alone(folder: str, seen: InMemorySpanExporter) -> None:
    cloud = load_cloud(folder, Path("nowhere"))
    wrong = Open(cloud.name, "0" * 16, 32, "a red cat", 7, WARP, 3, "coupled")
    async with running(cloud, Settings()) as server, CloudLink(f"127.0.0.1:{server.port}") as link:
        with pytest.raises(ModelMismatch):
            await link.open(wrong)
    failed = [span for span in seen.get_finished_spans() if span.name == "open"]
    assert [(span.status.description, span.events) for span in failed] == [("ModelMismatch", ())] * 2


@pytest.mark.parametrize("value", ["", "00-0-0-00", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 10_000])
def test_what_no_caller_could_mean_begins_a_trace(seen: InMemorySpanExporter, value: str) -> None:
    with tracing.caller({"traceparent": value, "x-bin": b"\xff"}), tracing.span("open"):
        pass
    (span,) = seen.get_finished_spans()
    assert span.parent is None


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, ""),
        ({**NOWHERE, "OTEL_SDK_DISABLED": "true"}, ""),
        ({**NOWHERE, "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({**NOWHERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "allowed: otlp, grpc"),
    ],
)
def test_off_unless_asked_for(
    environment: dict[str, str], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracing.start("test", environment)
    assert says in caplog.text and bool(says) == bool(caplog.text)
    with tracing.caller({"traceparent": "x"}), tracing.span("open") as span:
        assert span is tracing.OFF is tracing.root("image")


@pytest.mark.parametrize("installed", [True, False])
def test_off_imports_nothing_and_works_without_the_extra(installed: bool) -> None:
    """In a process of its own: that nobody asked, and that somebody did where the extra is missing."""
    missing = "" if installed else "sys.modules['opentelemetry'] = None"
    asked = {} if installed else NOWHERE
    code = f"""
import sys
{missing}
import cloud_server.service, device_client.link
from shared import tracing
tracing.start("test", {asked})
with tracing.caller({{}}), tracing.span("open") as span:
    assert span is tracing.OFF and span.child("round").headers == []
assert not any(name.startswith("opentelemetry") and sys.modules[name] for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ("ciar[otel]" in done.stderr) != installed
