"""The import law: who may import whom, and who may touch the network, the event loop and the environment."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "shared": {"shared"},
    "cloud_server": {"cloud_server", "shared"},
    "device_client": {"device_client", "shared"},
    "training": {"training", "shared"},
    "evaluation": {"evaluation", "cloud_server", "device_client", "training", "shared"},
}
PB = "shared/wire/pb/"
CALLERS = (
    *(f"cloud_server/{name}.py" for name in ("server", "service", "security")),
    *(f"device_client/{name}.py" for name in ("link", "replicas")),
)
FUZZ = "evaluation/fuzz.py"  # sends bytes that are no frames
REPLICA = "cloud_server/cluster/replica.py"  # the service once more, on streams that are Ray's
# name -> the files (or folders) that may name it; folders end with "/"
ONLY_IN = {
    "grpc": (*CALLERS, FUZZ, PB),
    "grpc_health": ("cloud_server/server.py",),
    "grpc_reflection": ("cloud_server/server.py",),
    "google.protobuf": ("shared/wire/", PB),
    "shared.wire.pb": (*CALLERS, REPLICA, "shared/wire/"),
    "ray": ("cloud_server/cluster/cli.py",),
    "opentelemetry": ("shared/tracing.py",),
    "asyncio": (
        *(f"cloud_server/{name}.py" for name in ("server", "service", "admission", "scheduler", "cli")),
        REPLICA,
        "device_client/",
        "evaluation/",
    ),
    **dict.fromkeys(("argparse", "sys.argv", "os.environ", "os.getenv", "os.putenv"), ("cli.py",)),
}


def names(source: str) -> Iterator[str]:
    """Every dotted name the source imports or reaches through a module, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def violations(path: str, source: str) -> list[str]:
    """What the law has against this source, were it the file at `path` (relative to the repository)."""
    room = path.split("/")[0]
    found = []
    for name in names(source):
        first = name.split(".")[0]
        if first == "":
            found.append(f"{path}: relative import {name}")
        elif first in MAY_IMPORT and first not in MAY_IMPORT[room]:
            found.append(f"{path}: {room} may not import {name}")
        elif path.startswith("shared/decoding/") and f"{name}.".startswith("shared.models."):
            found.append(f"{path}: decoding may not import {name}")
        for guarded, places in ONLY_IN.items():
            if f"{name}.".startswith(f"{guarded}.") and not any(_is_in(path, place) for place in places):
                found.append(f"{path}: only {', '.join(places)} may name {guarded}")
    return found


def _is_in(path: str, place: str) -> bool:
    return path.startswith(place) if place.endswith("/") else path == place or path.endswith(f"/{place}")


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_the_rooms_keep_the_law(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    found = [v for file in files for v in violations(file.relative_to(ROOT).as_posix(), file.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cloud_server/engine.py", "from device_client.loop import decode"),
        ("device_client/loop.py", "def f():\n    import cloud_server.engine"),
        ("shared/messages.py", "import training"),
        ("training/base.py", "from evaluation import metrics"),
        ("shared/config.py", "from . import errors"),
        ("shared/decoding/gates.py", "from shared.models.rope import rotate"),
        ("shared/decoding/gates.py", "from shared import models"),
        ("device_client/loop.py", "from grpc import aio"),
        ("cloud_server/telemetry.py", "import grpc.aio"),
        ("cloud_server/service.py", "from grpc_health.v1 import health"),
        ("cloud_server/engine.py", "from shared.wire.pb import ciar_pb2"),
        ("cloud_server/engine.py", "import asyncio"),
        ("cloud_server/cluster/replica.py", "from ray import serve"),
        ("cloud_server/session.py", "from asyncio import Queue"),
        ("cloud_server/service.py", "from opentelemetry import trace"),
        ("shared/wire/codec.py", "import asyncio"),
        ("cloud_server/server.py", "import os\nport = os.environ['PORT']"),
        ("evaluation/run.py", "from sys import argv"),
        ("training/data.py", "import argparse"),
    ],
)
def test_the_law_can_be_broken(path: str, source: str) -> None:
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cloud_server/scheduler.py", "import asyncio\nfrom shared.messages import Draft"),
        ("cloud_server/server.py", "import grpc\nfrom grpc_health.v1 import health"),
        ("device_client/cli.py", "import argparse, os\nhome = os.environ.get('HOME')"),
        ("evaluation/run.py", "import asyncio\nimport cloud_server.server, device_client.loop"),
        ("shared/wire/codec.py", "from shared.wire.pb import ciar_pb2 as pb"),
        ("training/data.py", "import os.path\nfrom shared.models import vq"),
    ],
)
def test_the_law_allows_what_it_should(path: str, source: str) -> None:
    assert violations(path, source) == []
