"""`ciar-eval table`, `plot` and `all`: what they share are the flags of a study."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_settings import CliImplicitFlag, CliPositionalArg
from rich.console import Console

from evaluation import sweeps
from evaluation.breakeven import break_even
from evaluation.campaign import Campaign, Source, Turn
from evaluation.gallery import read_pictures
from evaluation.metrics import CriticEye, Reference
from evaluation.page import PLOTS, Story, compose, publish, row_names
from evaluation.paper import LINKS, TABLES
from evaluation.plots import write_break_even, write_maps, write_picture, write_plot, write_waterfall
from evaluation.policies import PROMPTS
from evaluation.positions import acceptance_maps
from evaluation.records import Book, Record
from evaluation.report import Jury, make_table, numbered, write_table
from evaluation.showcase import picture_and_map, picture_rows
from evaluation.verbs.sheet import prompts_of
from shared.errors import InvalidRequest
from shared.models.critic import PIXELS, load_critic
from shared.models.zoo import find

QUICK_IMAGES, QUICK_LINKED = 5, 2
SWEEPS = ("thresholds", "prefix")
Images = list[tuple[str, int]]


class Study(BaseModel):
    """Flags of everything that draws images for a table or a figure."""

    model: str = Field("emoji", description="model name or folder")
    models: Path = Field(Path("~/.cache/ciar/models"), description="folder of fetched weights")
    variants: Path | None = Field(None, description="folder of device models for tables 5, 6 and 7")
    prompts: Path | None = Field(None, description="file with one prompt a line instead of the fixed ones")
    images: int = Field(len(PROMPTS), description="images a row: prompts in turn, seeds from 0", gt=0)
    critic: Path | None = Field(None, description="folder of a critic instead of the model's own")
    reference: Path | None = Field(None, description="folder of real pictures instead of the base's own")
    threads: int = Field(1, description="torch threads of the device", gt=0)
    compiled: CliImplicitFlag[bool] = Field(False, description="let the server compile its forwards")
    auroc: Path | None = Field(None, description="the JSON of ciar-eval auroc, for its figure")
    out: Path = Field(Path("results"), description="folder of records.jsonl, tables and figures")

    def wanted(self, count: int | None = None) -> Images:
        """Prompts and seeds."""
        prompts = prompts_of(self.prompts)
        if not prompts:
            raise InvalidRequest(f"no prompt in {self.prompts}", "one prompt a line is needed")
        return numbered(prompts, min(self.images, count or self.images))

    @contextmanager
    def campaign(self) -> Iterator[Campaign]:
        """The book of this folder and what fills it."""
        source = Source(self.model, self.models.expanduser(), self.variants, self.threads, self.compiled)
        book = Book(self.out / "records.jsonl")
        with Campaign(source, book, _tell, smoke=self.only_runs) as campaign:
            yield campaign

    @property
    def only_runs(self) -> bool:
        """Whether it is only to be seen that everything runs."""
        return False

    def jury(self) -> Jury:
        """The critic and its reference, where there is a critic."""
        folder = self.critic or find(self.model, self.models.expanduser()) / "critic"
        if self.critic is None and not folder.is_dir():
            return Jury()
        eye = CriticEye(load_critic(folder))
        if self.reference is None:
            return Jury(eye)
        return Jury(eye, Reference(eye.look(read_pictures(self.reference, PIXELS))))

    def table(self, number: int, campaign: Campaign, jury: Jury, count: int | None = None) -> str:
        """Fill and write one table."""
        spec = TABLES[number]
        if self.only_runs:
            spec = replace(spec, lines=tuple(line for line in spec.lines if line.link in _SMOKE_LINKS))
        return write_table(self.out, *make_table(spec, campaign, jury, self.wanted(count)))

    def draw(self, name: str, campaign: Campaign, count: int | None = None) -> None:
        """Draw and write one figure."""
        _DRAW[name](self, campaign, self.wanted(count))


def _tell(record: Record) -> None:
    image = f"{record.row}, {record.link}, {record.prompt!r}, seed {record.seed}"
    told = f"{image}: {record.counters.total_s:.2f} s"
    Console(stderr=True, highlight=False).print(told if record.warm else f"{told} (cold)")


def _thresholds(study: Study, campaign: Campaign, images: Images) -> None:
    write_plot(study.out, sweeps.thresholds(campaign, images))


def _prefix(study: Study, campaign: Campaign, images: Images) -> None:
    write_plot(study.out, sweeps.prefix(campaign, images))


def _auroc(study: Study, campaign: Campaign, images: Images) -> None:
    write_plot(study.out, sweeps.ranked_gates(study.auroc or study.out / "auroc.json"))


def _rtt(study: Study, campaign: Campaign, images: Images) -> None:
    plot = sweeps.round_trips(campaign, images, LINKS[:1] if study.only_runs else LINKS)
    write_plot(study.out, plot)
    sys.stdout.write("".join(f"{note}\n" for note in plot.notes))


def _breakeven(study: Study, campaign: Campaign, images: Images) -> None:
    write_break_even(study.out, break_even(campaign, images, LINKS))


def _acceptance(study: Study, campaign: Campaign, images: Images) -> None:
    write_maps(study.out, acceptance_maps(campaign, images))


def _pictures(study: Study, campaign: Campaign, images: Images) -> None:
    write_picture(study.out, "pictures", picture_rows(campaign, images))


def _map(study: Study, campaign: Campaign, images: Images) -> None:
    write_picture(study.out, "map", picture_and_map(campaign, images))


def _waterfall(study: Study, campaign: Campaign, images: Images) -> None:
    turns = [Turn(row, "4g") for row in sweeps.RIVALS]
    bars = {f"{turn.row.name}, 4g": sweeps.waterfall(campaign.watch(turn, images[0])) for turn in turns}
    write_waterfall(study.out, bars)


_SMOKE_LINKS = ("loopback", LINKS[0])
_DRAW: dict[str, Callable[[Study, Campaign, Images], None]] = dict(
    zip(
        PLOTS,
        (
            _thresholds,
            _prefix,
            _auroc,
            _rtt,
            _breakeven,
            _waterfall,
            _acceptance,
            _pictures,
            _map,
        ),
        strict=True,
    )
)


class Table(Study):
    """Fill one of the paper's tables over the real wire; what OUT/records.jsonl holds is not drawn again."""

    number: CliPositionalArg[int] = Field(description="1 to 8", ge=1, le=max(TABLES))

    def run(self) -> None:
        """Draw what is missing, write OUT/table-N.md and .csv, print the table."""
        with self.campaign() as campaign:
            sys.stdout.write(self.table(self.number, campaign, self.jury()))


