"""How the threshold moves while an image is drawn: `fixed`, `budget`, `early`, `cost` (SPEC section 4).

Pure functions: each maps what was decided beforehand and what was measured so far to the tau of the next
token. Knows nothing of models, networks or clocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from device_client.progress import Counters
from shared.decoding.calibration import Calibration, GateTable
from shared.errors import InvalidRequest

REFERENCE_S = 0.02  # a round of this cost makes `cost` ask as `fixed` does


@dataclass(frozen=True)
class Situation:
    """An image in the making.

    length    tokens so far
    counters  of the image; `wait_s` with the opening
    opened_s  seconds of `wait_s` that went by until the session was open
    """

    length: int
    counters: Counters
    opened_s: float

    @property
    def round_s(self) -> float:
        """Mean seconds that asking has cost: waiting, and drafting what was rejected. The reference round
        counts as one measurement, so that the first real one does not decide alone."""
        counters = self.counters
        step_s = counters.device_s / max(counters.kept + counters.judged, 1)
        spent_s = counters.wait_s - self.opened_s + step_s * (counters.judged - counters.accepted)
        return (REFERENCE_S + spent_s) / (1 + counters.rounds)


@dataclass(frozen=True)
class Pacing:
    """What was decided beforehand: the tau of the calibrated budget, the budget, and the gate's table.

    prefix_share  of the images that the table was calibrated on: forwards per token spent before any asking
    """

    threshold: float
    budget: float | None = None
    table: GateTable | None = None
    prefix_share: float = 0.0


Pace = Callable[[Pacing, Situation], float]


def fixed(pacing: Pacing, _: Situation) -> float:
    """The same tau for every token."""
    return pacing.threshold


def budget(pacing: Pacing, now: Situation) -> float:
    """The tau whose calibrated rate spends what is left of the budget on the tokens that are left.

    +inf (ask nothing) once it is spent, -inf (ask everything) where more is left than any calibrated rate
    would spend: so the share of forwards of the finished image comes close to the budget even where the
    calibration is off.
    """
    assert pacing.table is not None and pacing.budget is not None
    tokens = now.counters.image_tokens
    left = pacing.budget * tokens - now.counters.cloud_forwards
    if left < 1:
        return math.inf
    rate = left / max(tokens - now.length, 1)
    wanted = pacing.prefix_share + (1 - pacing.prefix_share) * rate
    return pacing.table.threshold(wanted) if wanted <= pacing.table.budgets[-1] else -math.inf


def early(pacing: Pacing, now: Situation) -> float:
    """Ask about everything while the budget lasts, about nothing afterwards.

    A wrong token spoils what follows it and nothing before it, so mistakes are cheapest at the end; which
    tokens are asked about matters less than when. The last round may spend more than was left.
    """
    assert pacing.budget is not None
    left = pacing.budget * now.counters.image_tokens - now.counters.cloud_forwards
    return -math.inf if left >= 1 else math.inf


def cost(pacing: Pacing, now: Situation) -> float:
    """Ask iff the expected harm is worth the measured round.

    A wrong token is worth as many seconds as make the fixed tau break even at REFERENCE_S; so a round twice
    as dear needs twice the probability that the draws differ.
    """
    assert pacing.table is not None
    harm = 1 - pacing.table.agreement(pacing.threshold)
    return pacing.table.score_of(harm * now.round_s / REFERENCE_S)


PACES: Mapping[str, Pace] = MappingProxyType({"fixed": fixed, "budget": budget, "early": early, "cost": cost})


def pace(name: str) -> Pace:
    """The pace of that name. Raises InvalidRequest naming the allowed ones."""
    if name not in PACES:
        raise InvalidRequest(f"unknown policy {name!r}", f"allowed: {', '.join(PACES)}")
    return PACES[name]


def pacing_for(threshold: float, budget: float | None, gate: str, calibration: Calibration) -> Pacing:
    """What the paces of one image need; the table is missing for gates that have none."""
    return Pacing(threshold, budget, calibration.gates.get(gate), calibration.prefix_share)
