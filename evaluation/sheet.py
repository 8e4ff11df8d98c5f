"""A sheet to look at: prompts by seeds, drawn by the cloud model alone, with room for verdicts. Knows nothing
of servers.

The pictures are the ones `--mode cloud-only` draws for the same prompts and seeds, up to floating-point ties.
"""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from evaluation.critic import OTHERS, retrieval_ranks, scores, top_k
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest
from shared.models.critic import Critic
from shared.models.family import ImageModel
from shared.models.vq import VQModel, to_pixels
from training.base import sample

CHUNK = 16  # pictures drawn at once
SCALE, MARGIN, LINES, LINE_PX, CHARS = 2, 8, 3, 18, 32


@dataclass(frozen=True)
class Entry:
    """One picture: what was asked, what the critic makes of it, and the verdict of whoever looks."""

    prompt: str
    seed: int
    rank: int | None = None  # captions among the others that fit better
    score: float | None = None  # cosine
    verdict: str | None = None  # good, poor, wrong


@dataclass(frozen=True, eq=False)
class Sheet:
    """Entries row by row, one row a prompt; pixels [P * S, H, W, 3] uint8 in the same order."""

    entries: tuple[Entry, ...]
    pixels_BHW3: Tensor
    seeds: int

    @property
    def figures(self) -> dict[str, float]:
        """Retrieval of the true caption among the others, and the mean score; empty without a critic."""
        ranks = [entry.rank for entry in self.entries if entry.rank is not None]
        cosines = [entry.score for entry in self.entries if entry.score is not None]
        if not ranks:
            return {}
        return {"top1": top_k(ranks, 1), "top5": top_k(ranks, 5), "score": sum(cosines) / len(cosines)}


@torch.no_grad()
def draw_pictures(cloud: ImageModel, vq: VQModel, wanted: Sequence[tuple[str, int]], warp: Warp) -> Tensor:
    """Draw (prompt, seed) pairs: uint8 [B, H, W, 3]. Raises InvalidPrompt as the vocabulary does."""
    grid, drawn = cloud.config.grid, []
    for first in range(0, len(wanted), CHUNK):
        prompts, seeds = zip(*wanted[first : first + CHUNK], strict=True)
        tokens = sample(cloud, [*map(cloud.complete, prompts, seeds)], seeds, warp)
        drawn.append(to_pixels(vq.decode(tokens.reshape(-1, grid, grid))))
    return torch.cat(drawn)


def make_sheet(
    pair: tuple[ImageModel, VQModel], prompts: Sequence[str], seeds: int, warp: Warp, critic: Critic | None
) -> Sheet:
    """Draw every prompt with seeds 0 .. `seeds` - 1 and let the critic judge, where there is one."""
    wanted = list(itertools.product(prompts, range(seeds)))
    if not wanted:
        raise InvalidRequest(f"{len(prompts)} prompts and {seeds} seeds", "a sheet needs one of each")
    pixels = draw_pictures(*pair, wanted, warp)
    if critic is None:
        return Sheet(tuple(Entry(*pair) for pair in wanted), pixels, seeds)
    said = [prompt for prompt, _ in wanted]
    judged = zip(wanted, retrieval_ranks(critic, pixels, said), scores(critic, pixels, said), strict=True)
    entries = (Entry(prompt, seed, rank, round(score, 4)) for (prompt, seed), rank, score in judged)
    return Sheet(tuple(entries), pixels, seeds)


def grid_of(sheet: Sheet) -> Image.Image:
    """The sheet as one picture: a row per prompt, a column per seed, the caption under each."""
    _, height, width, _ = sheet.pixels_BHW3.shape
    cell = (SCALE * width + MARGIN, SCALE * height + LINES * LINE_PX + 2 * MARGIN)
    rows = len(sheet.entries) // sheet.seeds
    paper = Image.new("RGB", (sheet.seeds * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    pen, font = ImageDraw.Draw(paper), ImageFont.load_default(LINE_PX - 4)
    for place, (entry, pixels) in enumerate(zip(sheet.entries, sheet.pixels_BHW3, strict=True)):
        row, column = divmod(place, sheet.seeds)
        x, y = MARGIN + column * cell[0], MARGIN + row * cell[1]
        picture = Image.fromarray(pixels.numpy())
        paper.paste(picture.resize((SCALE * width, SCALE * height), Image.Resampling.NEAREST), (x, y))
        for line, text in enumerate(_caption(entry)):
            pen.text((x, y + SCALE * height + line * LINE_PX), text, fill="black", font=font)
    return paper


def _caption(entry: Entry) -> list[str]:
    lines = textwrap.wrap(entry.prompt, CHARS)[: LINES - 1]
    judged = "" if entry.rank is None else f", rank {entry.rank}, score {entry.score:.2f}"
    return [*lines, f"seed {entry.seed}{judged}"]


def markdown(sheet: Sheet) -> str:
    """A table to write verdicts into: a row per prompt, a column per seed, the critic's rank in brackets."""
    lines = [f"| prompt | {' | '.join(f'seed {seed}' for seed in range(sheet.seeds))} |"]
    lines.append(f"| --- |{' --- |' * sheet.seeds}")
    for first in range(0, len(sheet.entries), sheet.seeds):
        row = sheet.entries[first : first + sheet.seeds]
        cells = (" " if entry.rank is None else f"({entry.rank})" for entry in row)
        lines.append(f"| {row[0].prompt} | {' | '.join(cells)} |")
    if sheet.figures:
        told = ", ".join(f"{name} {value:.3f}" for name, value in sheet.figures.items())
        lines += [
            "",
            f"The critic, each caption among {OTHERS} others: {told}. In brackets: how many fit better.",
        ]
    return "\n".join([*lines, "", "Verdicts: good, poor, wrong."]) + "\n"


def write_sheet(sheet: Sheet, out: Path, about: Mapping[str, object]) -> None:
    """Write OUT.png, OUT.md and OUT.json (`about`, the figures, one entry a picture)."""
    out.parent.mkdir(parents=True, exist_ok=True)
    grid_of(sheet).save(out.with_suffix(".png"))
    out.with_suffix(".md").write_text(markdown(sheet), encoding="utf-8")
    record = {**about, "figures": sheet.figures, "pictures": [asdict(entry) for entry in sheet.entries]}
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
