"""`cloud-server`: flags and environment to a running server. Knows not what happens behind the port."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliImplicitFlag,
    CliSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from shared.errors import CiarError, InvalidRequest

if TYPE_CHECKING:
    from shared.models.zoo import CloudModel

PROGRAM = "cloud-server"
ABOUT = """Serve the large model. Devices draw images; this draws their first tokens and judges their drafts.

Every flag can also be set in the environment: --max-sessions is CIAR_MAX_SESSIONS. Flags win."""
EXAMPLE = """example:
  cloud-server --model emoji --port 50051
  cloud-server --model ./my-model --host 0.0.0.0 --max-sessions 16 --metrics-port 9100"""
_LARGEST_PORT = 65535


class Flags(BaseSettings):
    """The command line, typed."""

    model_config = SettingsConfigDict(env_prefix="CIAR_", extra="ignore")

    model: str = Field("emoji", description="name of a model, or a folder that holds one")
    port: int = Field(50051, description="TCP port to listen on; 0 takes any free one")
    host: str = Field("127.0.0.1", description="address to listen on; traffic is not encrypted")
    max_sessions: int | None = Field(
        None, ge=1, le=1024, description="images served at a time (default: as many as fit, 32 at most)"
    )
    memory_fraction: float = Field(
        0.8, gt=0, le=1, description="share of the free memory (of the GPU: its own) that may be used"
    )
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of weights and cache; probabilities are always fp32"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the model runs")
    compile: CliImplicitFlag[bool] = Field(
        False, description="compile the forward at the start; needs a C++ compiler, takes a minute or more"
    )
    pack_weights: CliImplicitFlag[bool] = Field(
        False, description="lay weights out for the CPU's kernels: faster checks, the same up to rounding"
    )
    models: Path = Field(Path("~/.cache/ciar/models"), description="folder of fetched model weights")
    shutdown_timeout: float = Field(30.0, ge=0, description="seconds that running images may take to finish")
    fold_prefix: CliImplicitFlag[bool] = Field(
        False, description="keep a prompt as one cache entry: exact, faster for long captions of LlamaGen"
    )
    metrics_port: int = Field(0, description="port of the Prometheus page on 127.0.0.1; 0: none")
    threads: int = Field(
        1, ge=1, description="CPU threads of the model; more than the free cores slows it down"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit status: 0 stopped on request, 1 an error, 2 a command line without sense."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it has to say is said below, in a sentence
    try:
        flags = parse(sys.argv[1:] if argv is None else argv)
        logging.basicConfig(level=logging.INFO, format=f"{PROGRAM}: %(message)s", stream=sys.stderr)
        run(flags)
    except (ValidationError, SettingsError) as error:
        print(f"{PROGRAM}: error: {_explain(error)}", file=sys.stderr)
        return 2
    except CiarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse(argv: Sequence[str]) -> Flags:
    """Flags over CIAR_* variables over defaults. Raises ValidationError, SettingsError, or SystemExit."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        PROGRAM, description=ABOUT, epilog=EXAMPLE, formatter_class=layout, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
        Flags, root_parser=parser, cli_kebab_case=True
    )
    return CliApp.run(Flags, cli_args=list(argv), cli_settings_source=source)


def run(flags: Flags) -> None:
    """Load the model and serve it until a signal comes. Raises CiarError."""
    for name, port in (("--port", flags.port), ("--metrics-port", flags.metrics_port)):
        if not 0 <= port <= _LARGEST_PORT:
            raise InvalidRequest(f"{name} {port} is out of range", f"allowed: 0 to {_LARGEST_PORT}")
    # Here, not above: --help need not wait seconds for them, and gRPC reads its environment when imported.
    import torch

    from cloud_server.server import Settings, serve

    torch.set_num_threads(flags.threads)
    cloud, sessions = _load(flags)
    settings = Settings(
        host=flags.host,
        port=flags.port,
        max_sessions=sessions,
        fold_prefix=flags.fold_prefix,
        compiled=flags.compile,
        shutdown_timeout_s=flags.shutdown_timeout,
        metrics_port=flags.metrics_port,
    )
    asyncio.run(serve(cloud, settings))


def _load(flags: Flags) -> tuple[CloudModel, int]:
    """The model as the flags want it, and how many sessions it can serve; refused before it is read."""
    from cloud_server import memory
    from cloud_server.packed import pack
    from shared.models.zoo import find, load_cloud

    if flags.compile and flags.pack_weights:
        why = "compiled code reads weights in their plain layout"
        raise InvalidRequest("--compile and --pack-weights exclude each other", why, "leave one of them out")
    models, dtype = flags.models.expanduser(), memory.DTYPES[flags.dtype]
    wants = memory.need(find(flags.model, models), dtype, flags.device)
    usable = memory.usable_bytes(flags.memory_fraction, flags.device)
    sessions = memory.sessions(wants, usable, flags.max_sessions)
    logging.getLogger(__name__).info("%s", memory.plan_line(wants, usable, sessions))
    cloud = load_cloud(flags.model, models, dtype, flags.device)
    if flags.pack_weights:
        pack(cloud.model.gpt)
    return cloud, sessions


def _version() -> str:
    try:
        return version("ciar")
    except PackageNotFoundError:
        return "of a source tree that is not installed"


def _explain(error: ValidationError | SettingsError) -> str:
    """One line per wrong value, in the words of the command line."""
    if isinstance(error, SettingsError):
        return str(error)
    return "; ".join(
        f"--{str(item['loc'][0]).replace('_', '-')} (or CIAR_{str(item['loc'][0]).upper()}) "
        f"{item['input']!r}: {item['msg']}"
        for item in error.errors()
    )


if __name__ == "__main__":
    sys.exit(main())
