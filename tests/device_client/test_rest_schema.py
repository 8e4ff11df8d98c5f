"""The REST service against its own schema: requests that schemathesis makes of it, right and wrong ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from cloud_server.server import Settings, running
from device_client.draw import Upstream
from device_client.gateway import create_app
from shared.models.zoo import load_cloud, load_device_package
from tests.device_client.rig import serving

EXAMPLES = 30  # per operation and way of making them


@pytest.fixture(scope="module")
def address(tiny: Callable[[int], str]) -> Iterator[str]:
    """A device service with its cloud, on an event loop of its own: schemathesis waits for answers."""
    folder, found, stop = tiny(4), threading.Event(), asyncio.Event()
    loop, told = asyncio.new_event_loop(), list[str]()

    async def serve() -> None:
        package, cloud = load_device_package(folder, Path("nowhere")), load_cloud(folder, Path("nowhere"))
        async with (
            running(cloud, Settings(max_sessions=4)) as server,
            serving(create_app(package, Upstream(f"127.0.0.1:{server.port}"))) as url,
        ):
            told.append(url)
            found.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert found.wait(30)
    yield told[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(30)


def test_no_request_is_a_server_error_or_answered_off_the_schema(address: str) -> None:
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) >= 10
    for operation in operations:
        modes = GenerationMode if operation.body else (GenerationMode.POSITIVE,)
        for mode in modes:

            @hypothesis.settings(
                max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )  # fmt: skip
            @hypothesis.given(operation.as_strategy(generation_mode=mode))
            def strike(case: Case[Any]) -> None:
                # A schema cannot say which words a model knows or which settings exclude each other.
                case.call_and_validate(timeout=20, excluded_checks=[positive_data_acceptance])

            strike()
