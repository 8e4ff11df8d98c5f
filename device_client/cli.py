"""`device-client`: draw one picture, or serve pictures over REST.

The only file of the device that reads argv and environment; what it learns from them is checked before the
network is touched. Knows nothing of models or gRPC.
"""

from __future__ import annotations

import difflib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict, SettingsError

from device_client import completion, gateway, render
from device_client.draw import Upstream
from device_client.identity import check_pair, read_identity
from device_client.policy import MODES
from device_client.terminal import Order, Terminal
from device_client.wish import Wish, complaint, make_plan, release
from shared import tracing
from shared.decoding.acceptance import RULES
from shared.decoding.gates import GATES
from shared.errors import CiarError, CloudUnreachable, Overloaded, Refused, SessionLost
from shared.logs import LogFormat, log_to_stderr
from shared.models.zoo import DevicePackage, load_device_package
from shared.threads import use_threads
from shared.tokens import read_tokens

PROGRAM = "device-client"
DRAW_HELP = """Draw one picture: a small model works here and asks a cloud server where it is unsure.

examples:
  device-client --prompt "a cat" --server host:50051
  device-client --prompt "a red house" --seed 7 --mode exact --server host:50051 --out house.png
  device-client --prompt "a cat" --mode device-only
  device-client --prompt "a cat" --server host:50051 --map who.png --json
  device-client --prompt "a cat" --server host:50051 --mode exact --in-flight 4 --max-forwards 2
  device-client --prompt "a cat" --server host:50051 --watch --compare both.png
  device-client --prompts prompts.txt --server host:50051 --out cats.png     (cats-001.png, cats-002.png, ...)
  device-client serve --server host:50051 --http-port 8080     (see device-client serve --help)
  source <(device-client completion bash)     (or zsh; fish: device-client completion fish | source)

exit status: 0 done, 1 impossible or failed, 2 misused, 3 the cloud is away or full, 130 interrupted.
Every option can also come from the environment: CIAR_SERVER, CIAR_MODELS, CIAR_CLOUD_BUDGET, ...
What is unset comes from the model's calibration or from the mode."""
SERVE_HELP = """Serve a page at / and pictures over REST: POST /generate, and POST /v1/images/generations as
OpenAI's clients send it; GET /jobs/ID /livez /readyz /version /models /docs.

examples:
  device-client serve --server host:50051 --http-port 8080
  curl -s localhost:8080/generate -H 'content-type: application/json' -H 'accept: image/png' \\
       -d '{"prompt": "a cat", "seed": 7}' -o cat.png"""
OptionsT = TypeVar("OptionsT", bound="Options")


class Misuse(Exception):
    """The command line cannot be understood; the message says what would be."""


