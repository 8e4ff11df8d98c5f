"""Draw what a table needs and the book lacks: rows by images by links, interleaved. Knows nothing of figures.

The server and the links start with the first image that is missing; with none missing nothing starts at all.
Rows and links take turns image by image, so that a slow minute of the machine falls on all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from device_client.link import CloudLink
from device_client.loop import Progress, Request
from device_client.policy import Policy
from device_client.wish import request_for
from evaluation.comparison import Matched
from evaluation.engine import COMPILED, EAGER, PACKED
from evaluation.network import profile_named
from evaluation.policies import Row
from evaluation.records import WARM_UPS, Book, Record, Setting, commit, machine
from evaluation.run import (
    TUNING_SEED,
    cloud_server,
    draw,
    gate_row,
    link_to,
    settled,
    tried_thresholds,
    tuning,
    watch,
)
from shared.decoding.calibration import Calibration
from shared.errors import InvalidRequest
from shared.models.zoo import DevicePackage, load_device_package
from shared.threads import use_threads

WARM_SEED = 9_000  # images that warm up are never measured
PointT = TypeVar("PointT")
Report = Callable[[Record], None]


@dataclass(frozen=True)
class Turn:
    """One row over one link; `variant` names another device model for the same cloud."""

    row: Row
    link: str = "loopback"
    variant: str = ""


@dataclass(frozen=True)
class Source:
    """Which models, and how they are run: `compiled` is the server's engine, `threads` are the device's."""

    model: str
    models: Path
    variants: Path | None = None
    threads: int = 1
    compiled: bool = False

    @property
    def engine(self) -> str:
        """What records call the server's engine."""
        return COMPILED if self.compiled else f"{EAGER}, weights {PACKED}"

    @property
    def server_flags(self) -> tuple[str, ...]:
        """Of `cloud-server`, behind the model."""
        return ("--models", str(self.models), *(["--compile"] if self.compiled else []))

    def package(self, variant: str) -> DevicePackage:
        """A device model. Raises InvalidRequest where there is no such variant, and what loading raises."""
        if not variant:
            return load_device_package(self.model, self.models)
        if self.variants is None or not (self.variants / variant).is_dir():
            raise InvalidRequest(f"no device model {variant!r}", f"--variants names the folder of {variant}/")
        package = load_device_package(str(self.variants / variant), self.models)
        return replace(package, name=self.package("").name)  # the cloud knows its own model's name alone

    def has(self, variant: str) -> bool:
        """Whether a variant can be loaded; the model itself always can."""
        return not variant or (self.variants is not None and (self.variants / variant).is_dir())


