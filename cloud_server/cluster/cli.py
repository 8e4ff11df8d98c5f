"""`ciar-ray`: many replicas behind one port, on Ray Serve in HAProxy mode, until a signal comes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict, SettingsError

from shared.config import wrong_values
from shared.errors import CiarError, InvalidRequest
from shared.models.zoo import find
from shared.tokens import read_tokens

PROGRAM = "ciar-ray"
SERVICER = "shared.wire.pb.ciar_pb2_grpc.add_CiarServiceServicer_to_server"
RAY_ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # Ray's own Python proxy costs 2 ms a frame, HAProxy 0.2 ms
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "10",  # an idle replica is kept so long when it stops
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # a busy machine does not start HAProxy in 5 s
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Flags(BaseSettings):
    """Serve the large model from many processes, on this machine or on a Ray cluster.

    Example: ciar-ray --model emoji --port 50051 --min-replicas 2 --max-replicas 8
    """

    model_config = SettingsConfigDict(env_prefix="CIAR_", cli_kebab_case=True, cli_prog_name=PROGRAM)

    model: str = Field("emoji", description="name of a model, or a folder that holds one, on every machine")
    models: Path = Field(Path("~/.cache/ciar/models"), description="folder of fetched model weights")
    port: int = Field(50051, ge=1, le=65535, description="TCP port of every machine; no encryption")
    http_port: int = Field(8000, ge=1, le=65535, description="Ray's own HTTP port on 127.0.0.1")
    ray: str | None = Field(None, description="address of a cluster, or auto; unset: one on this machine")
    min_replicas: int = Field(1, ge=1, description="replicas that always run")
    max_replicas: int = Field(4, ge=1, description="replicas under load")
    images: float = Field(4.0, gt=0, description="images at a time per replica that autoscaling aims at")
    max_sessions: int = Field(8, ge=1, le=1024, description="images at a time per replica, then OVERLOADED")
    token_file: Path | None = Field(None, description="let in only devices with a token of this file")
    threads: int = Field(1, ge=1, description="CPU threads, and CPUs that Ray sets aside, per replica")
    gpus: float = Field(0.0, ge=0, description="GPUs that Ray sets aside per replica")
    shutdown_timeout: float = Field(
        120.0, ge=0, description="seconds for images of a replica that is stopped"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Exit status: 0 stopped on request, 1 an error, 2 a wrong flag."""
    try:
        flags = CliApp.run(Flags, cli_args=list(sys.argv[1:] if argv is None else argv))
        _check(flags)
        run(flags)
    except ValidationError as error:
        print(f"{PROGRAM}: error: {wrong_values(error.errors())}", file=sys.stderr)
        return 2
    except SettingsError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except CiarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(flags: Flags) -> None:
    """Start everything, wait for a signal, stop everything. Raises CiarError without Ray."""
    tokens = read_tokens(flags.token_file, os.environ.get("CIAR_TOKEN"))
    serve, ray = _start(flags, tokens)
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    anybody = "" if tokens else ", and anybody may draw (--token-file, CIAR_TOKEN)"
    print(f"{PROGRAM}: warning: other machines reach this port unencrypted{anybody}", file=sys.stderr)
    print(f"{PROGRAM}: serving {flags.model} on port {flags.port}", flush=True)
    asked.wait()
    print(f"{PROGRAM}: stopping: running images have {flags.shutdown_timeout:g} s", flush=True)
    serve.shutdown()
    ray.shutdown()


def deployment(flags: Flags) -> dict[str, Any]:
    """How Ray runs and scales a replica: one open stream is one ongoing request.

    Over `max_ongoing_requests` HAProxy would let streams wait at the replica it picked; so Ray is told that
    there is no limit, and the replica itself refuses with a time to come again.
    """
    return {
        "name": "cloud",
        "max_ongoing_requests": 100 * flags.max_sessions,
        "graceful_shutdown_timeout_s": flags.shutdown_timeout,
        "ray_actor_options": {"num_cpus": flags.threads, "num_gpus": flags.gpus},
        "autoscaling_config": {
            "min_replicas": flags.min_replicas,
            "max_replicas": flags.max_replicas,
            "target_ongoing_requests": flags.images,
            "upscale_delay_s": 5.0,
            "downscale_delay_s": 120.0,
        },
    }


def _start(flags: Flags, tokens: tuple[str, ...]) -> tuple[Any, Any]:
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # Ray reads it when it is imported
    try:
        import ray
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException
    except ImportError as error:
        raise CiarError(f"{error.name} is not installed", "", 'pip install "ciar[ray]"') from None
    try:
        ray.init(address=flags.ray, include_dashboard=False, log_to_driver=False)
        _deploy(flags, serve, tokens)
    except (RayError, RayServeException, ConnectionError, RuntimeError, TimeoutError) as error:
        ray.shutdown()
        raise CiarError("Ray did not start", str(error)) from error
    return serve, ray


def _deploy(flags: Flags, serve: Any, tokens: tuple[str, ...]) -> None:  # noqa: ANN401 - Ray's module
    from ray.serve.config import HTTPOptions, gRPCOptions

    from cloud_server.cluster.replica import Replica
    from cloud_server.server import Settings

    grpc_options = gRPCOptions(port=flags.port, grpc_servicer_functions=[SERVICER])
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=flags.http_port), grpc_options=grpc_options)
    replicas = serve.deployment(**deployment(flags))(Replica)
    models = str(flags.models.expanduser())
    settings = Settings(max_sessions=flags.max_sessions, tokens=tokens)
    serve.run(replicas.bind(flags.model, models, flags.threads, settings), name="ciar")


def _check(flags: Flags) -> None:
    """Raise before Ray takes ten seconds to start."""
    if flags.min_replicas > flags.max_replicas:
        what = f"--min-replicas {flags.min_replicas} is above --max-replicas {flags.max_replicas}"
        raise InvalidRequest(what, "allowed: up to it")
    find(flags.model, flags.models.expanduser())


if __name__ == "__main__":
    sys.exit(main())
