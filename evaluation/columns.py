"""The columns a table may have: each is a value, a title with a figure of one row. Knows nothing of rows.

Counters are those of the method's section on counters, and no other definition of them stands anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import NEIGHBOURS, Looks
from evaluation.network import Profile, profile_named
from evaluation.records import Record
from evaluation.statistics import Figure, Picks, bootstrap, exactly

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sample:
    """One row's images and the base's of the same prompts and seeds over the same link, pair by pair."""

    records: tuple[Record, ...]
    base: tuple[Record, ...]
    looks: Looks | None = None
    base_looks: Looks | None = None

    def counter(self, name: str, *, base: bool = False) -> Numbers:
        """One counter, raw or derived, image by image."""
        records = self.base if base else self.records
        return np.array([getattr(record.counters, name) for record in records], dtype=np.float64)

    @property
    def differing(self) -> Numbers:
        """Share of tokens unlike the base's, image by image."""
        pairs = zip(self.records, self.base, strict=True)
        return np.array([np.mean(np.not_equal(ours.tokens, theirs.tokens)) for ours, theirs in pairs])


@dataclass(frozen=True)
class Column:
    """A title, the figure of a row where it has one, and how many digits it is shown with.

    `scale` is 100 for shares shown in percent; `interval`: its bounds are shown too; `timed`: it reads the
    clock, so its images are warm.
    """

    title: str
    figure: Callable[[Sample], Figure | None]
    digits: int = 1
    scale: float = 1.0
    interval: bool = False
    timed: bool = False


def _mean(name: str) -> Callable[[Sample], Figure]:
    def figure(sample: Sample) -> Figure:
        values = sample.counter(name)
        return bootstrap(lambda picks: float(values[picks].mean()), len(values))

    return figure


def identical(sample: Sample) -> Figure:
    """The share of images equal to the base's."""
    return exactly(float((sample.differing == 0).mean()))


def differing(sample: Sample) -> Figure:
    """The mean share of tokens unlike the base's."""
    values = sample.differing
    return bootstrap(lambda picks: float(values[picks].mean()), len(values))


def seconds(sample: Sample) -> Figure:
    """The median time of an image, decoding alone."""
    values = sample.counter("total_s")
    return bootstrap(lambda picks: float(np.median(values[picks])), len(values))


def speed_up(sample: Sample) -> Figure:
    """Median time of the base over median time of the row, resampled pair by pair."""
    ours, base = sample.counter("total_s"), sample.counter("total_s", base=True)
    return bootstrap(lambda picks: float(np.median(base[picks]) / np.median(ours[picks])), len(ours))


def steps(sample: Sample) -> Figure | None:
    """Tokens per cloud forward over all images; none where the cloud did nothing."""
    tokens, forwards = sample.counter("image_tokens"), sample.counter("cloud_forwards")
    return exactly(float(tokens.sum() / forwards.sum())) if forwards.sum() else None


def per_cloud_second(sample: Sample) -> Figure | None:
    """Images for a second of the cloud's model: what one server can sustain; none where it did nothing."""
    cloud_s = sample.counter("cloud_s")
    if not cloud_s.sum():
        return None
    return bootstrap(lambda picks: float(1 / max(cloud_s[picks].mean(), 1e-9)), len(cloud_s))


def communication_s(record: Record, profile: Profile) -> float:
    """The paper's accounting: `delay + size / rate` for every message, the opening pair included.

    It holds for one message after the other: with several rounds in flight it is no time that anybody waits.
    """
    messages = 2 * (record.counters.rounds + 1) if record.counters.bytes_up else 0
    size = record.counters.bytes_up + record.counters.bytes_down
    return messages * profile.delay_s + 8 * size / profile.rate_bps


def lost_s(record: Record) -> float:
    """Waiting for anything but the cloud's model.

    With several rounds in flight the device draws while the cloud computes, so `cloud_s` may exceed the
    waiting; then this is a lower bound: all of the cloud's time counts as waited for first.
    """
    return max(record.counters.wait_s - record.counters.cloud_s, 0.0)


def computing_s(record: Record) -> float:
    """Everything of an image but waiting for the network: the device's time and what of the cloud model's it
    waited for. Never more than the whole."""
    return record.counters.total_s - lost_s(record)


def _accounted(sample: Sample) -> Numbers | None:
    """Communication and the whole, [2, N]; None where rounds overlap, which the accounting does not know."""
    if any(record.pipelined for record in sample.records):
        return None
    told_s = [communication_s(record, profile_named(record.link)) for record in sample.records]
    whole_s = [told + computing_s(record) for told, record in zip(told_s, sample.records, strict=True)]
    return np.array([told_s, whole_s])