class Campaign:
    """A book and the machinery that fills it; a context manager, since it may hold processes.

    With `smoke` it is only to be seen that everything runs: nothing is warmed, and dials have two points.
    """

    def __init__(
        self, source: Source, book: Book, report: Report = lambda record: None, *, smoke: bool = False
    ) -> None:
        self.source, self.book, self._report, self._smoke = source, book, report, smoke
        self._open = contextlib.ExitStack()
        self._server = ""
        self._addresses: dict[str, str] = {}
        self._packages: dict[str, DevicePackage] = {}
        self._drawn: Counter[tuple[str, str]] = Counter()  # images by (draws, link) since the server's start

    def __enter__(self) -> Campaign:
        use_threads(self.source.threads)
        self._loop = self._open.enter_context(asyncio.Runner())
        self._commit, self._machine = commit(), machine()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def package(self, variant: str = "") -> DevicePackage:
        """A device model, loaded once."""
        if variant not in self._packages:
            self._packages[variant] = self.source.package(variant)
        return self._packages[variant]

    def calibration(self) -> Calibration:
        """That of the model itself."""
        return self.package().calibration

    def dial(self, points: Sequence[PointT]) -> list[PointT]:
        """The points a sweep visits of those it could."""
        return [*points[:1], *points[1:][-1:]] if self._smoke else [*points]

    def records(
        self, turns: Sequence[Turn], images: Sequence[tuple[str, int]], *, warm: bool = True
    ) -> list[list[Record]]:
        """The records of every turn, image by image; `images` are prompts with their seeds.

        What is missing is drawn, after WARM_UPS images of each turn where `warm` ones are asked for.
        """
        warm = warm and not self._smoke
        missing = [turn for turn in turns if any(self._find(turn, image, warm) is None for image in images)]
        if warm:
            self._warm_up(missing, images)
        for image in images:
            for turn in missing:
                if self._find(turn, image, warm) is None:
                    self.book.add(self._draw(turn, image))
        return [[self._found(turn, image, warm) for image in images] for turn in turns]

    def watch(self, turn: Turn, image: tuple[str, int]) -> list[Progress]:
        """Every step of one image, which is not recorded. The device's first image is never watched."""
        if not self._smoke:
            self._warm_up([turn], [image])
        package, policy, target = self._ready(turn)
        return self._loop.run(watch(package, target, self._request(turn, image), policy))

    def matched(self, gate: str, budget: float, images: Sequence[tuple[str, int]]) -> Row:
        """The row of a gate whose threshold really gives `budget` cloud forwards per token: see `settled`."""
        tried = self.dial(tried_thresholds(self.calibration(), gate))
        own = [(prompt, TUNING_SEED + seed) for prompt, seed in tuning(images)]

        def drawn(tau: float) -> list[Record]:
            return self.records([Turn(gate_row(gate, tau, gate))], own, warm=False)[0]

        name = Matched(gate, budget).settled_name
        return gate_row(name, settled(tried, drawn, budget), gate)

    def _warm_up(self, turns: Sequence[Turn], images: Sequence[tuple[str, int]]) -> None:
        for count in range(WARM_UPS):
            for turn in turns:
                if self._drawn[self._draws(turn), turn.link] <= count:
                    self._draw(turn, (images[count % len(images)][0], WARM_SEED + count))

    def _draw(self, turn: Turn, image: tuple[str, int]) -> Record:
        package, policy, target = self._ready(turn)
        draws = self._draws(turn)
        last = self._loop.run(draw(package, target, self._request(turn, image), policy))
        record = Record(
            row=turn.row.name,
            prompt=image[0],
            seed=image[1],
            tokens=last.tokens,
            counters=last.counters,
            link=turn.link,
            warm=self._drawn[draws, turn.link] >= WARM_UPS,
            draws=draws,
            flags=self._flags(turn),
            setting=self._setting(turn),
        )
        self._drawn[draws, turn.link] += 1
        self._report(record)
        return record

    def _ready(self, turn: Turn) -> tuple[DevicePackage, Policy, str]:
        """What a turn runs with; server and link are started where they are not running."""
        package = self.package(turn.variant)
        if not self._server:
            server = cloud_server(self.source.model, *self.source.server_flags)
            self._server = self._open.enter_context(server)
        if turn.link not in self._addresses:
            link = link_to(self._server, profile_named(turn.link))
            self._addresses[turn.link] = self._open.enter_context(link)
            self._hold(self._addresses[turn.link])
        return package, turn.row.policy(package.calibration), self._addresses[turn.link]

    def _hold(self, address: str) -> None:
        """Keep a connection open that the links of all images share: none of them begins by connecting."""
        held = CloudLink(address)
        self._loop.run(held.__aenter__())
        self._open.callback(lambda: self._loop.run(held.__aexit__(None, None, None)))
        self._loop.run(held.info())

    def _request(self, turn: Turn, image: tuple[str, int]) -> Request:
        return request_for(self.package(turn.variant), *image)

    def _flags(self, turn: Turn) -> dict[str, dict[str, Any]]:
        calibration = self.package(turn.variant).calibration
        return {"policy": asdict(turn.row.policy(calibration)), "warp": asdict(calibration.warp)}

    def _setting(self, turn: Turn) -> Setting:
        package = self.package(turn.variant)
        return Setting(
            package.name,
            package.cloud_digest,
            package.digest,
            engine=self.source.engine,
            threads=self.source.threads,
            commit=self._commit,
            machine=self._machine,
        )

    def _draws(self, turn: Turn) -> str:
        return self._setting(turn).draws(**self._flags(turn))

    def _find(self, turn: Turn, image: tuple[str, int], warm: bool) -> Record | None:
        found = self.book.find((self._draws(turn), *image, turn.link), warm=warm)
        return found and replace(found, row=turn.row.name)

    def _found(self, turn: Turn, image: tuple[str, int], warm: bool) -> Record:
        found = self._find(turn, image, warm)
        assert found is not None, "drawn a moment ago"
        return found
