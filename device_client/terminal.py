"""What `device-client` does in a terminal: draws a picture while it shows how, saves it, says what it cost.

Knows nothing of argv; whoever calls it has checked what is asked for.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import Progress as Bar

from device_client import compare, render, report
from device_client.draw import Upstream, record, steps
from device_client.loop import Progress
from device_client.tiles import Tiles
from device_client.watch import HalfBlocks
from device_client.wish import Plan, Wish, make_plan
from shared.models.zoo import DevicePackage

WATCH_PER_S = 6  # pictures a second in the terminal: each costs the decoder some milliseconds


@dataclass(frozen=True)
class Order:
    """One picture and the files it goes to."""

    wish: Wish
    out: Path
    map: Path | None = None
    compare: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All of them."""
        return [path for path in (self.out, self.map, self.compare) if path is not None]

    def numbered(self, wish: Wish, number: int) -> Order:
        """The same for another wish, the number in every file's name."""
        map_, versus = (path and _numbered(path, number) for path in (self.map, self.compare))
        return Order(wish, _numbered(self.out, number), map_, versus)


class Terminal:
    """Draws order after order. Progress and notes go to stderr, results to stdout."""

    def __init__(
        self, package: DevicePackage, upstream: Upstream, *, as_json: bool, quiet: bool, watch: bool
    ) -> None:
        self._package, self._upstream = package, upstream
        self._as_json = as_json
        self._aside = Console(stderr=True, quiet=quiet, highlight=False, markup=False, soft_wrap=True)
        self._screen = Console(quiet=quiet, highlight=False, markup=False, soft_wrap=True)
        self._tiles = Tiles(package.vq) if watch and self._aside.is_terminal else None

    def draw(self, order: Order) -> None:
        """Draw, save, tell."""
        plan = make_plan(self._package, order.wish)
        for note in plan.notes:
            self._aside.print(f"note: {note}")
        last = asyncio.run(self._drawn(plan))
        base = None
        if order.compare is not None:
            base = asyncio.run(self._drawn(make_plan(self._package, compare.base_wish(order.wish))))
        self._save(order, plan, last, base)
        self._tell(order, plan, last, base)

    async def _drawn(self, plan: Plan) -> Progress:
        last: Progress | None = None
        bar = report.bar(self._aside)
        task = bar.add_task("", total=self._package.model.base.config.image_tokens)
        with self._live(bar, lambda: last):
            async with aclosing(steps(self._package, plan, self._upstream)) as progress:
                async for step in progress:
                    bar.update(task, completed=len(step.tokens), description=report.tally(step))
                    last = step
        assert last is not None and last.done, "the loop ends with a finished picture"
        return last

    def _live(self, bar: Bar, look: Callable[[], Progress | None]) -> AbstractContextManager[object]:
        """The bar alone, or below the picture as far as `look` sees it."""
        if self._tiles is None:
            return bar
        return Live(
            console=self._aside,
            get_renderable=lambda: Group(*self._growing(look()), bar.get_renderable()),
            refresh_per_second=WATCH_PER_S,
            transient=True,
        )

    def _growing(self, now: Progress | None) -> list[HalfBlocks]:
        if now is None or self._tiles is None:
            return []
        grid = self._package.model.base.config.grid
        return [HalfBlocks(self._tiles.mosaic(now.tokens, grid, grid))]

    def _save(self, order: Order, plan: Plan, last: Progress, base: Progress | None) -> None:
        made, grid = record(plan, last), self._package.model.base.config.grid
        image = render.to_image(self._package.vq, last.tokens)
        render.save_png(order.out, image, made)
        if order.map is not None:
            render.save_png(order.map, render.source_map(last.sources, grid, last.scores), made)
        if order.compare is not None and base is not None:
            other = render.to_image(self._package.vq, base.tokens)
            places = compare.differing(last, base)
            render.save_png(order.compare, compare.beside(image, other, places, grid), made)
        if self._tiles is not None:
            self._aside.print(HalfBlocks(image))

    def _tell(self, order: Order, plan: Plan, last: Progress, base: Progress | None) -> None:
        """The result on stdout: a line of JSON for a program, for a person where it lies and what it cost."""
        if self._as_json:
            sys.stdout.write(f"{json.dumps(_result(order, plan, last, base))}\n")
            return
        request = plan.request
        self._screen.print(f"{order.out}: {request.prompt!r}, seed {request.seed}, mode {plan.policy.mode}")
        if order.map is not None:
            self._screen.print(f"{order.map}: who decided each token")
        self._screen.print(report.counters_table(last.counters))
        if base is not None:
            self._screen.print(f"{order.compare}: beside the cloud alone")
            self._screen.print(report.comparison_table(last, base, len(compare.differing(last, base))))


def _result(order: Order, plan: Plan, last: Progress, base: Progress | None) -> dict[str, Any]:
    result = {
        "out": str(order.out),
        "map": None if order.map is None else str(order.map),
        "settings": plan.settings,
        "counters": last.counters.as_dict(),
        "trips": [asdict(trip) for trip in last.trips],
    }
    if base is None:
        return result
    versus = {"out": str(order.compare), "differing": len(compare.differing(last, base))}
    return {**result, "compare": {**versus, "counters": base.counters.as_dict()}}


def _numbered(path: Path, number: int) -> Path:
    return path.with_stem(f"{path.stem}-{number:03}")
