"""How many images fit: bytes of weights, bytes per session, and the memory that may be used. Loads nothing.

Sizes follow from shapes, so that what cannot fit is refused before anything is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from cloud_server.engine import LONG_JOB, ROWS
from shared.config import TransformerConfig, from_dict
from shared.errors import CiarError, InvalidRequest
from shared.models.checkpoint import WEIGHTS, read_config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_SESSIONS = 32  # without --max-sessions: more images at a time make each of them wait too long
# Copies of the judged logits, fp32, that guidance, filters and noise hold at a time.
_LOGIT_COPIES = 4
_ENCODER = ("encoder.", "shared.")  # what a text encoder keeps of a T5
_MIB = 2**20


@dataclass(frozen=True)
class Need:
    """Bytes: of the weights, of the text encoder (0 where it is elsewhere or there is none), and of one
    session: its cache rows and its share of the largest batch."""

    weights: int
    encoder: int
    cache: int
    work: int

    @property
    def session(self) -> int:
        """Bytes per session."""
        return self.cache + self.work

    def __str__(self) -> str:
        encoder = f", text encoder {_mib(self.encoder)}" if self.encoder else ""
        parts = f"{_mib(self.cache)} of cache and {_mib(self.work)} of work"
        return f"weights {_mib(self.weights)}{encoder}, {_mib(self.session)} per session ({parts})"


def session_need(config: TransformerConfig, dtype: torch.dtype) -> tuple[int, int]:
    """(cache bytes, working bytes) of one session with guidance."""
    entry = 2 * config.kv_heads * config.head_dim * dtype.itemsize
    cache = ROWS * config.n_layer * config.positions * entry
    tokens = LONG_JOB + 1
    wide = max(2 * config.ffn_hidden, (config.n_head + 2 * config.kv_heads) * config.head_dim)
    hidden = ROWS * tokens * (wide + 2 * config.dim) * 4
    # On a CPU attention reads the visible keys and values of one layer in fp32.
    visible = ROWS * config.positions * 2 * config.kv_heads * config.head_dim * 4
    return cache, ROWS * tokens * config.vocab_size * 4 * _LOGIT_COPIES + hidden + visible


def need(folder: Path, dtype: torch.dtype, device: str) -> Need:
    """What serving the model folder takes on `device`. Text encoders stay in the CPU's memory, in fp32.

    Raises ModelUnavailable where the folder holds no cloud.
    """
    config = from_dict(TransformerConfig, read_config(folder / "cloud", "cloud")["transformer"])
    weights = dtype.itemsize * sum(prod(shape) for _, shape in shapes(folder / "cloud" / WEIGHTS))
    encoder = _encoder_bytes(folder / "t5") if device == "cpu" else 0
    return Need(weights, encoder, *session_need(config, dtype))


def sessions(wants: Need, usable: int, asked: int | None) -> int:
    """How many sessions to serve within `usable` bytes: as many as asked, or as many as fit, 32 at most.

    Raises CiarError, with all the numbers, where not even one fits, or fewer than asked.
    """
    room = (usable - wants.weights - wants.encoder) // wants.session
    if room < (asked or 1):
        images = f"{asked} sessions" if asked else "one session"
        total = wants.weights + wants.encoder + (asked or 1) * wants.session
        what = f"{images} would need {_mib(total)}, and {_mib(usable)} may be used"
        fitting = f"--max-sessions {room} would fit" if room > 0 else "a narrower --dtype, or more memory"
        raise CiarError(what, str(wants), f"{fitting}; --memory-fraction sets the share that may be used")
    return asked or min(room, MOST_SESSIONS)


def plan_line(wants: Need, usable: int, served: int) -> str:
    """What the operator is told before the weights are read."""
    most = (usable - wants.weights - wants.encoder) // wants.session
    return f"{wants}; {_mib(usable)} may be used: room for {most} sessions, serving {served}"


def usable_bytes(fraction: float, device: str) -> int:
    """The share of the device's free memory that may be used. Raises InvalidRequest for a device that is not
    there."""
    if device == "cpu":
        return int(fraction * free_memory())
    if not torch.cuda.is_available():
        why = "this torch finds no CUDA device"
        raise InvalidRequest(f"--device {device} is not there", why, "allowed here: cpu")
    return int(fraction * torch.cuda.mem_get_info()[0])


def free_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes this process may still take: what the machine has available, or less where a control group limits
    it. Raises InvalidRequest on a system that does not tell."""
    found = [*_available(proc / "meminfo"), *_left_in_groups(proc / "self" / "cgroup", cgroups)]
    if not found:
        raise InvalidRequest("this system does not tell its free memory", f"there is no {proc / 'meminfo'}")
    return max(min(found), 0)


def _available(meminfo: Path) -> Iterator[int]:
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            yield int(lines["MemAvailable"].split()[0]) * 1024


def _left_in_groups(own: Path, root: Path) -> Iterator[int]:
    """Limit minus use of every control group above this process; file cache that can be dropped is free."""
    if not own.is_file():
        return
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        v1 = "memory" in controllers.split(",")
        if not v1 and controllers:
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if v1 else ("memory.max", "memory.current")
        top = root / "memory" if v1 else root
        below = top / path.strip().lstrip("/")
        for group in (below, *below.parents):
            if not group.is_relative_to(top):
                break
            limit, used = (_number(group / name) for name in names)
            if limit is not None and used is not None:
                yield limit - used + _droppable(group / "memory.stat")


def _number(file: Path) -> int | None:
    """The number in a control file; None for "max" and for a file that is not there."""
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdigit() else None


def _droppable(stat: Path) -> int:
    lines = stat.read_text().splitlines() if stat.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _encoder_bytes(folder: Path) -> int:
    """The encoder of a T5 in fp32; about half of the files where their headers tell nothing."""
    tables = sorted(folder.glob("*.safetensors"))
    if tables:
        named = (pair for file in tables for pair in shapes(file))
        return 4 * sum(prod(shape) for name, shape in named if name.startswith(_ENCODER))
    return sum(file.stat().st_size for file in folder.glob("*.bin")) // 2


def shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes in a safetensors file, from its header: 8 bytes of length, then JSON."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    yield from ((name, entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _mib(size: int) -> str:
    return f"{size / _MIB:,.0f} MiB" if size >= 10 * _MIB else f"{size / _MIB:.2f} MiB"
