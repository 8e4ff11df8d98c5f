"""A decode policy of models by scales, as a value: which scales the cloud draws, when the device asks.

The modes and gates are those of `device_client.policy`; `code` is CoDe. Knows nothing of models or networks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.decoding import gates
from shared.decoding.scales import VERDICTS, AskRule
from shared.errors import InvalidRequest

SCALE_MODES = ("ciar", "code", "exact", "cloud-only", "device-only")
DEFAULT_GATE = "margin"
DEFAULT_PREFIX = 5
DEFAULT_BAD = 0.25
UNSCORED = ("never", "always")  # gates that need no thresholds
ASK_ALWAYS = AskRule(share=0.0, debt=0.0, until=2**16)


@dataclass(frozen=True)
class ScalePolicy:
    """One row of a table. Raises InvalidRequest naming the offending value and the allowed ones.

    mode     the name it goes by, one of SCALE_MODES
    prefix   N: scales that the cloud draws first
    gate     a name in shared.decoding.gates.GATES; a place is bad iff its score is among the highest
    bad      share of the places of a scale that are bad on average, as calibrated, 0 .. 1
    ask      when so much is bad that the scale is verified
    verdict  "all": the cloud's own draw stands everywhere in a verified scale; "bad": at bad places alone
    """

    mode: str
    prefix: int
    gate: str = DEFAULT_GATE
    bad: float = DEFAULT_BAD
    ask: AskRule = field(default_factory=AskRule)
    verdict: str = "all"
    use_cloud: bool = True

    def __post_init__(self) -> None:
        allowed = {"mode": SCALE_MODES, "verdict": VERDICTS}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                what = f"{name} {getattr(self, name)!r} is not allowed"
                raise InvalidRequest(what, f"allowed: {', '.join(values)}")
        gates.gate(self.gate)
        if self.prefix < 0 or not 0 <= self.bad <= 1:
            raise InvalidRequest(f"prefix {self.prefix}, bad {self.bad}", "allowed: from 0; 0 to 1")
        if not self.use_cloud and (self.prefix or self.gate != "never"):
            raise InvalidRequest(f"gate {self.gate!r} without a cloud", "allowed: never, with prefix 0")


def ciar(prefix: int = DEFAULT_PREFIX, gate: str = DEFAULT_GATE, bad: float = DEFAULT_BAD) -> ScalePolicy:
    """The cloud begins, the device goes on and asks where it is unsure."""
    return ScalePolicy("ciar", prefix, gate, bad)


def code(prefix: int) -> ScalePolicy:
    """CoDe: one hand-over from the drafter in the cloud to the refiner on the device."""
    return ScalePolicy("code", prefix, "never")


def exact() -> ScalePolicy:
    """Every scale is verified: the cloud's own image."""
    return ScalePolicy("exact", 0, "always", ask=ASK_ALWAYS)


def cloud_only(scales: int) -> ScalePolicy:
    """The cloud draws all scales."""
    return ScalePolicy("cloud-only", scales, "never")


def device_only() -> ScalePolicy:
    """The device draws all scales."""
    return ScalePolicy("device-only", 0, "never", use_cloud=False)
