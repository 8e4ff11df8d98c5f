"""`ciar-eval faults | load | soak | replicas`: whether a server can be trusted."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, Field
from pydantic_settings import CliImplicitFlag

from device_client.cloud import Request
from device_client.policy import policy_for
from device_client.wish import request_for
from evaluation import faults, load, replicas, soak
from evaluation.policies import PROMPTS
from evaluation.processes import ServerProcess
from evaluation.ray_front import ray_front
from evaluation.scripted import Script, record_all
from shared.errors import CiarError, InvalidRequest
from shared.models.zoo import DevicePackage, load_device_package

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

    def package(self) -> DevicePackage:
        """The device side of the model, on one thread."""
        torch.set_num_threads(1)
        return load_device_package(self.model, self.models.expanduser())

    async def recorded(self, server: ServerProcess, count: int, mode: str = "exact") -> list[Script]:
        """Images of the fixed prompts, drawn once for real."""
        package = self.package()
        await server.ready()
        requests = _requests(package, count)
        return await record_all(package, server.target, requests, policy_for(mode, package.calibration))


def _requests(package: DevicePackage, count: int) -> list[Request]:
    """The fixed prompts in turn, seeds counting up."""
    prompts = (PROMPTS * (count // len(PROMPTS) + 1))[:count]
    return [request_for(package, prompt, seed) for seed, prompt in enumerate(prompts)]


class Faults(Model):
    """The fault table: what becomes of an image when something dies, freezes or is cut."""

    mode: str = Field("ciar", description="decode mode of the image")
    freeze_s: float = Field(6.0, description="how long what is stopped stays stopped", gt=0)
    deadline_s: float = Field(4.0, description="how long a device waits for an answer", gt=0)

    def run(self) -> None:
        """Print the table row by row. Raises CiarError if anything was lost, leaked or silently wrong."""
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
        package = self.package()
        request = request_for(package, PROMPTS[0], 0)
        policy = policy_for(self.mode, package.calibration, prefix_rate=PREFIX_RATE)
        await server.ready()
        truth = await faults.image(package, request, policy, server.target)
        waits = (self.freeze_s, self.deadline_s)
        models = self.models.expanduser()
        return faults.Scene(self.model, models, package, request, policy, server, truth, *waits)


class Load(Model):
    """Images and rounds a second with 1, 4, 16 and 64 devices against one server, and who waits how long."""

    devices: str = Field("1,4,16,64", description="devices at a time, one line of the table each")
    images: int = Field(2, description="images of each device, one after the other", gt=0)
    processes: int = Field(2, description="processes that hold the devices", gt=0)
    places: int = Field(64, description="images the server draws at a time", gt=0)
    scripts: int = Field(4, description="different images", gt=0)
    think: CliImplicitFlag[bool] = Field(
        True, description="devices take their time; --no-think: they answer at once, which loads the server"
    )
    max_wait_ms: float = Field(0.0, description="as cloud-server's", ge=0)

    def run(self) -> None:
        """Print the table, its last line with a quarter of the places. Raises CiarError."""
        counts = [_whole(word) for word in ("1,4" if self.short else self.devices).split(",")]
        with self.server() as server:
            scripts = asyncio.run(self.recorded(server, 1 if self.short else self.scripts))
        _say(head(load.HEADER))
        rates = [self._line(scripts, count, self.places) for count in counts]
        self._line(scripts, counts[-1], max(counts[-1] // 4, 1))
        gain = ", ".join(f"{n}: {rate / rates[0]:.2f}" for n, rate in zip(counts, rates, strict=True))
        _say(f"\nthroughput against {counts[0]} device(s): {gain}\n")

    def _line(self, scripts: Sequence[Script], devices: int, places: int) -> float:
        crowd = load.Crowd(devices, 1 if self.short else self.images, self.processes, self.think)
        with self.server("--max-sessions", str(places), "--max-wait-ms", str(self.max_wait_ms)) as server:
            asyncio.run(server.ready())
            seen = load.run(server, scripts, crowd, places)
        _say(row(load.line(seen)))
        return seen.rate


def _whole(word: str) -> int:
    if not word.strip().isdecimal() or int(word) == 0:
        raise InvalidRequest(
            f"--devices names {word!r}", "allowed: whole numbers above 0 with commas between"
        )
    return int(word)


class Soak(Model):
    """Thousands of short images, clients that are killed: memory, descriptors, places of the server."""

    images: int = Field(2000, description="images to finish", gt=9)
    rounds: int = Field(6, description="rounds of each image; what is before them is resumed", gt=0)
    kill_every: int = Field(50, description="images between two kills of a client process", gt=0)
    devices: int = Field(4, description="devices at a time in each of two client processes", gt=0)
    growth: float = Field(0.05, description="share by which resident memory may grow", gt=0)

    def run(self) -> None:
        """Print the table. Raises CiarError for leaks, growth or a wrong answer."""
        samples = asyncio.run(self._samples())
        grown, last = soak.growth(samples), samples[-1]
        more = last.descriptors - samples[0].descriptors
        _say(
            f"\nresident memory: {100 * grown:+.1f} %; descriptors: {more:+d}; places lost: {last.sessions}\n"
        )
        if grown > self.growth or last.sessions or more > 0:
            raise CiarError("the server leaks", f"allowed: {100 * self.growth:g} %, 0 descriptors, 0 places")

    async def _samples(self) -> list[soak.Sample]:
        images, every = (40, 15) if self.short else (self.images, self.kill_every)
        plan = soak.Plan(images=images, kill_every=every, devices=self.devices)
        samples = []
        with self.server("--max-sessions", str(soak.CLIENTS * self.devices * 2)) as server:
            whole = await self.recorded(server, 1 if self.short else 4)
            _say(head(soak.HEADER))
            async for sample in soak.run(server, [script.ending(self.rounds) for script in whole], plan):
                _say(row(soak.line(sample)))
                samples.append(sample)
        return samples


class Replicas(Model):
    """Two replicas behind Envoy or Ray Serve, one killed while images are drawn."""

    front: Literal["envoy", "ray"] = Field("envoy", description="what stands in front")
    envoy_config: Path = Field(Path("deploy/envoy.yaml"), description="configuration of Envoy, as shipped")
    images: int = Field(20, description="images, four at a time", gt=0)
    mode: str = Field("exact", description="decode mode of the images")

    def run(self) -> None:
        """Print the table. Raises CiarError if an image is not the undisturbed one."""
        seen = asyncio.run(self._behind_ray() if self.front == "ray" else self._behind_envoy())
        _say(head(replicas.HEADER) + row(seen.cells))
        if not seen.identical:
            raise CiarError("images differ from the undisturbed ones")

    async def _behind_envoy(self) -> replicas.Seen:
        config = replicas.read_envoy(self.envoy_config)
        with self.server() as first, self.server() as second:
            pair = (first, second)
            for server in pair:
                await server.ready()
            with replicas.envoy(config, [server.target for server in pair]) as target:
                study = self._study("Envoy", target, first.target)
                return await study.run(lambda: replicas.kill_a_busy_one(pair))

    async def _behind_ray(self) -> replicas.Seen:
        with self.server() as plain, ray_front(self.model, self.models.expanduser(), 2) as front:
            await plain.ready()
            return await self._study("Ray Serve, HAProxy", front.target, plain.target).run(front.kill_one)

    def _study(self, name: str, target: str, plain: str) -> replicas.Study:
        package = self.package()
        requests = _requests(package, 4 if self.short else self.images)
        policy = policy_for(self.mode, package.calibration)
        return replicas.Study(name, package, requests, policy, target, plain)
