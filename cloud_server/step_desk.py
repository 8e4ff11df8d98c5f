"""The desk of models by steps: the engine in its thread, one seat per image. Knows no wire."""

from __future__ import annotations

from math import prod
from pathlib import Path

from cloud_server.desk import Seat
from cloud_server.memory import Need, shapes
from cloud_server.pass_desk import PassDesk
from cloud_server.scheduler import in_turn
from cloud_server.step_engine import REMEMBERED, Look, StepEngine, StepSession
from cloud_server.telemetry import Telemetry
from shared.config import from_dict
from shared.messages import Draft, Open, Opened, Usage, Verdict, no_tokens
from shared.models.checkpoint import WEIGHTS, read_config
from shared.models.families.dit import DiTConfig

_ROWS = 2  # guidance
_LATENTS = 3 * (REMEMBERED + 1)  # of a session and of its last answers


def need(folder: Path) -> Need:
    """What serving the model folder takes, in fp32 on the CPU. Raises ModelUnavailable."""
    config = from_dict(DiTConfig, read_config(folder / "cloud", "cloud")["model"])
    weights = 4 * sum(prod(shape) for _, shape in shapes(folder / "cloud" / WEIGHTS))
    patches, latent = (config.side // config.patch) ** 2, config.channels * config.side**2
    wide = max(2 * config.hidden, 3 * config.dim) + 3 * config.dim + config.heads * patches
    return Need(weights, 0, 4 * _LATENTS * latent, _ROWS * patches * wide * 4)


class StepDesk(PassDesk):
    """Images of one DiT."""

    def __init__(self, engine: StepEngine, telemetry: Telemetry, limit_s: float) -> None:
        super().__init__(telemetry, limit_s, _ROWS)
        self.engine = engine

    async def open(self, order: Open) -> Seat:
        """A session of the engine; a caller that is cancelled meanwhile leaves nothing open."""
        engine = self.engine
        return StepSeat(self, await in_turn(self._thread, lambda: engine.open(order), engine.close))

    def close(self, session: StepSession) -> None:
        """Forget a session behind whatever runs now."""
        self._thread.submit(lambda: self.engine.close(session))


class StepSeat:
    """One session."""

    def __init__(self, desk: StepDesk, session: StepSession) -> None:
        self._desk, self._session = desk, session

    @property
    def rates(self) -> tuple[float, float] | None:
        """None: a pass is a step here, not a token."""
        return None

    @property
    def story(self) -> str:
        """Name, steps and costs."""
        session = self._session
        cost = f"{session.forwards} passes, {session.cloud_s:.2f} s of model time"
        return f"{session.name}: at step {session.step} of {len(session.process)}, {cost}"

    async def begin(self) -> Opened:
        """Take the steps of the prefix."""
        session, count = self._session, self._session.order.prefix_tokens
        output = None
        if count:
            last = await self._looks(count)
            output = last.output(session.sampling.precision, with_state=count > 1)
        costs = session.forwards, session.cloud_s
        return Opened(session.name, len(session.process), no_tokens(), *costs, output=output)

    async def judge(self, draft: Draft) -> tuple[Verdict, bool]:
        """Take the steps a draft asks for, once; a repeated round gets its answer again."""
        session = self._session
        if (known := session.answers.given(draft)) is not None:
            return known, False
        session.check(draft)
        assert draft.steps is not None
        session.stand(draft)
        before_s, count = session.cloud_s, draft.steps.count
        last = await self._looks(count)
        output = last.output(session.sampling.precision, with_state=count > 1)
        session.rounds += 1
        spent_s = session.cloud_s - before_s
        verdict = Verdict(draft.round, 0, None, spent_s, cloud_forwards=count, output=output)
        return session.answers.keep(draft, verdict), True

    def usage(self) -> Usage:
        """As the session counts."""
        return self._session.usage()

    def leave(self) -> None:
        """Forget the session."""
        self._desk.close(self._session)

    async def _looks(self, count: int) -> Look:
        """So many passes; between two of them the other sessions have their turn."""
        desk, session = self._desk, self._session
        for _ in range(count - 1):
            await desk.run(lambda: desk.engine.look(session), session)
        return await desk.run(lambda: desk.engine.look(session), session)
