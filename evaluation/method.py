"""The method's own tables: what each part of it buys on one pair, over the real wire. Knows no servers.

They are no tables of the paper: exact mode against the cloud alone, gates at equal forwards, waiting over a
link, what the dial buys. Budgets are held image by image (`--policy budget`), so that rows really cost the
same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from evaluation import columns as c
from evaluation.columns import Sample
from evaluation.comparison import Line, TableSpec
from evaluation.network import ROUND_TRIP_50_MS
from evaluation.policies import CIAR, EXACT, Row, early
from evaluation.statistics import Figure, Picks, bootstrap

BUDGETS = (0.1, 0.2, 0.3)
RANKED = ("agreement", "entropy", "interval")
_DIALLED = 0.18  # forwards per token at which `ciar` is asked to be fast


def _spent(name: str, budget: float, gate: str) -> Row:
    """Mode ciar whose every image spends just the budget."""
    return Row(name, "ciar", MappingProxyType({"gate": gate, "cloud_budget": budget, "pacing": "budget"}))


def _cut(one: Sample, other: Sample, counter: str) -> Figure:
    """By how much a counter's sum falls from one row to another, resampled image by image."""
    before, after = one.counter(counter), other.counter(counter)
    return bootstrap(lambda picks: float(1 - after[picks].sum() / before[picks].sum()), len(before))


def _ratio(one: Sample, other: Sample) -> Figure:
    """Tokens unlike the base's: those of one row over those of another, resampled image by image; 1 where
    neither has any."""
    mine, theirs = one.differing, other.differing

    def ratio(picks: Picks) -> float:
        few, many = float(mine[picks].mean()), float(theirs[picks].mean())
        return few / many if many else (math.inf if few else 1.0)

    return bootstrap(ratio, len(mine))


def _break_even(sample: Sample) -> Figure:
    """Seconds of round trip below which a row beats the base, by (1 - calls) t_cloud - t_device > calls RTT
    per token; t_cloud is the base's whole time per forward."""
    base_s, forwards = sample.counter("total_s", base=True), sample.counter("cloud_forwards", base=True)
    calls, rounds = sample.counter("cloud_forwards"), sample.counter("rounds")
    device_s = sample.counter("device_s")

    def trip_s(picks: Picks) -> float:
        won_s = (forwards - calls)[picks].sum() * base_s[picks].sum() / forwards[picks].sum()
        return float((won_s - device_s[picks].sum()) / max(rounds[picks].sum(), 1))

    return bootstrap(trip_s, len(calls))


def _named(name: str) -> Row:
    """The row of exact mode that goes by this name."""
    return next(row for row in EXACT if row.name == name)


_NO_GUESSES, _NO_GUESSES_AHEAD = _named("exact, no guesses"), _named("exact, no guesses, 4 in flight")
_ONE, _ONE_AHEAD = _named("exact, 1 forward"), _named("exact, 1 forward, 4 in flight")
WAITED = c.Column("waited s", lambda sample: _mean_of(sample, "wait_s"), 3)
DEVICE = c.Column("device s", lambda sample: _mean_of(sample, "device_s"), 3)
BREAK_EVEN = c.Column("break-even RTT ms", _break_even, 1, 1000.0, interval=True)


def _mean_of(sample: Sample, counter: str) -> Figure:
    values = sample.counter(counter)
    return bootstrap(lambda picks: float(np.mean(values[picks])), len(values))


MODES = TableSpec(
    9,
    "The modes over loopback",
    (
        *(Line(row.name, row) for row in (EXACT[0], _NO_GUESSES, _ONE, _named("exact, 2 forwards"))),
        Line("ciar, default", CIAR),
        Line("ciar, agreement 18 %", _spent("ciar, agreement 18 %", _DIALLED, "agreement")),
        *(Line(early(budget).name, early(budget)) for budget in (0.15, 0.2)),
    ),
    (
        c.IDENTICAL, c.DIFFERING, c.CALLS, c.ROUNDS, c.LOCAL, c.ACCEPTED, DEVICE, c.SECONDS, c.SPEED_UP,
        BREAK_EVEN,
    ),
)  # fmt: skip
EQUAL = TableSpec(
    10,
    "Gates at equal forwards",
    tuple(
        Line(f"{gate}, {budget:.0%}", _spent(f"{gate}, {budget:.0%}, held", budget, gate))
        for budget in BUDGETS
        for gate in RANKED
    )
    + tuple(Line(f"early, {budget:.0%}", early(budget)) for budget in BUDGETS),
    (c.CALLS, c.LOCAL, c.DIFFERING),
)
WAITING = TableSpec(
    11,
    "Waiting at a round trip of 50 ms",
    tuple(
        Line(row.name, row, link=ROUND_TRIP_50_MS.name)
        for row in (_NO_GUESSES, _NO_GUESSES_AHEAD, _ONE, _ONE_AHEAD, EXACT[0], CIAR)
    ),
    (c.IDENTICAL, c.CALLS, c.ROUNDS, WAITED, c.SECONDS, c.SPEED_UP, BREAK_EVEN),
)
_DIAL = (0.06, 0.09, 0.12, 0.15, 0.18, 0.2)
DIAL = TableSpec(
    12,
    "What the dial buys",
    (
        Line("exact", EXACT[0]),
        *(
            Line(f"--cloud-budget {budget:g}", Row(f"ciar, {budget:.0%}", "ciar", {"cloud_budget": budget}))
            for budget in _DIAL
        ),
        *(
            Line(f"{budget:g}, --policy budget", _spent(f"ciar, {budget:.0%}, held", budget, "agreement"))
            for budget in (0.12, 0.15)
        ),
        *(Line(f"{budget:g}, --policy early", early(budget)) for budget in (0.09, *_DIAL[2:])),
    ),
    (
        c.CALLS, c.ROUNDS, c.LOCAL, c.DIFFERING, c.DISTANCE_CHANGE, c.SCORE_CHANGE, c.SECONDS, c.SPEED_UP,
    ),
)  # fmt: skip
METHOD = {"modes": MODES, "gates": EQUAL, "waiting": WAITING, "dial": DIAL}


def compared(name: str, samples: Mapping[str, Sample]) -> list[str]:
    """What one row's figure is beside another's, in words; `samples` are those of a table by line."""
    told = {
        "modes": lambda: [
            _told(f"{more} cut rounds by", _cut(samples[_NO_GUESSES.name], samples[name], "rounds"))
            for more, name in (("guesses", _ONE.name), ("guesses and 8 forwards", EXACT[0].name))
        ],
        "gates": lambda: [
            _told(
                f"at {budget:.0%}, tokens differing under {one} over {other}",
                _ratio(samples[f"{one}, {budget:.0%}"], samples[f"{other}, {budget:.0%}"]),
            )
            for budget in BUDGETS
            for one in (RANKED[0], "early")
            for other in RANKED[1:]
        ],
        "waiting": lambda: (
            [
                _told(f"4 in flight cut waiting of {one!r} by", _cut(samples[one], samples[two], "wait_s"))
                for one, two in ((_NO_GUESSES.name, _NO_GUESSES_AHEAD.name), (_ONE.name, _ONE_AHEAD.name))
            ]
            + [
                _told(
                    f"8 forwards cut waiting of {_ONE.name!r} by",
                    _cut(samples[_ONE.name], samples[EXACT[0].name], "wait_s"),
                )
            ]
        ),
    }
    return told[name]() if name in told else []


def _told(what: str, figure: Figure) -> str:
    return f"{what}: {figure.value:.3f} ({figure.low:.3f} .. {figure.high:.3f})"
