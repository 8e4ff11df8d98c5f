"""`ciar-eval`: measurements from the command line. The only file here that reads argv and environment."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn, Protocol, cast

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliApp, CliSubCommand, SettingsConfigDict, get_subcommand

from evaluation.verbs.auroc import Auroc
from evaluation.verbs.bench import Bench
from evaluation.verbs.diffusion import Diffusion
from evaluation.verbs.features import Features
from evaluation.verbs.link import Link, LinkCheck
from evaluation.verbs.machine import DeviceSpeed, EngineSpeed, Memory
from evaluation.verbs.masked import Masked
from evaluation.verbs.method import Method
from evaluation.verbs.operations import Faults, Load, Replicas, Soak
from evaluation.verbs.quality import Quality
from evaluation.verbs.rehearse import Rehearse
from evaluation.verbs.replay import Record, Replay
from evaluation.verbs.scales import Scales
from evaluation.verbs.serving import Fuzz, Overhead
from evaluation.verbs.sheet import Sheet
from evaluation.verbs.study import All, Draw, Table
from shared.config import wrong_values
from shared.errors import CiarError


class Verb(Protocol):
    """What every verb is: flags, and this."""

    def run(self) -> None:
        """Do it. Raises CiarError."""


class EvalApp(BaseSettings):
    """Measure CIAR over the real wire. Example: ciar-eval bench --prompts 20 --out results/bench"""

    model_config = SettingsConfigDict(env_prefix="CIAR_EVAL_", cli_kebab_case=True, cli_prog_name="ciar-eval")
    all: CliSubCommand[All]
    table: CliSubCommand[Table]
    method: CliSubCommand[Method]
    plot: CliSubCommand[Draw]
    quality: CliSubCommand[Quality]
    auroc: CliSubCommand[Auroc]
    rehearse: CliSubCommand[Rehearse]
    bench: CliSubCommand[Bench]
    trace: CliSubCommand[Record]
    replay: CliSubCommand[Replay]
    sheet: CliSubCommand[Sheet]
    scales: CliSubCommand[Scales]
    diffusion: CliSubCommand[Diffusion]
    masked: CliSubCommand[Masked]
    link: CliSubCommand[Link]
    link_check: CliSubCommand[LinkCheck]
    engine: CliSubCommand[EngineSpeed]
    device: CliSubCommand[DeviceSpeed]
    memory: CliSubCommand[Memory]
    features: CliSubCommand[Features]
    fuzz: CliSubCommand[Fuzz]
    overhead: CliSubCommand[Overhead]
    faults: CliSubCommand[Faults]
    load: CliSubCommand[Load]
    soak: CliSubCommand[Soak]
    replicas: CliSubCommand[Replicas]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one measurement. Exit status: 0, 1 an error that says what to do, 2 a wrong flag, 130 and 143 where
    SIGINT or SIGTERM ended it. Servers and links that it started end with it.
    """
    try:
        verb = get_subcommand(CliApp.run(EvalApp, cli_args=list(sys.argv[1:] if argv is None else argv)))
    except ValidationError as error:
        print(f"error: {wrong_values(error.errors())}", file=sys.stderr)
        return 2
    try:
        with _unwound():
            cast(Verb, verb).run()
    except CiarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


@contextlib.contextmanager
def _unwound() -> Iterator[None]:
    """SIGTERM is an exit like any other: what holds processes gets to end them."""
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
