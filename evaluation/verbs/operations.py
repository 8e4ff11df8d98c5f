"""`ciar-eval faults | load | soak | replicas`: whether a server can be trusted."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from pydantic_settings import CliImplicitFlag

from device_client.cloud import Request
from device_client.policy import policy_for
from evaluation import faults
from evaluation.policies import PROMPTS
from evaluation.processes import ServerProcess
from shared.errors import CiarError
from shared.models.zoo import load_device_package

PLACES = 4  # of the servers that faults are put to
PREFIX_RATE = 0.25  # long enough a prefix to be disturbed in


def row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |\n"


def head(cells: Sequence[str]) -> str:
    """The first two lines of a Markdown table."""
    return row(cells) + row(["---"] * len(cells))


def _say(text: str) -> None:
    """At once: rows take minutes, and a reader sees how far it is."""
    sys.stdout.write(text)
    sys.stdout.flush()


class Model(BaseModel):
    """Which model all of them serve and draw with."""

    model: str = Field("emoji", description="model name or folder")
    models: Path = Field(Path("~/.cache/ciar/models"), description="folder of fetched weights")
    short: CliImplicitFlag[bool] = Field(False, description="the short form, for continuous integration")

    def server(self, *flags: str) -> ServerProcess:
        """A server of the model, not yet started."""
        return ServerProcess(self.model, "--models", str(self.models.expanduser()), *flags)


class Faults(Model):
    """The fault table: what becomes of an image when something dies, freezes or is cut."""

    mode: str = Field("ciar", description="decode mode of the image")
    freeze_s: float = Field(6.0, description="how long what is stopped stays stopped", gt=0)
    deadline_s: float = Field(4.0, description="how long a device waits for an answer", gt=0)

    def run(self) -> None:
        """Print the table row by row. Raises CiarError if anything was lost, leaked or silently wrong."""
        torch.set_num_threads(1)
        bad = asyncio.run(self._table())
        if bad:
            raise CiarError(f"{bad} rows of the fault table do not hold", "see NO and leaks above")

    async def _table(self) -> int:
        bad = 0
        with self.server("--max-sessions", str(PLACES)) as server:
            scene = await self._scene(server)
            _say(head(faults.HEADER))
            async for outcome in faults.outcomes(scene, faults.SHORT if self.short else faults.FULL):
                _say(row(faults.line(outcome)))
                bad += not outcome.good
            free = await faults.places_free(scene, PLACES)
        _say(f"\nall {PLACES} places of the last server free: {'yes' if free else 'NO'}\n")
        return bad + (not free)

    async def _scene(self, server: ServerProcess) -> faults.Scene:
        package = load_device_package(self.model, self.models.expanduser())
        request = Request(PROMPTS[0], 0, package.calibration.warp)
        policy = policy_for(self.mode, package.calibration, prefix_rate=PREFIX_RATE)
        await server.ready()
        truth = await faults.image(package, request, policy, server.target)
        waits = (self.freeze_s, self.deadline_s)
        models = self.models.expanduser()
        return faults.Scene(self.model, models, package, request, policy, server, truth, *waits)
