"""What was measured, one JSON line an image, and a book of them that a stopped run goes on from. Knows
nothing of how images are drawn.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from device_client.progress import Counters
from shared.errors import InvalidRequest

GIT_S = 10.0
WARM_UPS = 3  # images of its row that came before a warm one, at least


@dataclass(frozen=True)
class Setting:
    """Under what an image was drawn. `engine` is eager or compiled, `threads` are those of the device."""

    model: str
    cloud_digest: str
    device_digest: str
    engine: str = "eager"
    threads: int = 1
    commit: str = ""
    machine: str = ""

    def draws(self, policy: Mapping[str, Any], warp: Mapping[str, Any]) -> str:
        """A short digest of all that decides what is drawn and how fast, but for machine and commit."""
        told = [dict(policy), dict(warp), self.cloud_digest, self.device_digest, self.engine, self.threads]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """One image by one row. `flags` holds the policy and the warp, `warm` whether WARM_UPS images of this row
    over this link had been drawn since the server's start."""

    row: str
    prompt: str
    seed: int
    tokens: tuple[int, ...]
    counters: Counters
    link: str = "loopback"
    warm: bool = True
    draws: str = ""
    flags: Mapping[str, Any] = field(default_factory=dict)
    setting: Setting | None = None

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What makes an image this one: drawn again it would be the same."""
        return self.draws, self.prompt, self.seed, self.link

    @property
    def pipelined(self) -> bool:
        """Whether several rounds may have been under way at a time: then computing and waiting overlap."""
        return int(self.flags.get("policy", {}).get("in_flight", 1)) > 1

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, with the derived counters; `record_of` inverts it."""
        return {**asdict(self), "counters": self.counters.as_dict()}


def record_of(line: Mapping[str, Any]) -> Record:
    """A record of its JSON form. Raises InvalidRequest naming the key that is wrong."""
    try:
        raw = {item.name: line["counters"][item.name] for item in fields(Counters)}
        known = {item.name: line[item.name] for item in fields(Record)}
        setting = known["setting"] and Setting(**known["setting"])
    except (KeyError, TypeError) as error:
        raise InvalidRequest(f"a record without {error}", "it was written by another version") from error
    changed = {"tokens": tuple(known["tokens"]), "counters": Counters(**raw), "setting": setting}
    return Record(**{**known, **changed})


class Book:
    """A file of records; what it holds is not drawn again.

    A last line that a killed run left unfinished is dropped. Raises InvalidRequest for a file that holds
    anything else than records.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._records = {(record.key, record.warm): record for record in self._read()}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        """All of them, in the order in which they were drawn."""
        return iter(self._records.values())

    def find(self, key: tuple[str, str, int, str], *, warm: bool) -> Record | None:
        """The record of an image; a cold one only where `warm` is not asked for."""
        found = self._records.get((key, True))
        return found or (None if warm else self._records.get((key, False)))

    def add(self, record: Record) -> None:
        """Write a record; it is on disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.as_dict()) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._records[record.key, record.warm] = record

    def _read(self) -> Iterator[Record]:
        if not self._path.exists():
            return
        text = self._path.read_text(encoding="utf-8")
        whole, _, rest = text.rpartition("\n")
        if rest:
            self._path.write_text(whole + "\n" if whole else "", encoding="utf-8")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                yield record_of(json.loads(line))
            except (json.JSONDecodeError, InvalidRequest) as error:
                where = f"{self._path}, line {number}"
                raise InvalidRequest(f"{where}: {error}", "name another folder") from error


def commit() -> str:
    """The commit of this program, with a plus where the tree differs from it; empty outside a repository."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return f"{head}+" if head and _git("status", "--porcelain", "--untracked-files=no") else head


def _git(*words: str) -> str:
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, timeout=GIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> str:
    """Processor, cores that may be used, torch, and the accelerator where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{_processor()}, {cores} cores, torch {torch.__version__}{accelerator}"


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    if told.is_file():
        for line in told.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
