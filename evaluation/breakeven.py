"""Up to which round trip a row is faster than the cloud alone, by how long a cloud step takes. Knows nothing
of drawing lines.

Per token the base costs one step t of the cloud. A row costs c forwards of k t each (checking several tokens
takes longer than a step), d of the device, and r round trips. It is faster where r RTT < (1 - c k) t - d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.campaign import Campaign, Turn
from evaluation.network import PROFILES
from evaluation.policies import BASE, CIAR, EXACT
from evaluation.records import Record
from evaluation.report import Images
from evaluation.statistics import Figure, exactly
from evaluation.sweeps import Curve, Plot

ROWS = (EXACT[0], CIAR)
SHOWN_MS, POINTS = 40.0, 41  # the steps a line is drawn for, from 0 on; further where one was longer
BELOW, FASTER, SLOWER = "break-even: faster below", "measured: faster", "measured: slower"


@dataclass(frozen=True)
class Costs:
    """Of a token: `forwards` of the cloud, each `longer` than a step by this factor, `rounds`, the device."""

    forwards: float
    longer: float
    rounds: float
    device_s: float

    def round_trip_s(self, step_s: float) -> float:
        """The round trip at which a row takes as long as the base; below 0 it is slower at any."""
        return ((1 - self.forwards * self.longer) * step_s - self.device_s) / self.rounds


def costs(records: Sequence[Record], base: Sequence[Record]) -> Costs:
    """What a token of a row costs, of its images and the base's."""
    tokens, forwards = _sum(records, "image_tokens"), _sum(records, "cloud_forwards")
    return Costs(
        forwards / tokens,
        _sum(records, "cloud_s") / forwards / step_s(base),
        _sum(records, "rounds") / tokens,
        _sum(records, "device_s") / tokens,
    )


def step_s(base: Sequence[Record]) -> float:
    """What a forward of the cloud takes where it draws alone."""
    return _sum(base, "cloud_s") / _sum(base, "cloud_forwards")


def break_even(campaign: Campaign, images: Images, links: Sequence[str]) -> list[Plot]:
    """A plot a row: the line of images drawn over loopback, and whether it was faster over each link."""
    rows, lines = (BASE, *ROWS), ("loopback", *links)
    drawn = iter(campaign.records([Turn(row, link) for link in lines for row in rows], images))
    by_link = [[next(drawn) for _ in rows] for _ in lines]
    return [
        row_plot(row.name, [(records[0], records[place]) for records in by_link])
        for place, row in enumerate(ROWS, 1)
    ]


def row_plot(name: str, pairs: Sequence[tuple[Sequence[Record], Sequence[Record]]]) -> Plot:
    """The plot of one row; `pairs` are the base's images and its own, link by link, the nearest first."""
    base, near = pairs[0]
    cost = costs(near, base)
    steps_ms = np.linspace(0, max(SHOWN_MS, *(1.2e3 * step_s(base) for base, _ in pairs)), POINTS)
    line = [(float(ms), exactly(1e3 * max(cost.round_trip_s(ms / 1e3), 0.0))) for ms in steps_ms]
    points: dict[bool, list[tuple[float, Figure]]] = {True: [], False: []}
    for base, ours in pairs:
        where = 1e3 * step_s(base), exactly(2e3 * PROFILES[ours[0].link].delay_s)
        points[_seconds(ours) < _seconds(base)].append(where)
    return Plot(
        "breakeven",
        name,
        "a step of the cloud's model, ms",
        "round trip, ms",
        (
            Curve(BELOW, tuple(line)),
            Curve(FASTER, tuple(points[True]), marked=True),
            Curve(SLOWER, tuple(points[False]), marked=True, of=FASTER, hollow=True),
        ),
    )


def _seconds(records: Sequence[Record]) -> float:
    return float(np.median([record.counters.total_s for record in records]))


def _sum(records: Sequence[Record], counter: str) -> float:
    return float(sum(getattr(record.counters, counter) for record in records))
