"""From a table's value to its figures: which images it needs, who looks at them, where it is written. Knows
nothing of what the columns count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from evaluation.campaign import Campaign, Turn
from evaluation.columns import Sample
from evaluation.comparison import Body, Line, Matched, TableSpec, as_csv, fill, markdown
from evaluation.gallery import looks, pictures
from evaluation.metrics import Eye, Looks, Reference
from evaluation.paper import NO_VARIANT
from evaluation.policies import BASE
from evaluation.records import Record

REFERENCE_SEED = 100_000  # pictures of the base that others are held against
Images = Sequence[tuple[str, int]]  # prompts and seeds


def numbered(prompts: Sequence[str], count: int) -> list[tuple[str, int]]:
    """`count` images: prompts in turn, a seed of its own for each."""
    return [(prompts[seed % len(prompts)], seed) for seed in range(count)]


@dataclass
class Jury:
    """The eye that judges pictures and what it holds them against; each row is looked at once.

    Without a `reference` that is the base itself, on the same prompts with other seeds.
    """

    eye: Eye | None = None
    reference: Reference | None = None
    _seen: dict[tuple[str, ...], Looks] = field(default_factory=dict)

    def judge(self, campaign: Campaign, records: Sequence[Record], images: Images) -> Looks | None:
        """What the eye makes of these images; None where there is no eye."""
        if self.eye is None:
            return None
        key = tuple(f"{record.draws} {record.seed} {record.prompt}" for record in records)
        if key not in self._seen:
            vq, captions = campaign.package().vq, [prompt for prompt, _ in images]
            reference = self._against(campaign, self.eye, images)
            self._seen[key] = looks(self.eye, pictures(vq, records), captions, reference)
        return self._seen[key]

    def _against(self, campaign: Campaign, eye: Eye, images: Images) -> Reference:
        if self.reference is None:
            others = [(prompt, REFERENCE_SEED + seed) for prompt, seed in images]
            (records,) = campaign.records([Turn(BASE)], others, warm=False)
            self.reference = Reference(eye.look(pictures(campaign.package().vq, records)))
        return self.reference


def make_table(
    spec: TableSpec, campaign: Campaign, jury: Jury, images: Images
) -> tuple[TableSpec, Body]:
    """Draw what is missing and fill a table; it comes back with notes on these images."""
    turns = {place: _turn(line, campaign, images) for place, line in enumerate(spec.lines)}
    wanted: list[Turn] = []  # rows hold mappings, which have no hash
    for turn in turns.values():
        if isinstance(turn, Turn):
            wanted += [each for each in (Turn(BASE, turn.link), turn) if each not in wanted]
    records = campaign.records(wanted, images, warm=spec.timed)
    samples: dict[int, Sample | str] = {}
    for place, turn in turns.items():
        if isinstance(turn, str):
            samples[place] = turn
        else:
            ours, base = (records[wanted.index(each)] for each in (turn, Turn(BASE, turn.link)))
            samples[place] = _sample(campaign, jury, images, ours, base)
    return replace(spec, notes=(*spec.notes, *_notes(spec, samples, images))), fill(spec, samples)


def _notes(spec: TableSpec, samples: Mapping[int, Sample | str], images: Images) -> list[str]:
    """How many images there were, and what is to be known of their figures."""
    notes = [f"{len(images)} images a row; intervals are 95 %, by resampling images."]
    judged = [sample.looks for sample in samples.values() if isinstance(sample, Sample)]
    asked = any(column.title.endswith(("emoji", "base")) for column in spec.columns)
    if asked and not any(judged):
        notes.append("No critic: --critic names one, and the columns of quality are filled.")
    elif asked and any(look.biased for look in judged if look):
        notes.append("Fewer pictures than twice the features: read differences of FD-emoji, not its values.")
    return notes


def _turn(line: Line, campaign: Campaign, images: Images) -> Turn | str:
    """What a line draws, or why it does not."""
    if line.row is None:
        return line.why
    if not campaign.source.has(line.variant):
        return NO_VARIANT
    row = line.row
    if isinstance(row, Matched):
        row = campaign.matched(row.gate, row.budget, images)
    return Turn(row, line.link, line.variant)


def _sample(
    campaign: Campaign, jury: Jury, images: Images, records: Sequence[Record], base: Sequence[Record]
) -> Sample:
    ours, theirs = jury.judge(campaign, records, images), jury.judge(campaign, base, images)
    return Sample(tuple(records), tuple(base), ours, theirs)


def write_table(out: Path, spec: TableSpec, body: Body) -> str:
    """Write OUT/table-N.md and OUT/table-N.csv; returns the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(spec, body)
    (out / f"table-{spec.number}.md").write_text(text, encoding="utf-8")
    (out / f"table-{spec.number}.csv").write_text(as_csv(spec, body), encoding="utf-8")
    return text
