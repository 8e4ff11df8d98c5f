"""Who decided which place of the picture, over many images. Knows nothing of colours."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from device_client.progress import Source
from evaluation.campaign import Campaign, Turn
from evaluation.policies import CIAR, EXACT, Row
from evaluation.report import Images

JUDGED = (Source.VERIFIED, Source.CORRECTED)


@dataclass(frozen=True)
class GridMap:
    """By position, row by row: a share, and of how many tokens. NaN where there was none."""

    name: str
    shares: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def mean(self) -> float:
        """The share over all positions."""
        return float(np.nansum(self.shares * self.counts) / max(self.counts.sum(), 1))


def share_map(
    name: str, sources_NT: NDArray[np.int64], of: Collection[Source], among: Collection[Source]
) -> GridMap:
    """The share of tokens that are one of `of` among those that are one of `among`; N square images."""
    side = round(sources_NT.shape[1] ** 0.5)
    counts_T = np.isin(sources_NT, list(among)).sum(0)
    hits_T = np.isin(sources_NT, list(of)).sum(0)
    shares_T = np.where(counts_T, hits_T / np.maximum(counts_T, 1), np.nan)
    return GridMap(name, shares_T.reshape(side, side), counts_T.reshape(side, side))


def acceptance_maps(campaign: Campaign, images: Images) -> list[GridMap]:
    """Where drafts stand in mode exact; where mode ciar keeps tokens, and whether they stood where it asked.

    A place counts once: what was drafted behind a rejected token and drawn again is not in here.
    """
    exact, ciar = (_sources(campaign, row, images) for row in (EXACT[0], CIAR))
    return [
        share_map("exact: the draft stood", exact, {Source.VERIFIED}, JUDGED),
        share_map("ciar: kept on the device", ciar, {Source.KEPT}, set(Source) - {Source.PREFIX}),
        share_map("ciar: the draft stood, where asked", ciar, {Source.VERIFIED}, JUDGED),
    ]


def _sources(campaign: Campaign, row: Row, images: Images) -> NDArray[np.int64]:
    drawn: Sequence[Sequence[Source]] = [campaign.watch(Turn(row), image)[-1].sources for image in images]
    return np.array(drawn, dtype=np.int64)
