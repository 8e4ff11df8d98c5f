"""Models of continuous tokens at the desk: what serving one takes, the seat of an image. Knows no wire."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from cloud_server.masked_engine import MAX_SPAN, MaskedEngine, MaskedSession
from cloud_server.masked_judge import STATES
from cloud_server.memory import Need, shapes
from cloud_server.pass_desk import ROWS, PassSeat
from shared.continuous import Values
from shared.messages import Draft, Opened, Verdict, no_tokens
from shared.models.by_mask import load_shape
from shared.models.checkpoint import WEIGHTS


def need(folder: Path) -> Need:
    """What serving the model folder takes, in fp32 on the CPU. Raises ModelUnavailable."""
    config = load_shape(folder / "cloud")
    weights = 4 * sum(prod(shape) for _, shape in shapes(folder / "cloud" / WEIGHTS))
    device = folder / "device" / WEIGHTS
    if device.is_file():
        weights += 4 * sum(prod(shape) for name, shape in shapes(device) if name.startswith("diffloss."))
    places = config.buffer + config.tokens
    towers = (config.encoder, config.decoder)
    wide = max(4 * tower.dim + tower.hidden + tower.heads * places for tower in towers)
    passes = ROWS * (MAX_SPAN + 1) * places * wide * 4
    heads = ROWS * STATES * 6 * config.head_width * 4
    return Need(weights, 0, config.tokens * config.token_dim * 4, max(passes, heads))


class MaskedSeat(PassSeat[MaskedEngine, MaskedSession]):
    """One image of a MAR."""

    async def begin(self) -> Opened:
        """Draw the windows that are missing of the prefix, one pass each."""
        session, engine = self._session, self._engine
        drawn: list[Values] = []
        while session.image.known < session.order.prefix_tokens:
            drawn.append(await self._pass(lambda: engine.draw(session)))
        values = np.concatenate(drawn) if drawn else None
        costs = session.forwards, session.cloud_s
        return Opened(session.name, session.image.offsets[-1], no_tokens(), *costs, values=values)

    async def _verdict(self, draft: Draft) -> Verdict:
        session, engine = self._session, self._engine
        return await self._pass(lambda: engine.judge(session, draft))
