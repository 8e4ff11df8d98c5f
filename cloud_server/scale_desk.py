"""Models by scales at the desk: what serving one takes, and the seat of an image. Knows no wire."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from cloud_server.checks import check_ids
from cloud_server.memory import Need, shapes
from cloud_server.pass_desk import ROWS, PassSeat
from cloud_server.scale_engine import ScaleEngine, ScaleSession
from shared.errors import InvalidDraft
from shared.messages import Draft, Opened, Verdict
from shared.models.by_scale import load_scale_shape
from shared.models.checkpoint import WEIGHTS


def need(folder: Path) -> Need:
    """What serving the model folder takes, in fp32 on the CPU. Raises ModelUnavailable."""
    config = load_scale_shape(folder / "cloud")
    files = (folder / "cloud" / WEIGHTS, folder / "vae" / WEIGHTS)
    weights = 4 * sum(prod(shape) for file in files for _, shape in shapes(file))
    cache = ROWS * 2 * config.depth * config.tokens * config.dim * 4
    widest = 4 * config.vocab_size + 2 * config.hidden + 5 * config.dim
    return Need(weights, 0, cache, ROWS * config.tokens * widest * 4)


class ScaleSeat(PassSeat[ScaleEngine, ScaleSession]):
    """One image of a VAR."""

    async def begin(self) -> Opened:
        """Draw the scales that are missing of the prefix, one pass each."""
        session, engine = self._session, self._engine
        owned = len(session.tokens)
        while len(session.tokens) < session.order.prefix_tokens:
            await self._pass(lambda: engine.draw(session))
        prefix = np.array(session.tokens[owned:], dtype=np.int32)
        costs = session.forwards, session.cloud_s
        return Opened(session.name, session.config.tokens, prefix, *costs, by_scale=True)

    async def _verdict(self, draft: Draft) -> Verdict:
        session, engine = self._session, self._engine
        for tokens, name in ((draft.span, "the span"), (draft.catch_up, "the catch-up")):
            check_ids(tokens, engine.limits, name, InvalidDraft)
        return await self._pass(lambda: engine.judge(session, draft))
