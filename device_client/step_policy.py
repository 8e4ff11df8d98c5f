"""A decode policy of models by steps, as a value: which steps the cloud takes, what the device does between.

Knows nothing of models or networks.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.decoding.denoising import PRECISIONS, SCORES, due
from shared.errors import InvalidRequest

STEP_MODES = ("ciar", "exact", "cloud-only", "device-only", "ddim", "reuse", "extrapolate")
PREDICTORS = ("device", "reuse", "extrapolate")
DEFAULT_GATE = "radius"
DEFAULT_PREFIX = 1  # all that a device is trained to begin from
DEFAULT_GAP = 12


@dataclass(frozen=True)
class StepPolicy:
    """One row of a table. Raises InvalidRequest naming the offending value and the allowed ones.

    mode       the name it goes by, one of STEP_MODES
    prefix     steps that the cloud takes first; where the device goes on from them it hears of each
    predictor  what stands where the cloud is not asked: the device's model, the cloud's last noise again, or
               the line through its last two
    gate       a name in shared.decoding.denoising.SCORES: the estimate of a guess's error
    threshold  the cloud is asked before the risks since it was last asked add up to more than this
    max_gap    the cloud is asked at the latest after so many steps
    hindsight  what the last guess was off by mends the next ones
    calls      not None: instead of all that, so many steps of the cloud at equal distances
    precision  of what travels, one of PRECISIONS
    """

    mode: str
    prefix: int
    predictor: str = "device"
    gate: str = DEFAULT_GATE
    threshold: float = 0.0
    max_gap: int = DEFAULT_GAP
    hindsight: bool = False
    calls: int | None = None
    precision: str = "fp16"
    use_cloud: bool = True

    def __post_init__(self) -> None:
        allowed = {"mode": STEP_MODES, "predictor": PREDICTORS, "gate": SCORES, "precision": PRECISIONS}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                what = f"{name} {getattr(self, name)!r} is not allowed"
                raise InvalidRequest(what, f"allowed: {', '.join(values)}")
        if not (self.prefix >= 0 and self.max_gap >= 1 and self.threshold >= 0):
            what = f"prefix {self.prefix}, max_gap {self.max_gap}, threshold {self.threshold}"
            raise InvalidRequest(what, "allowed: from 0; from 1; from 0")
        if self.calls is not None and self.calls < 1:
            raise InvalidRequest(f"{self.calls} calls", "allowed: 1 and more")
        if self.use_cloud and not self.prefix:
            raise InvalidRequest("prefix 0", "allowed: from 1: the first step is always the cloud's")
        if not self.use_cloud and (self.prefix or self.predictor != "device"):
            what = f"predictor {self.predictor!r}, prefix {self.prefix} without a cloud"
            raise InvalidRequest(what, "allowed: device, 0")

    @property
    def opening(self) -> int:
        """Steps that the cloud takes when a session opens, of which the last one alone is heard of."""
        return 1 if self.guesses else self.prefix

    @property
    def guesses(self) -> bool:
        """Whether the device predicts anything: not where every step is the cloud's."""
        return self.gate != "always"

    def asks(self, step: int, steps: int, gap: int, owed: float) -> bool:
        """Whether a step of so many is the cloud's: `gap` steps behind its last one, so much risk owed."""
        if not self.use_cloud or self.gate == "always":
            return self.use_cloud
        if self.calls is not None:
            return (step * self.calls) // steps != ((step - 1) * self.calls) // steps
        if step < self.prefix:
            return True
        return self.gate != "never" and due(gap, self.max_gap, owed, self.threshold)


def ciar(
    threshold: float,
    gate: str = DEFAULT_GATE,
    prefix: int = DEFAULT_PREFIX,
    max_gap: int = DEFAULT_GAP,
    *,
    hindsight: bool = True,
) -> StepPolicy:
    """The device predicts how the cloud's noise changes; it asks before its risks exceed the threshold."""
    return StepPolicy(
        "ciar", prefix, gate=gate, threshold=threshold, max_gap=max_gap, hindsight=hindsight
    )


def exact() -> StepPolicy:
    """Every step is asked about: the cloud's own picture."""
    return StepPolicy("exact", 1, gate="always", precision="fp32")


def cloud_only(steps: int, mode: str = "cloud-only") -> StepPolicy:
    """The cloud takes all steps, in one message; `ddim` is the same on fewer steps."""
    return StepPolicy(mode, steps, gate="always", precision="fp32")


def device_only() -> StepPolicy:
    """The device takes all steps."""
    return StepPolicy("device-only", 0, gate="never", use_cloud=False)


def rival(predictor: str, calls: int) -> StepPolicy:
    """What needs no model on the device, with so many calls at equal distances."""
    return StepPolicy(predictor, 1, predictor, calls=calls)
