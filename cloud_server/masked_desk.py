"""The desk of models of continuous tokens: the engine in its thread, one seat per image. Knows no wire."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from cloud_server.desk import Seat
from cloud_server.masked_engine import MAX_SPAN, MaskedEngine, MaskedSession
from cloud_server.masked_judge import STATES
from cloud_server.memory import Need, shapes
from cloud_server.pass_desk import PassDesk
from cloud_server.scheduler import in_turn
from cloud_server.telemetry import Telemetry
from shared.continuous import Values
from shared.messages import Draft, Open, Opened, Usage, Verdict, no_tokens
from shared.models.by_mask import load_shape
from shared.models.checkpoint import WEIGHTS

_ROWS = 2  # guidance


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
    passes = _ROWS * (MAX_SPAN + 1) * places * wide * 4
    heads = _ROWS * STATES * 6 * config.head_width * 4
    return Need(weights, 0, config.tokens * config.token_dim * 4, max(passes, heads))


class MaskedDesk(PassDesk):
    """Images of one MAR."""

    def __init__(self, engine: MaskedEngine, telemetry: Telemetry, limit_s: float) -> None:
        super().__init__(telemetry, limit_s, _ROWS)
        self.engine = engine

    async def open(self, order: Open) -> Seat:
        """A session of the engine; a caller that is cancelled meanwhile leaves nothing open."""
        engine = self.engine
        return MaskedSeat(self, await in_turn(self._thread, lambda: engine.open(order), engine.close))

    def close(self, session: MaskedSession) -> None:
        """Forget a session behind whatever runs now."""
        self._thread.submit(lambda: self.engine.close(session))


class MaskedSeat:
    """One session."""

    def __init__(self, desk: MaskedDesk, session: MaskedSession) -> None:
        self._desk, self._session = desk, session

    @property
    def rates(self) -> tuple[float, float] | None:
        """None: a pass is a window here, not a token."""
        return None

    @property
    def story(self) -> str:
        """Name, tokens and costs; and tokens whose law is the cloud's only nearly."""
        session = self._session
        cost = f"{session.forwards} passes, {session.cloud_s:.2f} s of model time"
        fallbacks = f", {session.fallbacks} fallbacks" if session.fallbacks else ""
        return f"{session.name}: {session.image.known} tokens, {cost}{fallbacks}"

    async def begin(self) -> Opened:
        """Draw the windows that are missing of the prefix, one pass each."""
        session, engine = self._session, self._desk.engine
        drawn: list[Values] = []
        while session.image.known < session.order.prefix_tokens:
            drawn.append(await self._desk.run(lambda: engine.draw(session), session))
        values = np.concatenate(drawn) if drawn else None
        costs = session.forwards, session.cloud_s
        return Opened(session.name, session.image.offsets[-1], no_tokens(), *costs, values=values)

    async def judge(self, draft: Draft) -> tuple[Verdict, bool]:
        """Judge a span once; a repeated round gets its verdict again."""
        session, engine = self._session, self._desk.engine
        if (known := session.answers.given(draft)) is not None:
            return known, False
        session.check(draft)
        return await self._desk.run(lambda: engine.judge(session, draft), session), True

    def usage(self) -> Usage:
        """As the session counts."""
        return self._session.usage()

    def leave(self) -> None:
        """Forget the session."""
        self._desk.close(self._session)
