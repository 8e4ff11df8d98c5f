"""A decode policy of models of continuous tokens, as a value: the modes of continuous speculative decoding.
Knows nothing of models or networks.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.continuous import Masking
from shared.decoding.continuous import ACCEPTANCES, TOLERANCE
from shared.errors import InvalidRequest

MASKED_MODES = ("cspd", "exact", "published", "hand-over", "cloud-only", "device-only")
DEFAULT_PREFIX = 2
DEFAULT_WINDOW = 4
DEFAULT_STRIDE = 4  # as many drafts stand as with 1, at a third of the passes
WHOLE = 2**16  # a stride longer than any window


@dataclass(frozen=True)
class MaskedPolicy:
    """One row of a table. Raises InvalidRequest naming the offending value and the allowed ones.

    mode        the name it goes by, one of MASKED_MODES
    masking     the cloud's windows, the head's steps, the tolerance
    acceptance  one of ACCEPTANCES: the law of whatever the cloud draws and judges
    prefix      windows that the cloud draws first
    stride      tokens that the device drafts in one pass of its own: what it knows of those before
    window      tokens of a span, where the windows are single tokens: "trajectory"
    judged      whether drafts are sent at all
    """

    mode: str
    masking: Masking
    acceptance: str = "aligned"
    prefix: int = 0
    stride: int = 1
    window: int = DEFAULT_WINDOW
    judged: bool = True
    use_cloud: bool = True

    def __post_init__(self) -> None:
        allowed = {"mode": MASKED_MODES, "acceptance": ACCEPTANCES}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                what = f"{name} {getattr(self, name)!r} is not allowed"
                raise InvalidRequest(what, f"allowed: {', '.join(values)}")
        if self.prefix < 0 or self.stride < 1 or self.window < 1:
            what = f"prefix {self.prefix}, stride {self.stride}, window {self.window}"
            raise InvalidRequest(what, "allowed: from 0; from 1; from 1")
        if not self.use_cloud and (self.prefix or self.judged):
            raise InvalidRequest("prefix or judged drafts without a cloud", "allowed: neither")


@dataclass(frozen=True)
class Drawing:
    """What is common to all modes: how the head draws and how guidance grows."""

    head_steps: int = 100
    schedule: str = "linear"
    clip: float = 0.0

    def masking(self, steps: int, tolerance: float = 0.0) -> Masking:
        """The masking of so many windows."""
        return Masking(steps, self.head_steps, self.schedule, tolerance, self.clip)


PLAIN = Drawing()


def cspd(
    steps: int,
    tolerance: float = TOLERANCE,
    prefix: int = DEFAULT_PREFIX,
    drawing: Drawing = PLAIN,
    stride: int = DEFAULT_STRIDE,
) -> MaskedPolicy:
    """Tolerant aligned: every token within the stated mean distance of the cloud's own."""
    return MaskedPolicy("cspd", drawing.masking(steps, tolerance), prefix=prefix, stride=stride)


def exact(tokens: int, window: int = DEFAULT_WINDOW, drawing: Drawing = PLAIN) -> MaskedPolicy:
    """Whole trajectories are judged: the law of the cloud alone, one token a step."""
    return MaskedPolicy("exact", drawing.masking(tokens), "trajectory", window=window)


def published(steps: int, prefix: int = DEFAULT_PREFIX, drawing: Drawing = PLAIN) -> MaskedPolicy:
    """The published arithmetic, for comparison."""
    return MaskedPolicy("published", drawing.masking(steps), "published", prefix)


def hand_over(steps: int, prefix: int, drawing: Drawing = PLAIN) -> MaskedPolicy:
    """The cloud begins, the device ends."""
    return MaskedPolicy("hand-over", drawing.masking(steps), prefix=prefix, judged=False)


def cloud_only(steps: int, drawing: Drawing = PLAIN) -> MaskedPolicy:
    """The cloud alone, in so many steps."""
    return MaskedPolicy("cloud-only", drawing.masking(steps), prefix=steps, judged=False)


def device_only(steps: int, drawing: Drawing = PLAIN) -> MaskedPolicy:
    """The device alone, in so many steps."""
    return MaskedPolicy("device-only", drawing.masking(steps), stride=WHOLE, judged=False, use_cloud=False)
