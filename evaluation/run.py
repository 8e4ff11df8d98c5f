"""Run rows over a real server in its own process. Knows nothing of tables.

Rows are interleaved prompt by prompt, so that a slow minute of the machine falls on all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import numpy as np

from device_client.link import CloudLink
from device_client.loop import Progress, Request, decode
from device_client.policy import Policy
from device_client.wish import request_for
from evaluation.network import LOOPBACK, Profile
from evaluation.policies import PUBLISHED, Row
from evaluation.records import Record
from shared.decoding.calibration import Calibration
from shared.errors import CiarError
from shared.models.zoo import DevicePackage

READY_S = 300.0  # compiling takes minutes; a server that cannot start says so at once
_LOOK_S = 0.02  # between two looks at what a program says
TRIED_SHARES = (0.08, 0.15, 0.22, 0.3, 0.4, 0.55)  # of the places that a threshold would have judged
PAPER_SPAN = 5  # tokens per span of the rows that compare gates
TUNING_SEED = 5_000  # images that settle a threshold are never measured
TUNING_IMAGES = 8  # fewer leave a row "at 30 %" anywhere from 26 to 41
ImageT = TypeVar("ImageT")


@contextlib.contextmanager
def cloud_server(model: str, *flags: str) -> Iterator[str]:
    """A `cloud-server` process on a free loopback port; yields its address and ends it by pid.

    Raises CiarError with the server's own words when it does not get ready.
    """
    command = ("cloud_server.cli", "--model", model, "--port", "0", *flags)
    with _program("cloud-server", command, r"serving .* on (\S+:\d+)") as address:
        yield address


@contextlib.contextmanager
def link_to(target: str, profile: Profile, seed: int = 0) -> Iterator[str]:
    """The address to reach `target` at through a link of its own process; the loopback link is none at all.

    Raises CiarError with the link's own words when it does not get ready.
    """
    if profile == LOOPBACK:
        yield target
        return
    command = ("evaluation.cli", "link", "--profile", profile.name, "--to", target, "--seed", str(seed))
    with _program("ciar-eval link", command, r" on (\S+:\d+)") as address:
        yield address


@contextlib.contextmanager
def _program(name: str, command: Sequence[str], ready: str) -> Iterator[str]:
    """What it says goes to a file: nobody reads along, and a full pipe would stop it."""
    words = [sys.executable, "-m", *command]
    with tempfile.NamedTemporaryFile("ab") as said:
        program = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT)
        try:
            yield _address(name, program, Path(said.name), ready)
        finally:
            program.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(15)
            program.kill()
            program.wait()


def _address(name: str, program: subprocess.Popen[bytes], said: Path, ready: str) -> str:
    heard, deadline_s = "", time.monotonic() + READY_S
    while time.monotonic() < deadline_s:
        ended = program.poll() is not None  # asked before the last words are read
        heard = said.read_text("utf-8", "replace")
        if found := re.search(ready, heard):
            return found[1]
        if ended:
            break
        time.sleep(_LOOK_S)
    raise CiarError(f"{name} did not get ready", heard[-2000:])


async def draw(package: DevicePackage, target: str, request: Request, policy: Policy) -> Progress:
    """One image, finished."""
    async with CloudLink(target) as link:
        async for progress in decode(package, request, policy, link):
            last = progress
    return last


async def watch(package: DevicePackage, target: str, request: Request, policy: Policy) -> list[Progress]:
    """One image, step by step."""
    async with CloudLink(target) as link:
        return [progress async for progress in decode(package, request, policy, link)]


@dataclass(frozen=True)
class Schedule:
    """Every row on every prompt, seeds counting up with the prompts; the first `warm_ups` prompts run
    twice."""

    rows: Sequence[Row]
    prompts: Sequence[str]
    warm_ups: int
    first_seed: int = 0

    def __iter__(self) -> Iterator[tuple[Row, str, int, bool]]:
        """(row, prompt, seed, counted)."""
        warm = [
            (prompt, seed, False)
            for seed, prompt in enumerate(self.prompts[: self.warm_ups], self.first_seed)
        ]
        counted = [(prompt, seed, True) for seed, prompt in enumerate(self.prompts, self.first_seed)]
        return ((row, *turn) for turn in warm + counted for row in self.rows)


def run_rows(package: DevicePackage, target: str, schedule: Schedule) -> Iterator[Record]:
    """Run everything against the server at `target`; records come as they are made."""
    for row, prompt, seed, counted in schedule:
        request = request_for(package, prompt, seed)
        last = asyncio.run(draw(package, target, request, row.policy(package.calibration)))
        if counted:
            yield Record(row.name, prompt, seed, last.tokens, last.counters)


def matched(package: DevicePackage, target: str, prompts: Sequence[str], gate: str, budget: float) -> Row:
    """The row of a gate whose threshold really gives `budget` cloud forwards per token: see `settled`."""

    def drawn(tau: float) -> list[Record]:
        schedule = Schedule((gate_row(gate, tau, gate),), tuning(prompts), 0, TUNING_SEED)
        return [*run_rows(package, target, schedule)]

    return gate_row(
        f"ciar, {gate}", settled(tried_thresholds(package.calibration, gate), drawn, budget), gate
    )


def gate_row(name: str, threshold: float, gate: str) -> Row:
    """The paper's system with one gate: spans of 5, a prefix, local tokens."""
    return Row(name, "ciar", {**PUBLISHED, "gate": gate, "threshold": threshold, "span": PAPER_SPAN})


def tried_thresholds(calibration: Calibration, gate: str) -> list[float]:
    """Thresholds of a gate to settle one between, those that ask least first."""
    table = calibration.table(gate)
    return sorted({table.asking(share) for share in TRIED_SHARES}, reverse=True)


def tuning(images: Sequence[ImageT]) -> Sequence[ImageT]:
    """Those images that a threshold is settled on: TUNING_IMAGES and more, where there are as many."""
    return images[:: max(1, len(images) // TUNING_IMAGES)]


def settled(tried: Sequence[float], drawn: Callable[[float], Sequence[Record]], budget: float) -> float:
    """The threshold that gives `budget` cloud forwards per token, among `tried`, those that ask least first.

    Calibrated call rates are teacher-forced; an image in which kept tokens stand in for the cloud's asks at
    another rate. So images are drawn: at the thresholds around the budget, found by halving, and tau is
    interpolated between these.
    """
    calls: dict[int, float] = {}
    low, high = 0, len(tried)
    while low < high:
        middle = (low + high) // 2
        calls[middle] = fmean(image.counters.call_rate for image in drawn(tried[middle]))
        low, high = (middle + 1, high) if calls[middle] < budget else (low, middle)
    known = sorted(calls)
    rates = np.maximum.accumulate([calls[place] for place in known])
    return float(np.interp(budget, rates, [tried[place] for place in known]))