def accounted_share(sample: Sample) -> Figure | None:
    """Communication in the whole time of an image, both as the paper counts them."""
    if (accounted := _accounted(sample)) is None:
        return None
    told_s, whole_s = accounted
    return bootstrap(lambda picks: float(told_s[picks].sum() / whole_s[picks].sum()), len(told_s))


def accounted_s(sample: Sample) -> Figure | None:
    """Mean seconds of communication of an image, as the paper counts them."""
    if (accounted := _accounted(sample)) is None:
        return None
    told_s = accounted[0]
    return bootstrap(lambda picks: float(told_s[picks].mean()), len(told_s))


def measured_share(sample: Sample) -> Figure:
    """Waiting for anything but the cloud's model in the whole time, as the clock says."""
    lost, total_s = np.array([lost_s(record) for record in sample.records]), sample.counter("total_s")
    return bootstrap(lambda picks: float(lost[picks].sum() / total_s[picks].sum()), len(lost))


def measured_s(sample: Sample) -> Figure:
    """Mean seconds an image waited for anything but the cloud's model."""
    lost = np.array([lost_s(record) for record in sample.records])
    return bootstrap(lambda picks: float(lost[picks].mean()), len(lost))


def distance(sample: Sample) -> Figure | None:
    """FD-emoji; none of fewer than two pictures."""
    if sample.looks is None or sample.looks.fewest < 2:
        return None
    return exactly(sample.looks.distance(np.arange(len(sample.records))))


def _against_base(
    measure: Callable[[Looks, Picks], float],
) -> Callable[[Sample], Figure | None]:
    def figure(sample: Sample) -> Figure | None:
        ours, base = sample.looks, sample.base_looks
        if ours is None or base is None or ours.fewest < 2:
            return None
        return bootstrap(lambda picks: measure(ours, picks) - measure(base, picks), len(sample.records))

    return figure


def _overlap(name: str) -> Callable[[Sample], Figure | None]:
    def figure(sample: Sample) -> Figure | None:
        if sample.looks is None or sample.looks.fewest <= NEIGHBOURS:
            return None
        found = sample.looks.overlap()
        if name == "f1":
            return exactly(found.f1)
        members, share = (
            (found.real_N, found.precision) if name == "precision" else (found.covered_M, found.recall)
        )
        return bootstrap(share, len(members))

    return figure


def score(sample: Sample) -> Figure | None:
    """score-emoji: the mean cosine of picture and caption."""
    return bootstrap(sample.looks.fit, len(sample.records)) if sample.looks else None


SPEED_UP = Column("speed-up", speed_up, 2, interval=True, timed=True)
STEPS = Column("steps", steps, 2)
CALLS = Column("calls %", _mean("call_rate"), scale=100)
LOCAL = Column("local %", _mean("local_rate"), scale=100)
ACCEPTED = Column("accepted %", _mean("acceptance_rate"), scale=100)
IDENTICAL = Column("identical %", identical, 0, scale=100)
DIFFERING = Column("differ %", differing, scale=100, interval=True)
SECONDS = Column("seconds", seconds, 2, timed=True)
CLOUD_SECONDS = Column("cloud s", _mean("cloud_s"), 2, timed=True)
PER_CLOUD_SECOND = Column("images / cloud s", per_cloud_second, 2, timed=True)
ROUNDS = Column("rounds", _mean("rounds"))
BYTES_UP = Column("up B", _mean("bytes_up"), 0)
BYTES_DOWN = Column("down B", _mean("bytes_down"), 0)
TOLD_S = Column("comm s, formula", accounted_s, 3)
TOLD_SHARE = Column("comm %, formula", accounted_share, scale=100, timed=True)
MEASURED_S = Column("comm s, measured", measured_s, 3, timed=True)
MEASURED_SHARE = Column("comm %, measured", measured_share, scale=100, timed=True)
DISTANCE = Column("FD-emoji", distance, 2)
DISTANCE_CHANGE = Column("FD-emoji - base", _against_base(Looks.distance), 2, interval=True)
PRECISION = Column("P-emoji", _overlap("precision"), 3)
RECALL = Column("R-emoji", _overlap("recall"), 3)
F1 = Column("F1-emoji", _overlap("f1"), 3)
SCORE = Column("score-emoji", score, 4)
SCORE_CHANGE = Column("score-emoji - base", _against_base(Looks.fit), 4, interval=True)
