"""Row-parallel decoding (ZipAR, He et al. 2024): several rows of the image grow at once, one token each per
forward. Lossy: a row does not see what is still missing of the rows above it.

The first row is drawn alone, the second behind all of it; a later row begins once the row above is `window`
tokens ahead, or complete. The token before a row is then missing; until it is drawn, the last token of the
last complete row stands in for it. Columns of the cache that hold nothing yet are hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from cloud_server.layout import Layout
from cloud_server.session import Job, Session
from shared.decoding.acceptance import Judged, Judgement, Rule


class Canvas:
    """Tokens by place, with gaps, and what the cache holds of them."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.columns = math.isqrt(session.limits.image_tokens)
        self.tokens = dict(enumerate(session.tokens))
        self.cached: dict[int, int] = {}  # place -> token; a stand-in may be another than the image's

    def wanted(self) -> list[int]:
        """The next place of every row that can grow, within the prefix that was ordered."""
        end, columns = self.session.order.prefix_tokens, self.columns
        rows = range(-(-end // columns))
        counts = [self._count(row) for row in rows]
        growing = (row for row in rows if counts[row] < columns and self._may_grow(row, counts))
        return [place for row in growing if (place := row * columns + counts[row]) < end]

    def feed(self, wanted: list[int]) -> dict[int, int]:
        """What to feed so that these places can be drawn: tokens or stand-ins before them, and whatever is
        drawn and not in the cache."""
        stand_in = next((self.tokens[place] for place in self._complete_ends()), None)
        fed = {place: token for place, token in self.tokens.items() if self.cached.get(place) != token}
        for place in wanted:
            if place and place - 1 not in self.tokens:
                assert stand_in is not None, "a row with a stand-in begins behind a complete row"
                fed[place - 1] = stand_in
        return dict(sorted(fed.items()))

    def _may_grow(self, row: int, counts: list[int]) -> bool:
        ahead = self.columns if row == 1 else min(self.session.order.window, self.columns)
        return row == 0 or counts[row - 1] >= ahead

    def _count(self, row: int) -> int:
        """Tokens of a row; they are drawn from left to right."""
        start = row * self.columns
        return sum(start + column in self.tokens for column in range(self.columns))

    def _complete_ends(self) -> list[int]:
        """Last places of the complete rows, the lowest row first."""
        rows = range(self.session.limits.image_tokens // self.columns)
        return [(row + 1) * self.columns - 1 for row in rows if self._count(row) == self.columns][::-1]


@dataclass(frozen=True, eq=False)
class RowsJob(Job):
    """One token for every row that grows; `fed` are tokens by place, `wanted` the places to draw."""

    canvas: Canvas | None = None
    fed: dict[int, int] = field(default_factory=dict)
    wanted: tuple[int, ...] = ()

    @property
    def inputs(self) -> int:
        """New positions of the forward."""
        return len(self.fed) + max(self.session.prefix_rows - self.session.fed, 0)

    @property
    def rows(self) -> int:
        """Every token's, or the prompt's last one."""
        return max(len(self.fed), 1)

    def layout(self) -> Layout:
        """Every token sees what is drawn before it."""
        assert self.canvas is not None
        places = list(self.fed)
        held = {*self.canvas.cached, *places}
        hidden = [[before for before in range(place) if before not in held] for place in places]
        return Layout(list(self.fed.values()), places, places, hidden)

    def judge(self, rule: Rule, judged: Judged) -> Judgement:
        """Plain draws, each at its own place; they are the `guesses` of the judgement."""
        places, none_K = list(self.fed), judged.span_K[:0]
        rows = [places.index(place - 1) if place else 0 for place in self.wanted]
        each = (
            replace(judged, log_p_TV=judged.log_p_TV[row : row + 1], span_K=none_K, position=place)
            for row, place in zip(rows, self.wanted, strict=True)
        )
        tokens = (rule(one).token for one in each)
        return Judgement(0, None, tuple(token for token in tokens if token is not None))

    def commit(self, judgement: Judgement) -> None:
        """Put the tokens where they belong; the session owns them as far as there is no gap."""
        canvas, session = self.canvas, self.session
        assert canvas is not None
        canvas.cached |= self.fed
        canvas.tokens |= dict(zip(self.wanted, judgement.guesses, strict=True))
        while (token := canvas.tokens.get(len(session.tokens))) is not None:
            session.tokens.append(token)
        session.fed = max(session.fed, session.prefix_rows)
        while canvas.cached.get(place := session.fed - session.prefix_rows) == canvas.tokens.get(place, -1):
            session.fed += 1


class RowArtist:
    """Draws the prefix, mostly the whole image, in rows that overlap."""

    def __init__(self, session: Session) -> None:
        self._canvas = Canvas(session)

    def job(self) -> Job:
        """One more token for every row that can grow."""
        wanted = self._canvas.wanted()
        fed = self._canvas.feed(wanted)
        return RowsJob(
            self._canvas.session,
            np.array([*fed.values()], dtype=np.int32),
            canvas=self._canvas,
            fed=fed,
            wanted=tuple(wanted),
        )

    def take(self, judgement: Judgement) -> None:
        """The canvas remembers."""
