"""What a terminal shows: a bar while a picture is drawn, then its counters. Knows no model and no network."""

from __future__ import annotations

from itertools import zip_longest

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from device_client import loop

# SPEC section 8: name in the table -> (counter, how it is written)
RAW = {
    "cloud forwards": ("cloud_forwards", "d"),
    "rounds": ("rounds", "d"),
    "tokens up": ("tokens_up", "d"),
    "bytes up": ("bytes_up", "d"),
    "bytes down": ("bytes_down", "d"),
    "resumes": ("resumes", "d"),
    "kept": ("kept", "d"),
    "judged": ("judged", "d"),
    "accepted": ("accepted", "d"),
    "offline": ("offline", "d"),
    "device, s": ("device_s", ".3f"),
    "cloud, s": ("cloud_s", ".3f"),
    "wait, s": ("wait_s", ".3f"),
    "total, s": ("total_s", ".3f"),
}
DERIVED = {
    "cloud call rate": ("call_rate", ".1%"),
    "steps": ("steps", ".2f"),
    "local rate": ("local_rate", ".1%"),
    "acceptance": ("acceptance_rate", ".1%"),
    "comm share": ("comm_share", ".1%"),
}
COMPARED = (
    ("cloud forwards", "cloud_forwards", "d"),
    ("bytes up", "bytes_up", "d"),
    ("bytes down", "bytes_down", "d"),
    ("cloud, s", "cloud_s", ".3f"),
    ("total, s", "total_s", ".3f"),
)


def counters_table(counters: loop.Counters) -> Table:
    """Raw counters in two columns, what follows from them in a third."""
    raw = _cells(counters, RAW)
    half = (len(raw) + 1) // 2
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("counted", "", "counted", "", "derived", ""):
        table.add_column(title, justify="left" if title else "right", no_wrap=True)
    for row in zip_longest(raw[:half], raw[half:], _cells(counters, DERIVED), fillvalue=("", "")):
        table.add_row(*(text for cell in row for text in cell))
    return table


def comparison_table(mine: loop.Progress, base: loop.Progress, differing: int) -> Table:
    """What a picture cost, what the cloud alone would have cost, and in how many tokens the two differ."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("", "this picture", "cloud alone", "share"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    ours, theirs = mine.counters.as_dict(), base.counters.as_dict()
    for title, name, form in COMPARED:
        share = f"{ours[name] / theirs[name]:.1%}" if theirs[name] else ""
        table.add_row(title, format(ours[name], form), format(theirs[name], form), share)
    table.add_row("tokens that differ", str(differing), "", f"{differing / len(mine.tokens):.1%}")
    return table


def bar(console: Console) -> Progress:
    """A progress bar that leaves nothing behind, and shows nothing where the console is no terminal."""
    columns = (BarColumn(30), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def tally(progress: loop.Progress) -> str:
    """Who decided so far, in a few words."""
    corrected = progress.sources.count(loop.Source.CORRECTED)
    counters = progress.counters
    return f"kept {counters.kept}, sent {counters.judged}, corrected {corrected}"


def _cells(counters: loop.Counters, rows: dict[str, tuple[str, str]]) -> list[tuple[str, str]]:
    values = counters.as_dict()
    return [(title, format(values[name], form)) for title, (name, form) in rows.items()]
