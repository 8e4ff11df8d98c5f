"""All tables and figures of one study on one page: what was run, on what, with which flags. Knows nothing of
how figures come about.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from device_client.policy import Policy
from evaluation.comparison import Matched, TableSpec
from evaluation.records import Record, Setting

PLOTS = (
    "thresholds", "prefix", "auroc", "rtt", "breakeven", "waterfall", "acceptance", "pictures", "map",
)  # fmt: skip
BESIDE = ("replay.md", "link-check.md")  # of other verbs, shown where they are
# Where a flag is this, it says nothing; `mode` is in the row's name, the others follow from it.
_USUAL = {item.name: item.default for item in fields(Policy)} | {"features": True, "use_cloud": True}


@dataclass(frozen=True)
class Story:
    """What is told above the tables: the commands, and notes on how the run went."""

    commands: Sequence[str]
    notes: Sequence[str] = ()


def row_names(specs: Iterable[TableSpec]) -> list[str]:
    """Names of the rows of some tables, each once."""
    rows = [line.row for spec in specs for line in spec.lines if line.row is not None]
    return list(dict.fromkeys(row.settled_name if isinstance(row, Matched) else row.name for row in rows))


def compose(tables: Sequence[str], records: Iterable[Record], names: Sequence[str], story: Story) -> str:
    """The page, its figures named but not yet placed: `{figures}` stands for their folder."""
    own = [record for record in records if record.row in names]
    parts = ["# Results", "", _told(own, story), *tables, "## The rows", "", _rows(own, names)]
    return "\n".join(parts)


def publish(text: str, out: Path, page: Path, figures: str) -> None:
    """Write a page with the other verbs' tables and the pictures of `out`; these go to `figures`."""
    beside = [(out / name).read_text(encoding="utf-8") for name in BESIDE if (out / name).is_file()]
    shown = []
    for name in PLOTS:
        picture = out / f"figure-{name}.png"
        if picture.is_file():
            home = page.parent / figures / picture.name
            if home.resolve() != picture.resolve():
                home.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(picture, home)
            shown.append(f"![{name}]({Path(figures) / picture.name})\n")
    page.parent.mkdir(parents=True, exist_ok=True)
    whole = [text, *beside, *(["## Figures\n", *shown] if shown else [])]
    page.write_text("\n".join(whole), encoding="utf-8")


def _told(records: Sequence[Record], story: Story) -> str:
    """The commands, and what the records say of where they come from."""
    settings = [record.setting for record in records if record.setting is not None]
    count = Counter(record.warm for record in records)
    told = {
        "model": {f"{s.model}, cloud {s.cloud_digest}, {_devices(settings)}" for s in settings},
        "engine": {f"{s.engine}, device with {s.threads} thread(s)" for s in settings},
        "machine": {s.machine for s in settings},
        "commit": {s.commit for s in settings},
        "images": {f"{count[True]} warm, {count[False]} cold (those are in no figure of time)"},
    }
    facts = [f"- {name}: {'; '.join(sorted(values))}" for name, values in told.items() if values]
    lines = ["```", *story.commands, "```", "", *facts, *(f"- {note}" for note in story.notes)]
    return "\n".join(lines) + "\n"


def _devices(settings: Sequence[Setting]) -> str:
    """The device model most images are of, and how many variants of it there are beside."""
    (usual, _), *others = Counter(setting.device_digest for setting in settings).most_common()
    return f"device {usual}" + (f" and {len(others)} variants" if others else "")


def _rows(records: Sequence[Record], names: Sequence[str]) -> str:
    """Row by row the flags it ran with, and how many images by link."""
    lines = ["| row | flags | images |", "| --- | --- | --- |"]
    for name in names:
        drawn = [record for record in records if record.row == name]
        own = [record for record in drawn if record.draws == drawn[-1].draws]  # of the last threshold settled
        if own:
            links = Counter(record.link for record in own)
            images = ", ".join(f"{link} {count}" for link, count in links.items())
            lines.append(f"| {name} | {_flags(own[0].flags['policy'])} | {images} |")
    return "\n".join(lines) + "\n"


def _flags(policy: Mapping[str, Any]) -> str:
    told = {key: value for key, value in policy.items() if value is not None and value != _USUAL.get(key, "")}
    return ", ".join(f"{key} {_short(value)}" for key, value in told.items())


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={part}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
