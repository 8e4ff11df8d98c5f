"""What the commands of the other generators share: `ciar-scales`, `ciar-masked`, `ciar-diffusion`. Knows no
generator."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

from PIL import Image
from pydantic import Field, ValidationError
from pydantic_settings import CliApp, SettingsError
from rich.console import Console

from device_client import render
from device_client.cli import Options
from device_client.cloud import Cloud
from device_client.link import CloudLink
from device_client.progress import Counters
from device_client.report import counters_table
from shared.config import wrong_values
from shared.errors import CiarError, CloudUnreachable, InvalidRequest, Overloaded, SessionLost


class Package(Protocol):
    """What the device has of a model."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def cloud_digest(self) -> str: ...


class Policy(Protocol):
    """How a picture is drawn; a frozen dataclass."""

    @property
    def mode(self) -> str: ...
    @property
    def use_cloud(self) -> bool: ...


StepT = TypeVar("StepT")
PolicyT = TypeVar("PolicyT")


class PictureOptions(Options):
    """The options of all of them."""

    prompt: str = Field(description="name or number of a class")
    seed: int = Field(0, ge=0, description="seed of the picture")
    out: Path = Field(Path("image.png"), description="where the picture goes")

    def draw(self) -> None:
        """Draw, write, print what it cost. Raises CiarError."""
        raise NotImplementedError

    def last_step(self, policy: Policy, steps: Callable[[Cloud | None], AsyncIterator[StepT]]) -> StepT:
        """Run a loop to its end, with a cloud where the policy uses one. Raises InvalidRequest without a
        server, and what the loop raises."""
        if policy.use_cloud and self.server is None:
            raise InvalidRequest(f"mode {policy.mode} needs a server", "", "--server host:50051")
        return asyncio.run(self._run(policy, steps))

    async def _run(self, policy: Policy, steps: Callable[[Cloud | None], AsyncIterator[StepT]]) -> StepT:
        upstream = self.upstream()
        async with CloudLink(
            upstream.target or "nowhere:1",
            deadline_s=upstream.deadline_s,
            retry_s=upstream.retry_s,
            identity=upstream.identity,
        ) as link:
            return [step async for step in steps(link if policy.use_cloud else None)][-1]

    def finish(
        self,
        image: Image.Image,
        package: Package,
        policy: Policy,
        counters: Counters,
        asked: Mapping[str, Any],
    ) -> None:
        """Write the picture with all that made it, `asked` included, and print what it cost."""
        settings = {
            "prompt": self.prompt, "seed": self.seed, "mode": policy.mode, "model": package.name,
            "device_digest": package.digest, "cloud_digest": package.cloud_digest,
            "policy": asdict(policy), **asked, "counters": counters.as_dict(),  # type: ignore[call-overload]
        }  # fmt: skip
        render.save_png(self.out, image, settings)
        Console().print(counters_table(counters))


def chosen(policies: Mapping[str, Callable[[], PolicyT]], mode: str) -> PolicyT:
    """The policy of a mode. Raises InvalidRequest for an unknown one."""
    if mode not in policies:
        raise InvalidRequest(f"mode {mode!r} is not allowed", f"allowed: {', '.join(policies)}")
    return policies[mode]()


def run_command(command: type[PictureOptions], argv: Sequence[str]) -> int:
    """Exit status: 0 done, 1 failed, 2 misused, 3 the cloud is away or full."""
    try:
        CliApp.run(command, cli_args=list(argv)).draw()
    except ValidationError as error:
        return _fail(wrong_values(error.errors()), 2)
    except SettingsError as error:
        return _fail(error, 2)
    except (CloudUnreachable, SessionLost, Overloaded) as error:
        return _fail(error, 3)
    except CiarError as error:
        return _fail(error, 1)
    return 0


def _fail(problem: object, status: int) -> int:
    sys.stderr.write(f"error: {problem}\n")
    return status
