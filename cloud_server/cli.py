"""`cloud-server`: flags and environment to a running server. Knows not what happens behind the port."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliImplicitFlag,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from shared import tracing
from shared.config import config_file, read_settings
from shared.errors import CiarError, InvalidRequest
from shared.logs import LogFormat, log_to_stderr
from shared.tokens import read_tokens

if TYPE_CHECKING:
    from cloud_server.server import Settings

PROGRAM = "cloud-server"
ABOUT = """Serve the large model. Devices draw images; this draws their first tokens and judges their drafts.

Every flag can also be set in the environment, --max-sessions as CIAR_MAX_SESSIONS, and in the TOML file of
--config, as max-sessions = 8. Flags win over the environment, the environment over the file. The token that
devices must bring is a secret: it comes from --token-file or CIAR_TOKEN."""
EXAMPLE = """example:
  cloud-server --model emoji --port 50051
  cloud-server --model ./my-model --host 0.0.0.0 --max-sessions 16 --metrics-port 9100 \\
      --tls-cert server.pem --tls-key server.key --token-file tokens.txt"""
_LARGEST_PORT = 65535
_MOST = 1024  # sessions; each takes two cache slots


class Flags(BaseSettings):
    """The command line, typed."""

    model_config = SettingsConfigDict(env_prefix="CIAR_", extra="ignore")
    from_file: ClassVar[dict[str, object]] = {}  # what --config says

    config: Path | None = Field(None, description="TOML file with flags")
    model: str = Field("emoji", description="name of a model, or a folder that holds one")
    port: int = Field(50051, description="TCP port to listen on; 0 takes any free one")
    host: str = Field("127.0.0.1", description="address to listen on")
    max_sessions: int | None = Field(
        None, ge=1, le=_MOST, description="images served at a time (default: as many as fit, 32 at most)"
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
        True, description="lay weights out for the CPU's kernels: faster checks, the same up to rounding"
    )
    max_queue: int = Field(16, ge=0, le=_MOST, description="orders that may wait for a place; 0: none")
    queue_timeout: float = Field(10.0, gt=0, description="seconds that an order waits for a place")
    max_per_caller: int = Field(0, ge=0, description="images at a time per token or address; 0: any")
    max_rate: int = Field(0, ge=0, description="images begun per minute per token or address; 0: any")
    max_prompt_chars: int = Field(1000, ge=1, le=1000, description="longest prompt")
    max_span: int = Field(64, ge=1, le=64, description="most tokens of a draft to judge")
    max_message_bytes: int = Field(1 << 20, ge=1 << 10, le=1 << 24, description="largest frame")
    idle_timeout: float = Field(120.0, gt=0, description="seconds to wait for a device's next frame")
    image_timeout: float = Field(1800.0, gt=0, description="seconds that one image may take")
    max_wait_ms: float = Field(0.0, ge=0, le=1000, description="how long a batch waits for company")
    engine_timeout: float = Field(60.0, gt=0, description="seconds after which a forward counts as dead")
    models: Path = Field(Path("~/.cache/ciar/models"), description="folder of fetched model weights")
    shutdown_timeout: float = Field(30.0, ge=0, description="seconds that running images may take to finish")
    fold_prefix: CliImplicitFlag[bool] = Field(
        False, description="keep a prompt as one cache entry: exact, faster for long captions of LlamaGen"
    )
    tls_cert: Path | None = Field(None, description="PEM certificate of this server: encrypts traffic")
    tls_key: Path | None = Field(None, description="PEM key of --tls-cert")
    tls_client_ca: Path | None = Field(None, description="let in only devices this PEM authority signed for")
    token_file: Path | None = Field(None, description="let in only devices with a token of this file")
    guard_health: CliImplicitFlag[bool] = Field(False, description="health checks need a token as well")
    metrics_port: int = Field(0, description="port of /livez /readyz /metrics /version; 0: none")
    metrics_host: str = Field("127.0.0.1", description="address of that page")
    acceptance_floor: float = Field(0.05, ge=0, le=1, description="alarm below this share of accepted tokens")
    acceptance_window: int = Field(200, ge=1, description="drafts that share is taken over")
    log_format: LogFormat = Field("text", description="text or json")
    threads: int = Field(
        1, ge=1, description="CPU threads of the model; more than the free cores slows it down"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags over CIAR_* variables over the file."""
        return init_settings, env_settings, InitSettingsSource(settings_cls, dict(cls.from_file))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit status: 0 stopped on request, 1 an error, 2 a command line without sense."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it has to say is said below, in a sentence
    words = sys.argv[1:] if argv is None else argv
    try:
        flags = parse(words)
        log_to_stderr(PROGRAM, flags.log_format)
        tracing.start(PROGRAM, os.environ)
        run(flags)
    except (ValidationError, SettingsError) as error:
        file = config_file(words, os.environ.get("CIAR_CONFIG"))
        also = f" (the values of {file} count as well)" if file else ""
        print(f"{PROGRAM}: error: {_explain(error)}{also}", file=sys.stderr)
        return 2
    except CiarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse(argv: Sequence[str]) -> Flags:
    """Flags over CIAR_* variables over the file of --config over defaults.

    Raises ValidationError, SettingsError, InvalidRequest, or SystemExit.
    """
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        PROGRAM, description=ABOUT, epilog=EXAMPLE, formatter_class=layout, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    file = config_file(argv, os.environ.get("CIAR_CONFIG"))
    found = {} if file is None else read_settings(file, Flags.model_fields.keys() - {"config"})
    kind = type("Flags", (Flags,), {"from_file": found, "__annotations__": {"from_file": ClassVar[object]}})
    source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
        kind, root_parser=parser, cli_kebab_case=True
    )
    return CliApp.run(kind, cli_args=list(argv), cli_settings_source=source)


