"""`device-client`: draw one picture, or serve pictures over REST.

The only file of the device that reads argv and environment; what it learns from them is checked before the
network is touched. Knows nothing of models or gRPC.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import signal
import sys
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict, SettingsError
from rich.console import Console

from device_client import gateway, render, report
from device_client.draw import Upstream, record, steps
from device_client.loop import Progress
from device_client.wish import Plan, Wish, complaint, make_plan, release
from shared.errors import CiarError
from shared.models.zoo import DevicePackage, load_device_package

PROGRAM = "device-client"
DRAW_HELP = """Draw one picture: a small model works here and asks a cloud server where it is unsure.

examples:
  device-client --prompt "a cat" --server host:50051
  device-client --prompt "a red house" --seed 7 --mode exact --server host:50051 --out house.png
  device-client --prompt "a cat" --mode device-only
  device-client --prompt "a cat" --server host:50051 --map who.png --json
  device-client --prompt "a cat" --server host:50051 --mode exact --in-flight 4 --max-forwards 2
  device-client serve --server host:50051 --http-port 8080     (see device-client serve --help)

Every option can also come from the environment: CIAR_SERVER, CIAR_MODELS, CIAR_CLOUD_BUDGET, ...
What is unset comes from the model's calibration or from the mode."""
SERVE_HELP = """Serve pictures over REST: POST /generate, GET /livez /readyz /version /models /docs.

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
    server: str | None = Field(None, description="the cloud server, host:port")
    model: str = Field("emoji", description="name of a model, or its folder")
    models: Path = Field(Path("~/.cache/ciar/models"), description="folder of fetched models")
    deadline_s: float = Field(60.0, gt=0, allow_inf_nan=False, description="seconds to wait for one answer")
    retry_s: float = Field(30.0, ge=0, allow_inf_nan=False, description="seconds to look for a lost server")
    threads: int = Field(1, ge=1, description="threads of the model: 1, 2, ...")

    def package(self) -> DevicePackage:
        """The device side of the model. Raises ModelUnavailable."""
        torch.set_num_threads(self.threads)
        return load_device_package(self.model, self.models.expanduser())

    def upstream(self) -> Upstream:
        """Where the cloud is."""
        return Upstream(self.server, deadline_s=self.deadline_s, retry_s=self.retry_s)


class Draw(Options, Wish):
    """`device-client --prompt ...`."""

    model_config = SettingsConfigDict(cli_prog_name=PROGRAM, json_schema_extra={"description": DRAW_HELP})
    out: Path = Field(Path("image.png"), description="where the picture goes")
    map: Path | None = Field(None, description="where a map of who decided each token goes")
    as_json: bool = Field(False, validation_alias="json", description="print one JSON object only")
    quiet: bool = Field(False, description="print errors only")
    version: bool = Field(False, description="print the version")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.map == self.out:
            raise ValueError(f"--out and --map are both {str(self.out)!r}. give two names")
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


def main() -> int:
    """Exit status: 0 done, 1 failed, 2 misused, 130 interrupted."""
    args = sys.argv[1:]
    try:
        if "--version" in args:
            print(f"{PROGRAM} {release()}")
            return 0
        if args[:1] == ["serve"]:
            return _serve(_parse(Serve, args[1:]))
        return _draw(_parse(Draw, args))
    except Misuse as error:
        return _fail(f"error: {error}", 2)
    except CiarError as error:
        return _fail(f"error: {error}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status


def _serve(options: Serve) -> int:
    package = options.package()
    app = gateway.create_app(package, options.upstream())
    listening = gateway.listen(options.host, options.http_port)
    host = f"[{options.host}]" if ":" in options.host else options.host
    port = listening.getsockname()[1]
    cloud = options.server or "no cloud, device-only"
    print(f"{PROGRAM}: serving {package.name} at http://{host}:{port} ({cloud})", flush=True)
    # To be stopped is no failure. The service drains first, then raises the signal again.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gateway.serve(app, listening)
    return 0


def _draw(options: Draw) -> int:
    for path in filter(None, (options.out, options.map)):
        render.check_target(path)
    package = options.package()
    plan = make_plan(package, options)
    terminal = Console(stderr=True, quiet=options.quiet, highlight=False, markup=False, soft_wrap=True)
    for note in plan.notes:
        terminal.print(f"note: {note}")
    last = asyncio.run(_watch(package, plan, options.upstream(), terminal))
    _save(options, package, plan, last)
    _tell(options, plan, last)
    return 0


async def _watch(package: DevicePackage, plan: Plan, upstream: Upstream, terminal: Console) -> Progress:
    last = None
    with report.bar(terminal) as bar:
        task = bar.add_task("", total=package.model.base.config.image_tokens)
        async with aclosing(steps(package, plan, upstream)) as progress:
            async for last in progress:
                bar.update(task, completed=len(last.tokens), description=report.tally(last))
    assert last is not None and last.done, "the loop ends with a finished picture"
    return last


def _save(options: Draw, package: DevicePackage, plan: Plan, last: Progress) -> None:
    made = record(plan, last)
    render.save_png(options.out, render.to_image(package.vq, last.tokens), made)
    if options.map is not None:
        grid = package.model.base.config.grid
        render.save_png(options.map, render.source_map(last.sources, grid, last.scores), made)


def _tell(options: Draw, plan: Plan, last: Progress) -> None:
    """The result on stdout: for a program one JSON object, for a person where it lies and what it cost."""
    if options.as_json:
        where = {"out": str(options.out), "map": None if options.map is None else str(options.map)}
        spent = {"counters": last.counters.as_dict(), "trips": [asdict(trip) for trip in last.trips]}
        print(json.dumps({**where, "settings": plan.settings, **spent}))
        return
    screen = Console(quiet=options.quiet, highlight=False, markup=False, soft_wrap=True)
    screen.print(f"{options.out}: {plan.request.prompt!r}, seed {plan.request.seed}, mode {plan.policy.mode}")
    if options.map is not None:
        screen.print(f"{options.map}: who decided each token")
    screen.print(report.counters_table(last.counters))


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
    if any(item["type"] == "missing" for item in found.get("prompt", ())):
        return [f'--prompt is missing. try {PROGRAM} --prompt "a cat" --server host:50051']
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
