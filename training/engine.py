"""Where a run computes: one CPU, one GPU, or many processes through Accelerate. Knows no models and no data.

One process needs no engine and nothing installed. More are started by `launch` on this machine, or by
torchrun on several; then Accelerate joins them, and the lesson is wrapped for DDP or sharded for FSDP.
A lesson is a module whose `forward` is the whole forward pass of a step: what is called through it is what
gets synchronised.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import is_torchelastic_launched
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.fsdp import fully_shard
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from shared.errors import CiarError, InvalidRequest
from shared.models.transformer import Block
from training.runs import RunFolder, SilentFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

DEVICES = ("cpu", "cuda")
STRATEGIES = ("ddp", "fsdp")
PRECISIONS = ("bf16", "fp32")
TURN_H = 6  # hours the others wait at most while one process draws images or evaluates
Value = TypeVar("Value", float, int, bool)


@dataclass(frozen=True)
class Place:
    """Where to compute. Not part of a run's settings: a run resumes anywhere.

    devices  processes on this machine, one GPU each where `device` is cuda
    workers  processes per device that compose scenes; 0: the training process does
    Raises InvalidRequest naming the offending value and the allowed ones.
    """

    device: str = "cpu"
    devices: int = 1
    strategy: str = "ddp"
    precision: str = "bf16"
    workers: int = 0

    def __post_init__(self) -> None:
        named = ((self.device, DEVICES), (self.strategy, STRATEGIES), (self.precision, PRECISIONS))
        for value, allowed in named:
            if value not in allowed:
                raise InvalidRequest(f"{value!r} is no place to compute", f"allowed: {', '.join(allowed)}")
        found = torch.cuda.device_count()
        if self.device == "cuda" and not 1 <= self.devices <= found:
            raise InvalidRequest(f"{self.devices} GPUs are not here", f"found: {found}")
        if self.devices < 1 or self.workers < 0:
            raise InvalidRequest(f"devices {self.devices}, workers {self.workers}", "allowed: from 1, from 0")


def launch(place: Place, work: Callable[..., None], *arguments: object) -> None:
    """`work(*arguments)` here, or in `place.devices` processes of this machine; both must be picklable.

    A process that torchrun started works for itself. Raises what a failed process said as CiarError.
    """
    if place.devices == 1 or is_torchelastic_launched():
        work(*arguments)
        return
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=place.devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        start_method="spawn",
    )
    try:
        elastic_launch(config, _work)(work, *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise CiarError(f"process {rank} of {place.devices} failed", str(failure.message)) from error


@record
def _work(work: Callable[..., None], *arguments: object) -> None:
    """In a process of its own: what goes wrong is written down for the process that started it."""
    work(*arguments)


class Engine:
    """This process among those of the run. Raises CiarError where Accelerate is needed and not installed."""

    def __init__(self, place: Place | None = None) -> None:
        self.place = place or Place()
        self._joined = _join(self.place) if is_torchelastic_launched() else None
        joined = self._joined
        self.device: torch.device = joined.device if joined else torch.device(self.place.device)
        self.rank: int = joined.process_index if joined else 0
        self.world: int = joined.num_processes if joined else 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def folder(self, path: Path) -> RunFolder:
        """The run folder, silent on every process but the first."""
        return RunFolder(path) if self.main else SilentFolder(path)

    @contextmanager
    def first_in_turn(self) -> Iterator[None]:
        """The first process goes through, then the others: what it wrote is there for them."""
        with self._joined.main_process_first() if self._joined else nullcontext():
            yield

    def share(self, batch: int) -> range:
        """Which rows of a batch are this process's. Raises InvalidRequest where they cannot be shared out."""
        if batch % self.world:
            why = f"allowed: multiples of {self.world}, the number of processes"
            raise InvalidRequest(f"a batch of {batch} cannot be shared out", why)
        return range(self.rank, batch, self.world)

    def wrap(self, lesson: nn.Module) -> nn.Module:
        """Move the lesson to its device and synchronise it; call it before optimisers are made.

        The parameters stay reachable through the model inside, under their own names.
        """
        lesson.to(self.device)
        if self._joined is None:
            return lesson
        if self.place.strategy == "ddp":
            wrapped: nn.Module = self._joined.prepare_model(lesson)
            return wrapped
        mesh = init_device_mesh(self.device.type, (self.world,))
        for part in lesson.modules():
            if isinstance(part, Block):
                fully_shard(part, mesh=mesh)
        fully_shard(lesson, mesh=mesh)  # in place
        return lesson

    @property
    def shards(self) -> bool:
        """Whether every process must use the same parameters in every step."""
        return self.world > 1 and self.place.strategy == "fsdp"

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 where the place says so; heads and losses stay outside of it."""
        enabled = self.place.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def here(self) -> AbstractContextManager[object]:
        """New tensors are made on this process's device."""
        return nullcontext() if self.device.type == "cpu" else self.device

    def mean(self, value: float) -> float:
        """The mean of a figure over all processes."""
        if self._joined is None:
            return value
        here: Tensor = self._joined.reduce(torch.tensor(value, device=self.device), "mean")
        return here.item()

    def agree(self, value: Value) -> Value:
        """The first process's value, on every process: what decides how long a run goes on."""
        if self._joined is None:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]  # type: ignore[no-any-return]

    def wait(self) -> None:
        """Until every process is here."""
        if self._joined is not None:
            self._joined.wait_for_everyone()

    def leave(self) -> None:
        """Wait for the others and part."""
        if self._joined is not None:
            self._joined.end_training()


def _join(place: Place) -> Accelerator:
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    except ImportError as error:
        what = "several processes need Accelerate"
        raise CiarError(what, "it is not installed", 'pip install "ciar[train]"') from error
    # Batches without an empty caption leave the unguided prefix unused, and distillation leaves phi.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=TURN_H))
    return Accelerator(cpu=place.device == "cpu", mixed_precision="no", kwargs_handlers=[unused, patient])
