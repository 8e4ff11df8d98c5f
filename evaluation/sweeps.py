"""The figures' data: one dial turned, one curve. A curve is points with intervals; a figure is named curves.
Knows nothing of drawing lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from device_client.progress import Progress
from evaluation.campaign import Campaign, Turn
from evaluation.columns import Sample, communication_s, computing_s, differing
from evaluation.network import PROFILES, Profile
from evaluation.policies import BASE, CIAR, EXACT, Row
from evaluation.records import Record
from evaluation.report import Images
from evaluation.run import gate_row
from evaluation.statistics import Figure, exactly
from shared.errors import InvalidRequest

SHARES = (0.08, 0.15, 0.25, 0.35, 0.5)  # of the places that a threshold would have judged
SWEPT_GATES = ("agreement", "entropy", "margin", "interval", "random")
PREFIXES = (0.0, 0.03, 0.06, 0.12, 0.25)
ROUND_TRIPS_S = tuple(0.005 * step for step in range(41))  # 0 to 200 ms
ASKED = (0.1, 0.2, 0.3, 0.4)  # shares of tokens at which ciar-eval auroc counts the wrong ones
RIVALS = (BASE, EXACT[0], CIAR)


@dataclass(frozen=True)
class Curve:
    """Named points (x, y); `marked` ones are measured where the line `of` another name is computed, and
    drawn `hollow` where they tell of a loss."""

    name: str
    points: tuple[tuple[float, Figure], ...]
    marked: bool = False
    of: str = ""
    hollow: bool = False

    @property
    def line(self) -> str:
        """The curve whose colour it has."""
        return self.of or self.name


@dataclass(frozen=True)
class Plot:
    """What one picture shows."""

    name: str
    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    notes: tuple[str, ...] = ()


def _likeness(campaign: Campaign, rows: Sequence[Row], images: Images) -> list[tuple[float, Figure]]:
    """(call rate, share of tokens unlike the base's) of every row; times are not read, so none is warmed."""
    base, *drawn = campaign.records([Turn(BASE), *(Turn(row) for row in rows)], images, warm=False)
    samples = [Sample(tuple(records), tuple(base)) for records in drawn]
    return [(float(sample.counter("call_rate").mean()), differing(sample)) for sample in samples]


def thresholds(campaign: Campaign, images: Images) -> Plot:
    """Each gate at several thresholds: cloud forwards against likeness to the base."""
    curves = []
    for gate in SWEPT_GATES:
        table = campaign.calibration().table(gate)
        taus = campaign.dial(sorted({table.asking(share) for share in SHARES}))
        rows = [gate_row(f"{gate}, {tau:.4g}", tau, gate) for tau in taus]
        curves.append(Curve(gate, tuple(_likeness(campaign, rows, images))))
        if gate == campaign.calibration().default_gate:
            rows = [Row(f"ciar, {tau:.4g}", "ciar", {"threshold": tau}) for tau in taus]
            curves.append(Curve(f"{gate}, our rounds", tuple(_likeness(campaign, rows, images))))
    return Plot(
        "thresholds",
        "What a gate's threshold buys",
        "cloud forwards per token",
        "share of tokens unlike the base's",
        tuple(curves),
        (
            "Spans of 5; our rounds: guesses, long spans, a prefix by Jacobi iteration.",
            "The paper, interval gate at .25/.30/.35/.40: FID 24.21/24.25/27.20/28.59.",
        ),
    )


def prefix(campaign: Campaign, images: Images) -> Plot:
    """The share of the image that the cloud draws first."""
    rates = campaign.dial(PREFIXES)
    rows = [Row(f"prefix {rho:g}", "ciar", {"prefix_rate": rho}) for rho in rates]
    found = _likeness(campaign, rows, images)
    return Plot(
        "prefix",
        "The prefix drawn by the cloud",
        "prefix rate",
        "share of tokens unlike the base's; cloud forwards per token",
        (
            Curve("unlike the base", tuple(zip(rates, [unlike for _, unlike in found], strict=True))),
            Curve("cloud forwards", tuple(zip(rates, [exactly(c) for c, _ in found], strict=True))),
        ),
    )


def round_trips(campaign: Campaign, images: Images, links: Sequence[str] = ()) -> Plot:
    """Seconds an image takes against the round trip: computing measured over loopback, messages by formula.

    `links` are measured too, and marked. Where a line crosses the base's is the method's break-even:
    calls * RTT < (1 - calls) * t_cloud - t_device per token, with the calls that cost a round.
    """
    turns = [Turn(row, link) for link in ("loopback", *links) for row in RIVALS]
    drawn = campaign.records(turns, images)
    near = drawn[: len(RIVALS)]
    curves = [_by_formula(row.name, records) for row, records in zip(RIVALS, near, strict=True)]
    far = drawn[len(RIVALS) :]
    marks = [_by_clock(row.name, far[place :: len(RIVALS)]) for place, row in enumerate(RIVALS)]
    lines = [curve for curve in curves[1:] if curve.points]
    told = [f"{curve.name} is faster than the base: {_crossing(curves[0], curve)}" for curve in lines]
    return Plot(
        "rtt",
        "Where the network eats what was saved",
        "round trip, s",
        "seconds an image",
        tuple(curve for curve in (*curves, *marks) if curve.points),
        tuple(told),
    )


def _by_formula(name: str, records: Sequence[Record]) -> Curve:
    """Loopback records as they would be at other round trips; nothing where rounds overlap: at another round
    trip other rounds would be void, and the formula does not know which."""
    if any(record.pipelined for record in records):
        return Curve(name, ())
    points = [(rtt, _median(_told(Profile("", delay_s=rtt / 2)), records)) for rtt in ROUND_TRIPS_S]
    return Curve(name, tuple(points))


def _by_clock(name: str, drawn: Sequence[Sequence[Record]]) -> Curve:
    """What the clock said, a point a link."""
    points = [
        (2 * PROFILES[records[0].link].delay_s, _median(lambda record: record.counters.total_s, records))
        for records in drawn
    ]
    return Curve(f"{name}, measured", tuple(points), marked=True, of=name)


def _told(profile: Profile) -> Callable[[Record], float]:
    return lambda record: computing_s(record) + communication_s(record, profile)


def _median(time_s: Callable[[Record], float], records: Sequence[Record]) -> Figure:
    return exactly(float(np.median([time_s(record) for record in records])))


def _crossing(base: Curve, curve: Curve) -> str:
    """Up to which round trip a row is faster than the base, in words."""
    pairs = zip(base.points, curve.points, strict=True)
    gains = [theirs.value - ours.value for (_, theirs), (_, ours) in pairs]
    slower = [place for place, gain in enumerate(gains) if gain <= 0]
    if not slower:
        return f"up to {1e3 * ROUND_TRIPS_S[-1]:g} ms of round trip and beyond"
    if slower[0] == 0:
        return "at no round trip"
    place = slower[0]
    share = gains[place - 1] / (gains[place - 1] - gains[place])
    crossing = ROUND_TRIPS_S[place - 1] + share * (ROUND_TRIPS_S[place] - ROUND_TRIPS_S[place - 1])
    return f"up to {1e3 * crossing:.1f} ms of round trip"


@dataclass(frozen=True)
class Stretch:
    """A piece of an image's time: from where to where, in seconds, and who worked."""

    who: str
    start_s: float
    end_s: float


def waterfall(steps: Sequence[Progress]) -> list[Stretch]:
    """The time of one image, stretch by stretch: the device, the cloud's model, waiting for anything else.

    What of the cloud's time passed while the device drew, with several rounds in flight, is the device's.
    """
    stretches, now_s = [], 0.0
    device_s = cloud_s = wait_s = 0.0
    trips = 0
    for step in steps:
        counters = step.counters
        trip_s = [trip.arrived_s - trip.sent_s for trip in step.trips[trips:] if trip.arrived_s is not None]
        judged_s, lost_s = parted(counters.wait_s - wait_s, counters.cloud_s - cloud_s, sum(trip_s))
        drawn_s = counters.device_s - device_s
        for who, length_s in (("device", drawn_s), ("cloud", judged_s), ("network", lost_s)):
            if length_s > 0:
                stretches.append(Stretch(who, now_s, now_s + length_s))
                now_s += length_s
        device_s, cloud_s, wait_s = counters.device_s, counters.cloud_s, counters.wait_s
        trips = len(step.trips)
    return stretches


def parted(waited_s: float, cloud_s: float, trip_s: float) -> tuple[float, float]:
    """Seconds waited for one answer, as those for the cloud's model and those for anything else.

    Waiting ends as a trip does: the answer is under way last, for half of what is not computing; the model
    ran before that, and the draft was under way first. Whoever waited for a whole trip, or for an opening,
    waited for all of the model's time; who began to wait late missed the first of it.
    """
    down_s = min(waited_s, max(trip_s - cloud_s, 0.0) / 2)
    judged_s = min(waited_s - down_s, cloud_s)
    return judged_s, waited_s - judged_s


def ranked_gates(file: Path) -> Plot:
    """What `ciar-eval auroc` wrote: a JSON list of gates, each with `gate`, `auroc.value` and `wrong`, the
    shares of all tokens that are wrong when ASKED shares are asked about.

    Raises InvalidRequest for another file.
    """
    if not file.is_file():
        raise InvalidRequest(f"no file {file}", "ciar-eval auroc writes it", "name it with --auroc")
    curves = []
    try:
        for told in json.loads(file.read_text(encoding="utf-8")):
            points = zip(ASKED, [exactly(float(wrong)) for wrong in told["wrong"]], strict=True)
            curves.append(Curve(f"{told['gate']} ({told['auroc']['value']:.3f})", tuple(points)))
    except (KeyError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InvalidRequest(f"{file} is not of ciar-eval auroc", why) from error
    return Plot(
        "auroc",
        "What each gate lets through, and its AUROC",
        "share of tokens asked about",
        "share of tokens wrong",
        tuple(curves),
    )