def run(flags: Flags) -> None:
    """Load the model and serve it until a signal comes. Raises CiarError."""
    for name, port in (("--port", flags.port), ("--metrics-port", flags.metrics_port)):
        if not 0 <= port <= _LARGEST_PORT:
            raise InvalidRequest(f"{name} {port} is out of range", f"allowed: 0 to {_LARGEST_PORT}")
    # Here, not above: --help need not wait seconds for them, and gRPC reads its environment when imported.
    import torch

    from cloud_server.loaders import loader
    from cloud_server.server import serve
    from shared.models.zoo import family_of

    torch.set_num_threads(flags.threads)
    settings = settings_of(flags, os.environ.get("CIAR_TOKEN"))
    load = loader(family_of(flags.model, flags.models.expanduser()))
    cloud, sessions = load(flags)
    asyncio.run(serve(cloud, replace(settings, max_sessions=sessions)))


def settings_of(flags: Flags, token: str | None) -> Settings:
    """What the server is told, but for how many sessions fit. Raises InvalidRequest for files that do not
    work."""
    from cloud_server.scheduler import Pace
    from cloud_server.security import read_tls
    from cloud_server.server import Settings
    from cloud_server.service import Patience
    from cloud_server.telemetry import Alarm

    return Settings(
        host=flags.host,
        port=flags.port,
        max_sessions=flags.max_sessions or Settings.max_sessions,
        max_span=flags.max_span,
        fold_prefix=flags.fold_prefix,
        compiled=flags.compile,
        shutdown_timeout_s=flags.shutdown_timeout,
        metrics_port=flags.metrics_port,
        metrics_host=flags.metrics_host,
        max_message_bytes=flags.max_message_bytes,
        max_prompt_chars=flags.max_prompt_chars,
        max_queue=flags.max_queue,
        queue_s=flags.queue_timeout,
        per_caller=flags.max_per_caller,
        per_minute=flags.max_rate,
        tls=read_tls(flags.tls_cert, flags.tls_key, flags.tls_client_ca),
        tokens=read_tokens(flags.token_file, token),
        health_needs_token=flags.guard_health,
        version=_version(),
        patience=Patience(idle_s=flags.idle_timeout, image_s=flags.image_timeout),
        pace=Pace(flags.max_wait_ms / 1000, flags.engine_timeout),
        alarm=Alarm(flags.acceptance_floor, flags.acceptance_window),
    )


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
