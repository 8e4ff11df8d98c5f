"""Models by steps at the desk: what serving one takes, and the seat of an image. Knows no wire."""

from __future__ import annotations

from math import prod
from pathlib import Path

from cloud_server.memory import Need, shapes
from cloud_server.pass_desk import ROWS, PassSeat
from cloud_server.step_engine import REMEMBERED, StepEngine, StepSession
from shared.config import from_dict
from shared.messages import Draft, Opened, Output, Verdict, no_tokens
from shared.models.checkpoint import WEIGHTS, read_config
from shared.models.families.dit import DiTConfig

_LATENTS = 3 * (REMEMBERED + 1)  # of a session and of its last answers


def need(folder: Path) -> Need:
    """What serving the model folder takes, in fp32 on the CPU. Raises ModelUnavailable."""
    config = from_dict(DiTConfig, read_config(folder / "cloud", "cloud")["model"])
    weights = 4 * sum(prod(shape) for _, shape in shapes(folder / "cloud" / WEIGHTS))
    patches, latent = (config.side // config.patch) ** 2, config.channels * config.side**2
    wide = max(2 * config.hidden, 3 * config.dim) + 3 * config.dim + config.heads * patches
    return Need(weights, 0, 4 * _LATENTS * latent, ROWS * patches * wide * 4)


class StepSeat(PassSeat[StepEngine, StepSession]):
    """One image of a DiT."""

    async def begin(self) -> Opened:
        """Take the steps of the prefix."""
        session, count = self._session, self._session.order.prefix_tokens
        output = await self._output(count) if count else None
        costs = session.forwards, session.cloud_s
        return Opened(session.name, len(session.process), no_tokens(), *costs, output=output)

    async def _verdict(self, draft: Draft) -> Verdict:
        """Take the steps that the draft asks for."""
        session = self._session
        assert draft.steps is not None, "checked by the session"
        session.stand(draft)
        before_s, count = session.cloud_s, draft.steps.count
        output = await self._output(count)
        spent_s = session.cloud_s - before_s
        return session.record(
            draft, Verdict(draft.round, 0, None, spent_s, cloud_forwards=count, output=output)
        )

    async def _output(self, count: int) -> Output:
        """What the last of so many passes said; between two of them the other sessions have their turn."""
        session, engine = self._session, self._engine
        for _ in range(count - 1):
            await self._pass(lambda: engine.look(session))
        last = await self._pass(lambda: engine.look(session))
        return last.output(session.sampling.precision, with_state=count > 1)
