"""Records to a table of medians and means, as Markdown. Knows nothing of servers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

from evaluation.policies import BASE
from evaluation.records import Record

HEADER = (
    "row", "identical", "differ %", "calls %", "local %", "accepted %", "up B", "down B", "seconds",
    "speed-up",
)  # fmt: skip


def differing(tokens: Sequence[int], base: Sequence[int]) -> float:
    """Share of tokens that differ from the base image of the same prompt and seed."""
    return mean(a != b for a, b in zip(tokens, base, strict=True))


def table(records: Sequence[Record]) -> list[list[str]]:
    """One line per row, in the order they first appear; sizes and shares are means, seconds are medians."""
    base = {(r.prompt, r.seed): r for r in records if r.row == BASE.name}
    names = list(dict.fromkeys(record.row for record in records))
    return [_line(name, [r for r in records if r.row == name], base) for name in names]


def _line(name: str, records: Sequence[Record], base: dict[tuple[str, int], Record]) -> list[str]:
    pairs = [(record, base[record.prompt, record.seed]) for record in records]
    share = [differing(record.tokens, reference.tokens) for record, reference in pairs]
    counters = [record.counters for record in records]
    seconds = median(c.total_s for c in counters)
    reference_s = median(reference.counters.total_s for _, reference in pairs)
    return [
        name,
        f"{sum(value == 0 for value in share)}/{len(share)}",
        f"{100 * mean(share):.1f}",
        f"{100 * mean(c.call_rate for c in counters):.1f}",
        f"{100 * mean(c.local_rate for c in counters):.1f}",
        f"{100 * mean(c.acceptance_rate for c in counters):.1f}",
        f"{mean(c.bytes_up for c in counters):.0f}",
        f"{mean(c.bytes_down for c in counters):.0f}",
        f"{seconds:.2f}",
        f"{reference_s / seconds:.2f}",
    ]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table under HEADER."""
    rows = [HEADER, ["---"] + ["--:"] * (len(HEADER) - 1), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