class Options(BaseSettings):
    """What both commands take."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="CIAR_",
        env_prefix_target="all",
        cli_parse_none_str="unset",
        cli_kebab_case=True,
        cli_implicit_flags="toggle",
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )
    server: str | None = Field(None, description="the cloud server, host:port; or several: any will do")
    model: str = Field("emoji", description="name of a model, or its folder")
    models: Path = Field(Path("~/.cache/ciar/models"), description="folder of fetched models")
    deadline_s: float = Field(60.0, gt=0, allow_inf_nan=False, description="seconds to wait for one answer")
    retry_s: float = Field(30.0, ge=0, allow_inf_nan=False, description="seconds to look for a lost server")
    threads: int = Field(1, ge=1, description="threads of the model: 1, 2, ...")
    tls: bool = Field(False, description="encrypt, and believe whom the system believes")
    tls_ca: Path | None = Field(None, description="encrypt, and believe this PEM authority alone")
    tls_cert: Path | None = Field(None, description="PEM certificate of this device, with --tls-key")
    tls_key: Path | None = Field(None, description="PEM key of --tls-cert")
    token_file: Path | None = Field(None, description="file with the server's token; or set CIAR_TOKEN")
    log_format: LogFormat = Field("text", description="text: warnings; json: all there is, one object a line")

    def package(self) -> DevicePackage:
        """The device side of the model. Raises ModelUnavailable."""
        use_threads(self.threads)
        return load_device_package(self.model, self.models.expanduser())

    def upstream(self) -> Upstream:
        """Where the cloud is."""
        log_to_stderr(PROGRAM, form := self.log_format, logging.INFO if form == "json" else logging.WARNING)
        tracing.start(PROGRAM, os.environ)
        own, token = (self.tls_cert, self.tls_key), os.environ.get("CIAR_TOKEN")
        identity = read_identity(
            tls=self.tls, ca=self.tls_ca, cert=own[0], key=own[1], token_file=self.token_file, variable=token
        )
        return Upstream(self.server, deadline_s=self.deadline_s, retry_s=self.retry_s, identity=identity)


class Draw(Options, Wish):
    """`device-client --prompt ...`."""

    model_config = SettingsConfigDict(cli_prog_name=PROGRAM, json_schema_extra={"description": DRAW_HELP})
    prompt: str = Field(
        "", description='what to draw, such as "a cat"; the seed chooses a style it leaves open'
    )
    out: Path = Field(Path("image.png"), description="where the picture goes")
    map: Path | None = Field(None, description="where a map of who decided each token goes")
    compare: Path | None = Field(None, description="where it goes beside what the cloud alone draws")
    prompts: Path | None = Field(None, description="a file with a prompt per line, instead of --prompt")
    watch: bool = Field(False, description="show the picture in the terminal as it grows")
    as_json: bool = Field(False, validation_alias="json", description="print one JSON object only")
    quiet: bool = Field(False, description="print errors only")
    version: bool = Field(False, description="print the version")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if ("prompt" in self.model_fields_set) == (self.prompts is not None):
            what = "--prompt and --prompts exclude each other" if self.prompts else "--prompt is missing"
            raise ValueError(f'{what}. try {PROGRAM} --prompt "a cat" --server host:50051')
        files = {"--out": self.out, "--map": self.map, "--compare": self.compare}
        for (one, path), (other, same) in combinations(files.items(), 2):
            if path is not None and path == same:
                raise ValueError(f"{one} and {other} are both {str(path)!r}. give two names")
        if self.server is None and self.compare is not None:
            raise ValueError("--compare needs a server: it shows what the cloud alone draws")
        if self.server is None and self.mode != "device-only":
            raise ValueError(
                f'mode {self.mode} needs a server. try {PROGRAM} --prompt "a cat" --server host:50051, '
                "or --mode device-only"
            )
        return self


class Serve(Options):
    """`device-client serve ...`."""

    model_config = SettingsConfigDict(
        cli_prog_name=f"{PROGRAM} serve", json_schema_extra={"description": SERVE_HELP}
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    http_port: int = Field(8080, ge=0, le=65535, description="port: 0 to 65535, 0 takes a free one")
    http_tls_cert: Path | None = Field(None, description="PEM certificate, with --http-tls-key")
    http_tls_key: Path | None = Field(None, description="PEM key of --http-tls-cert")
    http_token_file: Path | None = Field(None, description="file with callers' tokens, or CIAR_HTTP_TOKEN")


def main() -> int:
    """Exit status: 0 done, 1 failed, 2 misused, 3 the cloud is away or full, 130 interrupted."""
    args = sys.argv[1:]
    try:
        if "--version" in args:
            print(f"{PROGRAM} {release()}")
            return 0
        if args[:1] == ["completion"]:
            return _completion(args[1:])
        if args[:1] == ["serve"]:
            return _serve(_parse(Serve, args[1:]))
        return _draw(_parse(Draw, args))
    except Misuse as error:
        return _fail(f"error: {error}", 2)
    except Refused as error:  # no repetition helps
        return _fail(f"error: {error}", 1)
    except (CloudUnreachable, SessionLost, Overloaded) as error:
        return _fail(f"error: {error}", 3)
    except CiarError as error:
        return _fail(f"error: {error}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status


def _serve(options: Serve) -> int:
    pair = options.http_tls_cert, options.http_tls_key
    check_pair(*pair, "--http-tls-cert", "--http-tls-key")
    tokens = read_tokens(options.http_token_file, os.environ.get("CIAR_HTTP_TOKEN"), "--http-token-file")
    package = options.package()
    app = gateway.create_app(package, options.upstream(), tokens)
    listening = gateway.listen(options.host, options.http_port)
    host, port = f"[{options.host}]" if ":" in options.host else options.host, listening.getsockname()[1]
    cloud = options.server or "no cloud, device-only"
    print(f"{PROGRAM}: serving {package.name} at http{'s' * any(pair)}://{host}:{port} ({cloud})", flush=True)
    # To be stopped is no failure. The service drains first, then raises the signal again.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gateway.serve(app, listening, *pair)
    return 0


def _draw(options: Draw) -> int:
    orders = list(_orders(options))
    for path in (path for order in orders for path in order.files):
        render.check_target(path)
    package = options.package()
    for order in orders:  # whatever is impossible is said before the first picture is drawn
        make_plan(package, order.wish)
    terminal = Terminal(
        package, options.upstream(), as_json=options.as_json, quiet=options.quiet, watch=options.watch
    )
    for order in orders:
        terminal.draw(order)
    return 0


def _orders(options: Draw) -> Iterator[Order]:
    order = Order(options, options.out, options.map, options.compare)
    if options.prompts is None:
        yield order
        return
    try:
        lines = [line.strip() for line in options.prompts.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"--prompts {str(options.prompts)!r} cannot be read: {error}") from error
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise Misuse(f"--prompts {str(options.prompts)!r} holds no prompt: one per line, # begins a comment")
    for number, prompt in enumerate(prompts, 1):
        yield order.numbered(options.model_copy(update={"prompt": prompt}), number)


def _completion(shells: list[str]) -> int:
    shell = shells[0] if len(shells) == 1 else " ".join(shells)
    commands = {"": _flags(Draw), "serve": _flags(Serve), "completion": []}
    print(completion.script(shell, PROGRAM, commands), end="")
    return 0


def _flags(kind: type[Options]) -> list[completion.Flag]:
    values: dict[str, Sequence[str]] = {"gate": list(GATES), "acceptance": list(RULES), "mode": MODES}
    flags = [completion.Flag("--help", "show the options", switch=True)]
    for name, field in kind.model_fields.items():
        flags.append(
            completion.Flag(
                _flag(name.removeprefix("as_")),
                field.description or "",
                values=values.get(name, ()),
                file=name == "model" or "Path" in str(field.annotation),
                switch=field.annotation is bool,
            )
        )
    return flags


def _parse(kind: type[OptionsT], args: list[str]) -> OptionsT:
    """Flags over environment over defaults. Raises Misuse naming the value and what is allowed."""
    try:
        return CliApp.run(kind, cli_args=args, cli_exit_on_error=False)
    except ValidationError as error:
        raise Misuse("\nerror: ".join(_complaints(kind, args, error))) from None
    except SettingsError as error:
        raise Misuse(_advice(kind, str(error).removeprefix("error parsing CLI: "))) from None


def _complaints(kind: type[Options], args: list[str], error: ValidationError) -> list[str]:
    """One line per field: its name as the caller wrote it, the value, what was expected."""
    found: dict[str, list[Any]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(str(item["loc"][0]) if item["loc"] else "", []).append(item)
    return [_complaint(kind, args, name, items) for name, items in found.items()]


def _complaint(kind: type[Options], args: list[str], name: str, items: list[Any]) -> str:
    if not name:
        return complaint(items[0])
    flag = _flag(name)
    written = any(arg == flag or arg.startswith(f"{flag}=") for arg in args)
    field = kind.model_fields.get(name) or kind.model_fields[f"as_{name}"]
    origin = flag if written else f"CIAR_{name.upper()}"
    return f"{origin} {complaint(items[0])}. {flag}: {field.description}"


def _advice(kind: type[Options], problem: str) -> str:
    """argparse's own words, with the flag that may have been meant."""
    flags = [_flag(name.removeprefix("as_")) for name in kind.model_fields]
    unknown = [word for word in problem.split() if word.startswith("--") and word.rstrip(":") not in flags]
    near = difflib.get_close_matches(unknown[0], flags, 1) if unknown else []
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{problem}. {hint}see {kind.model_config.get('cli_prog_name')} --help"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


if __name__ == "__main__":
    sys.exit(main())
