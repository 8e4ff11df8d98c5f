"""A table as a value: lines are policies, columns are figures, the paper's beside ours. Knows no servers.

A line may be empty: what is not there yet, or not on this machine, keeps its place and says why.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evaluation.columns import Column, Sample
from evaluation.policies import Row
from evaluation.statistics import Figure

MISSING = "-"


@dataclass(frozen=True)
class Matched:
    """A row whose gate's threshold is settled by measurement: `budget` cloud forwards per token."""

    gate: str
    budget: float

    @property
    def settled_name(self) -> str:
        """What the row is called once its threshold is settled."""
        return f"{self.gate}, {self.budget:.0%}"


@dataclass(frozen=True)
class Line:
    """One line: its name, the row behind it (none: `why` says what is missing), over which link, with which
    device model, and what the paper reports in which column."""

    name: str
    row: Row | Matched | None = None
    paper: Mapping[str, str] = field(default_factory=dict)
    link: str = "loopback"
    variant: str = ""
    why: str = ""


@dataclass(frozen=True)
class TableSpec:
    """One table. `base` is what speed and likeness are counted against, line by line over the same link.

    `paper` names the paper's own columns, which need not be ours: FID stands beside FD-emoji, not in it.
    """

    number: int
    title: str
    lines: tuple[Line, ...]
    columns: tuple[Column, ...]
    paper: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def timed(self) -> bool:
        """Whether any of its figures is one of time."""
        return any(column.timed for column in self.columns)


Body = list[tuple[Line, list[Figure | None] | str]]  # figures, or why there are none


def fill(spec: TableSpec, samples: Mapping[int, Sample | str]) -> Body:
    """The figures of every line; `samples` are keyed by the line's place, a text says why there is none."""
    body: Body = []
    for place, line in enumerate(spec.lines):
        sample = samples[place]
        measured = sample if isinstance(sample, str) else [column.figure(sample) for column in spec.columns]
        body.append((line, measured))
    return body


def header(spec: TableSpec) -> list[str]:
    """The titles: the line, ours, the paper's."""
    return ["row", *(column.title for column in spec.columns), *(f"paper: {title}" for title in spec.paper)]


def shown(column: Column, figure: Figure | None) -> str:
    """A figure as a table shows it."""
    if figure is None:
        return MISSING
    told = f"{column.scale * figure.value:.{column.digits}f}"
    if not column.interval or figure.low == figure.high:
        return told
    low, high = (f"{column.scale * bound:.{column.digits}f}" for bound in (figure.low, figure.high))
    return f"{told} ({low} to {high})"


def markdown(spec: TableSpec, body: Body) -> str:
    """The table with its title and its notes."""
    rows = [header(spec), ["---"] + ["--:"] * (len(header(spec)) - 1)]
    reasons: dict[str, list[str]] = {}
    for line, measured in body:
        cells = [MISSING] * len(spec.columns)
        if isinstance(measured, str):
            reasons.setdefault(measured, []).append(line.name)
        else:
            cells = [shown(column, figure) for column, figure in zip(spec.columns, measured, strict=True)]
        rows.append([line.name, *cells, *(line.paper.get(title, MISSING) for title in spec.paper)])
    empty = [f"{', '.join(names)}: {reason}." for reason, names in reasons.items()]
    told = [f"- {note}" for note in (*spec.notes, *empty)]
    table = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"## Table {spec.number}. {spec.title}", "", *table, "", *told]).rstrip() + "\n"


def as_csv(spec: TableSpec, body: Body) -> str:
    """One line a row, with the bounds of every figure and unrounded numbers."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    bounds = [f"{column.title}{part}" for column in spec.columns for part in ("", " low", " high")]
    writer.writerow(["row", "link", *bounds, *(f"paper: {title}" for title in spec.paper)])
    for line, measured in body:
        cells: Sequence[object] = [""] * len(bounds)
        if not isinstance(measured, str):
            cells = [part for figure in measured for part in _parts(figure)]
        writer.writerow([line.name, line.link, *cells, *(line.paper.get(title, "") for title in spec.paper)])
    return file.getvalue()


def _parts(figure: Figure | None) -> list[object]:
    return ["", "", ""] if figure is None else [figure.value, figure.low, figure.high]