class Draw(Study):
    """Draw one figure to OUT/figure-NAME.png, its numbers to .csv. `pictures` and `map` are drawn images."""

    name: CliPositionalArg[
        Literal[
            "thresholds", "prefix", "auroc", "rtt", "breakeven", "waterfall", "acceptance", "pictures", "map"
        ]
    ] = Field(description=f"one of {', '.join(PLOTS)}")

    def run(self) -> None:
        """Draw what is missing, write the figure."""
        with self.campaign() as campaign:
            self.draw(self.name, campaign)


class All(Study):
    """Every table and figure. The figure auroc only where its records are."""

    quick: CliImplicitFlag[bool] = Field(False, description="few images: to see what comes of it")
    smoke: CliImplicitFlag[bool] = Field(
        False, description="one cold image a row, one link: to see that it runs"
    )
    linked: int | None = Field(None, description="images a row over links", gt=0)
    swept: int | None = Field(None, description="images a point of the figures thresholds and prefix", gt=0)
    plots: list[str] = Field(list(PLOTS), description=f"of {', '.join(PLOTS)}")
    page: Path | None = Field(None, description="write the page here too, its figures to results/ beside it")
    note: str = Field("", description="what the page shall say of how the run went")

    @property
    def only_runs(self) -> bool:
        """As asked."""
        return self.smoke

    def run(self) -> None:
        """Write everything into OUT, and OUT/results.md with all tables."""
        count, linked = self._sizes()
        with self.campaign() as campaign:
            jury = self.jury()
            texts = [
                self.table(number, campaign, jury, linked if number == max(TABLES) else count)
                for number in sorted(TABLES)
            ]
            for name in self._plots():
                self.draw(name, campaign, (self.swept or linked) if name in SWEEPS else linked)
            text = compose(texts, campaign.book, row_names(TABLES.values()), self._story())
        publish(text, self.out, self.out / "results.md", "")
        if self.page:
            publish(text, self.out, self.page, "results")
        sys.stdout.write(text)

    def _sizes(self) -> tuple[int | None, int | None]:
        """Images of a table, and of a table over links or a figure."""
        if self.smoke:
            return 1, 1
        return (QUICK_IMAGES, self.linked or QUICK_LINKED) if self.quick else (None, self.linked)

    def _story(self) -> Story:
        size = " --smoke" if self.smoke else " --quick" if self.quick else f" --images {self.images}"
        linked = f" --linked {self.linked}" if self.linked else ""
        linked += f" --swept {self.swept}" if self.swept else ""
        command = f"ciar-eval all --model {self.model}{size}{linked} --out results"
        return Story([command], [self.note] if self.note else [])

    def _plots(self) -> Sequence[str]:
        told = (self.auroc or self.out / "auroc.json").is_file()
        return [name for name in PLOTS if name in self.plots and (told or name != "auroc")]
