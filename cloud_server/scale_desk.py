"""The desk of models by scales: the engine in its thread, one seat per image. Knows no wire."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from cloud_server.checks import check_ids
from cloud_server.desk import Seat
from cloud_server.memory import Need, shapes
from cloud_server.pass_desk import PassDesk
from cloud_server.scale_engine import ScaleEngine, ScaleSession
from cloud_server.scheduler import in_turn
from cloud_server.telemetry import Telemetry
from shared.config import from_dict
from shared.errors import InvalidDraft
from shared.messages import Draft, Open, Opened, Usage, Verdict
from shared.models.checkpoint import WEIGHTS, read_config
from shared.models.families.var import VARConfig

_ROWS = 2  # guidance


def need(folder: Path) -> Need:
    """What serving the model folder takes, in fp32 on the CPU. Raises ModelUnavailable."""
    config = from_dict(VARConfig, read_config(folder / "cloud", "cloud")["model"])
    files = (folder / "cloud" / WEIGHTS, folder / "vae" / WEIGHTS)
    weights = 4 * sum(prod(shape) for file in files for _, shape in shapes(file))
    cache = _ROWS * 2 * config.depth * config.tokens * config.dim * 4
    widest = 4 * config.vocab_size + 2 * config.hidden + 5 * config.dim
    return Need(weights, 0, cache, _ROWS * config.tokens * widest * 4)


class ScaleDesk(PassDesk):
    """Images of one VAR."""

    def __init__(self, engine: ScaleEngine, telemetry: Telemetry, limit_s: float) -> None:
        super().__init__(telemetry, limit_s, _ROWS)
        self.engine = engine

    async def open(self, order: Open) -> Seat:
        """A session of the engine; a caller that is cancelled meanwhile leaves nothing open."""
        engine = self.engine
        return ScaleSeat(self, await in_turn(self._thread, lambda: engine.open(order), engine.close))

    def close(self, session: ScaleSession) -> None:
        """Forget a session behind whatever runs now."""
        self._thread.submit(lambda: self.engine.close(session))


class ScaleSeat:
    """One session."""

    def __init__(self, desk: ScaleDesk, session: ScaleSession) -> None:
        self._desk, self._session = desk, session

    @property
    def rates(self) -> tuple[float, float] | None:
        """None: a pass is a scale here, not a token."""
        return None

    @property
    def story(self) -> str:
        """Name, tokens and costs."""
        session = self._session
        cost = f"{session.forwards} passes, {session.cloud_s:.2f} s of model time"
        return f"{session.name}: {len(session.tokens)} tokens, {cost}"

    async def begin(self) -> Opened:
        """Draw the scales that are missing of the prefix, one pass each."""
        session, engine = self._session, self._desk.engine
        owned = len(session.tokens)
        while len(session.tokens) < session.order.prefix_tokens:
            await self._desk.run(lambda: engine.draw(session), session)
        prefix = np.array(session.tokens[owned:], dtype=np.int32)
        costs = session.forwards, session.cloud_s
        return Opened(session.name, session.config.tokens, prefix, *costs, by_scale=True)

    async def judge(self, draft: Draft) -> tuple[Verdict, bool]:
        """Judge a scale once; a repeated round gets its verdict again."""
        session, engine = self._session, self._desk.engine
        if (known := session.answers.given(draft)) is not None:
            return known, False
        session.check(draft)
        for tokens, name in ((draft.span, "the span"), (draft.catch_up, "the catch-up")):
            check_ids(tokens, engine.limits, name, InvalidDraft)
        return await self._desk.run(lambda: engine.judge(session, draft), session), True

    def usage(self) -> Usage:
        """As the session counts."""
        return self._session.usage()

    def leave(self) -> None:
        """Forget the session."""
        self._desk.close(self._session)
