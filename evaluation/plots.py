"""Plots to PNG and CSV. Knows nothing of what they show. Needs matplotlib, the extra `eval`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.positions import GridMap
from evaluation.sweeps import Plot, Stretch
from shared.errors import CiarError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Paper
    from PIL.Image import Image

INCHES, DPI = (7.0, 4.5), 120
SQUARE = 4.4  # inches of a plot among others beside it
FEW = 12  # points of a curve, above which they are no longer dots
PAPER = "white"
COLOUR_COUNT = 256
COLOURS = {"device": "#4c9f70", "cloud": "#3b6ea5", "network": "#d9a441"}


def paper(rows: int = 1, columns: int = 1) -> tuple[Paper, Sequence[Axes]]:
    """An empty figure with plots under or beside each other. Raises CiarError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Paper
    except ImportError as error:
        raise CiarError("figures need matplotlib", "it is not here", 'pip install "ciar[eval]"') from error
    width = INCHES[0] if columns == 1 else SQUARE * columns
    height = 1.2 * rows + 1 if rows > 1 else SQUARE if columns > 1 else INCHES[1]
    figure = Paper(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, 1 + place) for place in range(rows * columns)]


def write_plot(out: Path, plot: Plot) -> None:
    """Write OUT/figure-NAME.png and .csv."""
    figure, (axes,) = paper()
    _draw(axes, plot)
    _save(out, plot.name, figure)
    rows = [[c.name, x, y.value, y.low, y.high] for c in plot.curves for x, y in c.points]
    _write_csv(out, plot.name, ["curve", plot.x_label, plot.y_label, "low", "high"], rows)


def write_break_even(out: Path, plots: Sequence[Plot]) -> None:
    """Write OUT/figure-breakeven.png and .csv: a row beside the other, the side where it wins in colour."""
    figure, panels = paper(columns=len(plots))
    top = 1.05 * max(y.value for plot in plots for curve in plot.curves for _, y in curve.points)
    for axes, plot in zip(panels, plots, strict=True):
        _draw(axes, plot)
        line = plot.curves[0].points
        axes.fill_between([x for x, _ in line], [y.value for _, y in line], alpha=0.12)
        axes.set(xlim=(0, line[-1][0]), ylim=(-0.02 * top, top))
    _save(out, "breakeven", figure)
    rows = [[p.title, c.name, x, y.value] for p in plots for c in p.curves for x, y in c.points]
    _write_csv(out, "breakeven", ["row", "curve", plots[0].x_label, plots[0].y_label], rows)


def _draw(axes: Axes, plot: Plot) -> None:
    lines = list(dict.fromkeys(curve.line for curve in plot.curves))
    for curve in filter(lambda curve: curve.points, plot.curves):
        colour = f"C{lines.index(curve.line)}"
        xs = [x for x, _ in curve.points]
        ys = [y.value for _, y in curve.points]
        bounds = [[y.value - y.low for _, y in curve.points], [y.high - y.value for _, y in curve.points]]
        axes.errorbar(
            xs,
            ys,
            yerr=bounds if any(map(any, bounds)) else None,
            label=curve.name,
            capsize=2,
            color=colour,
            marker="o" if curve.marked else "." if len(xs) <= FEW else "",
            markerfacecolor=PAPER if curve.hollow else colour,
            linestyle="none" if curve.marked else "-",
        )
    axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label, ylim=(0, None))
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def write_maps(out: Path, maps: Sequence[GridMap]) -> None:
    """Write OUT/figure-acceptance.png and .csv: shares by position, the grids beside each other."""
    figure, panels = paper(columns=len(maps))
    for axes, grid in zip(panels, maps, strict=True):
        image = axes.imshow(grid.shares, vmin=0, vmax=1, cmap="viridis")
        axes.set(title=f"{grid.name}\nmean {grid.mean:.0%}", xlabel="column of tokens")
        axes.title.set_fontsize("medium")
    panels[0].set_ylabel("row of tokens")
    figure.colorbar(image, ax=list(panels), shrink=0.8, format=lambda share, _: f"{share:.0%}")
    _save(out, "acceptance", figure)
    rows = [
        [grid.name, row, column, grid.shares[row, column], grid.counts[row, column]]
        for grid in maps
        for row, column in np.ndindex(grid.shares.shape)
    ]
    _write_csv(out, "acceptance", ["map", "row", "column", "share", "of tokens"], rows)


def write_waterfall(out: Path, bars: Mapping[str, Sequence[Stretch]]) -> None:
    """Write OUT/figure-waterfall.png and .csv: one bar a row, its stretches after each other."""
    figure, plots = paper(len(bars))
    longest_s = max(stretch.end_s for stretches in bars.values() for stretch in stretches)
    for axes, (name, stretches) in zip(plots, bars.items(), strict=True):
        told = []
        for who, colour in COLOURS.items():
            own = [(s.start_s, s.end_s - s.start_s) for s in stretches if s.who == who]
            axes.broken_barh(own, (0, 1), facecolors=colour, label=who)
            told.append(f"{who} {sum(length_s for _, length_s in own):.2f} s")
        axes.set_title(f"{name}: {', '.join(told)}", fontsize="medium", loc="left")
        axes.set(yticks=[], xlim=(0, 1.02 * longest_s), ylim=(0, 1))
        axes.spines[["left", "top", "right"]].set_visible(False)
        axes.tick_params(labelbottom=axes is plots[-1])
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside lower right", ncols=len(COLOURS))
    plots[-1].set_xlabel("seconds since the picture was asked for")
    _save(out, "waterfall", figure)
    rows = [[name, s.who, s.start_s, s.end_s] for name, stretches in bars.items() for s in stretches]
    _write_csv(out, "waterfall", ["row", "who", "start s", "end s"], rows)


def write_picture(out: Path, name: str, picture: Image) -> None:
    """Write OUT/figure-NAME.png, in few colours: it stands on a page."""
    out.mkdir(parents=True, exist_ok=True)
    picture.quantize(COLOUR_COUNT).save(out / f"figure-{name}.png", optimize=True)


def _save(out: Path, name: str, figure: Paper) -> None:
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"figure-{name}.png", dpi=DPI)


def _write_csv(out: Path, name: str, titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with (out / f"figure-{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(titles)
        writer.writerows(rows)
