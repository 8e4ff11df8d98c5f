"""Plots to PNG and CSV. Knows nothing of what they show. Needs matplotlib, the extra `eval`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.sweeps import Plot, Stretch
from shared.errors import CiarError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Paper

INCHES, DPI = (7.0, 4.5), 120
COLOURS = {"device": "#4c9f70", "cloud": "#3b6ea5", "network": "#d9a441"}


def paper(rows: int = 1) -> tuple[Paper, Sequence[Axes]]:
    """An empty figure with `rows` plots under each other. Raises CiarError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Paper
    except ImportError as error:
        raise CiarError("figures need matplotlib", "it is not here", 'pip install "ciar[eval]"') from error
    figure = Paper(figsize=(INCHES[0], INCHES[1] if rows == 1 else 1.2 * rows + 1), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, 1, 1 + row) for row in range(rows)]


def write_plot(out: Path, plot: Plot) -> None:
    """Write OUT/figure-NAME.png and .csv."""
    figure, (axes,) = paper()
    lines = list(dict.fromkeys(curve.line for curve in plot.curves))
    for curve in plot.curves:
        xs = [x for x, _ in curve.points]
        ys = [y.value for _, y in curve.points]
        bounds = [[y.value - y.low for _, y in curve.points], [y.high - y.value for _, y in curve.points]]
        axes.errorbar(
            xs,
            ys,
            yerr=bounds,
            label=curve.name,
            capsize=2,
            color=f"C{lines.index(curve.line)}",
            marker="o" if curve.marked else ".",
            linestyle="none" if curve.marked else "-",
        )
    axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label, ylim=(0, None))
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    _save(out, plot.name, figure)
    rows = [[c.name, x, y.value, y.low, y.high] for c in plot.curves for x, y in c.points]
    _write_csv(out, plot.name, ["curve", plot.x_label, plot.y_label, "low", "high"], rows)


def write_waterfall(out: Path, bars: Mapping[str, Sequence[Stretch]]) -> None:
    """Write OUT/figure-waterfall.png and .csv: one bar a row, its stretches after each other."""
    figure, plots = paper(len(bars))
    longest_s = max(stretch.end_s for stretches in bars.values() for stretch in stretches)
    for axes, (name, stretches) in zip(plots, bars.items(), strict=True):
        for who, colour in COLOURS.items():
            own = [(s.start_s, s.end_s - s.start_s) for s in stretches if s.who == who]
            axes.broken_barh(own, (0, 1), facecolors=colour, label=who)
        axes.set(title=name, yticks=[], xlim=(0, longest_s))
        axes.title.set_fontsize("small")
    plots[0].legend(fontsize="x-small", loc="upper right", ncols=len(COLOURS))
    plots[-1].set_xlabel("seconds")
    _save(out, "waterfall", figure)
    rows = [[name, s.who, s.start_s, s.end_s] for name, stretches in bars.items() for s in stretches]
    _write_csv(out, "waterfall", ["row", "who", "start s", "end s"], rows)


def _save(out: Path, name: str, figure: Paper) -> None:
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"figure-{name}.png", dpi=DPI)


def _write_csv(out: Path, name: str, titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with (out / f"figure-{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(titles)
        writer.writerows(rows)
