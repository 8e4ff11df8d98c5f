"""A decode policy is a value: when the device asks, how far it guesses, how the cloud judges.

SPEC sections 4 and 6. Knows nothing of models, networks or tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from device_client.pacing import pace
from device_client.shape import Tree
from shared.decoding import acceptance as rules
from shared.decoding import gates
from shared.decoding.acceptance import Relaxation
from shared.decoding.calibration import Calibration, GateTable
from shared.errors import InvalidRequest
from shared.messages import ALONE, MAX_FORWARDS

MODES = ("ciar", "exact", "cloud-only", "device-only")
MAX_SPAN = 64
MAX_IN_FLIGHT = 4
OFFLINE = ("retry", "finish")  # what becomes of an image when no cloud can be had
ADAPTIVE = "adaptive"
DEFAULT_GATE = "entropy"  # where no calibration names another; adaptive spans go by the same
DEFAULT_BUDGET = 0.21  # cloud forwards per token, rehearsed
DEFAULT_PREFIX_RATE = 0.06
WINDOW = 24  # tokens a forward where the cloud draws by Jacobi iteration: the same in fewer forwards
# Forwards a round. More save round trips and cost none; but what the cloud draws, the device cannot keep.
CIAR_FORWARDS, EXACT_FORWARDS = 4, 8
# Adaptive spans: tokens at most, and the floor. With guesses of the cloud's in them, long spans pay.
ADAPTIVE_CAP, ADAPTIVE_FLOOR = 16, 0.3
GUESSING_CAP, GUESSING_FLOOR = 32, 0.01
UNSCORED = ("never", "always")  # gates that need no threshold and no calibration
_GATING = ("gate", "threshold", "cloud_budget", "promise", "pacing")
# Overrides that would contradict what a mode is; `acceptance` also says how a side draws:
# it always means something.
_ROUNDS = ("guesses", "max_forwards", "in_flight", "tree", "offline")
_MEANINGLESS = {
    "ciar": (),
    "exact": _GATING,
    "cloud-only": (*_GATING, "span", "prefix_rate", *_ROUNDS),
    "device-only": (*_GATING, "span", "prefix_rate", "alone", "window", *_ROUNDS),
}


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise InvalidRequest(f"{name} {value} is not allowed", f"allowed: {allowed}")


@dataclass(frozen=True)
class Policy:
    """One row of a table. Raises InvalidRequest naming the offending value and the allowed ones.

    mode            the name it goes by, one of MODES
    gate            a name in shared.decoding.gates.GATES; the device asks iff its score > `threshold`
    threshold       finite
    span            tokens per span at most, 1 .. 64
    adaptive_floor  None: spans have `span` tokens; else a span ends where the calibrated probability
                    that all of it is accepted falls below this, 0 < floor < 1
    prefix_rate     rho: the cloud draws the first floor(rho * T) tokens, 0 .. 1
    acceptance      a name in shared.decoding.acceptance.RULES
    features        kept tokens travel with their interval features (eq. 5)
    use_cloud       False: there is no session; then the gate is "never" and the prefix rate 0
    guesses         what the cloud drew behind a rejected token comes back and helps to draft
    max_forwards    runs of the cloud model per draft, 1 .. 8: with more than one it goes on behind its own
                    correction before it answers, by Jacobi iteration if `alone` says so
    in_flight       rounds under way at a time, 1 .. 4: with more than one the device draws on while it waits
    pacing          a name in device_client.pacing.PACES: how the threshold moves within an image
    budget          the cloud forwards per token that `threshold` stands for; None where tau was given
    relaxation      how far "relaxed" acceptance may stray; None for any other
    offline         when no cloud can be had any more: "retry" gives the image up, "finish" ends it alone
    alone           how the cloud draws by itself, one of ALONE: "" is one token a forward
    window          of `alone`: tokens a forward (jacobi, sjd), columns a row is behind the one above (rows)
    tree            what is judged are trees, not spans; then `span` and the floor mean nothing
    """

    mode: str
    gate: str
    threshold: float
    span: int
    adaptive_floor: float | None
    prefix_rate: float
    acceptance: str
    features: bool
    use_cloud: bool
    guesses: bool = False
    max_forwards: int = 1
    in_flight: int = 1
    pacing: str = "fixed"
    budget: float | None = None
    relaxation: Relaxation | None = None
    offline: str = "retry"
    alone: str = ""
    window: int = 0
    tree: Tree | None = None

    def __post_init__(self) -> None:
        # Written so that NaN fails every test.
        _require(self.mode in MODES, "mode", self.mode, ", ".join(MODES))
        gates.gate(self.gate)
        rules.rule(self.acceptance)
        _require(math.isfinite(self.threshold), "threshold", self.threshold, "finite numbers")
        whole = isinstance(self.span, int) and 1 <= self.span <= MAX_SPAN
        _require(whole, "span", self.span, f"1 to {MAX_SPAN} tokens")
        floor = self.adaptive_floor
        _require(floor is None or 0.0 < floor < 1.0, "adaptive floor", floor, "above 0, below 1")
        _require(0.0 <= self.prefix_rate <= 1.0, "prefix rate", self.prefix_rate, "0 to 1")
        forwards, flight = self.max_forwards, self.in_flight
        _require(1 <= forwards <= MAX_FORWARDS, "max forwards", forwards, f"1 to {MAX_FORWARDS}")
        _require(1 <= flight <= MAX_IN_FLIGHT, "rounds in flight", flight, f"1 to {MAX_IN_FLIGHT}")
        _require(self.offline in OFFLINE, "offline", self.offline, ", ".join(OFFLINE))
        alone = self.gate == "never" and self.prefix_rate == 0.0
        _require(self.use_cloud or alone, "gate without a cloud", self.gate, "never, with prefix rate 0")
        pace(self.pacing)
        paced = self.pacing == "fixed" or self.gate not in UNSCORED
        _require(paced, f"gate {self.gate!r} with policy", self.pacing, "fixed")
        relaxed = (self.relaxation is not None) == (self.acceptance == "relaxed")
        _require(relaxed, f"acceptance {self.acceptance!r} with", self.relaxation, "k and delta if relaxed")
        _require(self.alone in ALONE, "alone", repr(self.alone), ", ".join(map(repr, ALONE)))
        _require(bool(self.alone) == (self.window > 0), "window", self.window, "above 0 with `alone`, else 0")
        self._check_tree()

    def _check_tree(self) -> None:
        if self.tree is not None:
            plain = not self.guesses and self.max_forwards == self.in_flight == 1
            allowed = "one round in flight, one forward a round, no guesses"
            _require(plain, "tree", self.tree, allowed)
            judged = self.acceptance != "rejection"
            _require(judged, "tree with acceptance", self.acceptance, "any rule but rejection")

    def prefix_tokens(self, image_tokens: int) -> int:
        """m = floor(rho * T)."""
        return math.floor(self.prefix_rate * image_tokens + 1e-9)  # 0.29 * 100 is 28.999999999999996


_CIAR = Policy(
    mode="ciar",
    gate=DEFAULT_GATE,
    threshold=0.0,
    span=GUESSING_CAP,
    adaptive_floor=GUESSING_FLOOR,
    prefix_rate=DEFAULT_PREFIX_RATE,
    acceptance="coupled",
    features=True,
    use_cloud=True,
    guesses=True,
    alone="jacobi",
    window=WINDOW,
    max_forwards=CIAR_FORWARDS,
)
_EXACT = replace(
    _CIAR, mode="exact", gate="always", prefix_rate=0.0, features=False, max_forwards=EXACT_FORWARDS
)
_CLOUD_ONLY = replace(
    _EXACT, mode="cloud-only", span=1, adaptive_floor=None, prefix_rate=1.0, guesses=False, max_forwards=1,
    alone="", window=0,
)  # fmt: skip
_DEVICE_ONLY = replace(_CLOUD_ONLY, mode="device-only", gate="never", prefix_rate=0.0, use_cloud=False)
_PRESETS = {policy.mode: policy for policy in (_CIAR, _EXACT, _CLOUD_ONLY, _DEVICE_ONLY)}


def policy_for(  # noqa: PLR0913 - each is an option of the command line
    mode: str,
    calibration: Calibration | None,
    *,
    gate: str | None = None,
    threshold: float | None = None,
    cloud_budget: float | None = None,
    promise: float | None = None,
    pacing: str | None = None,
    span: str | int | None = None,
    prefix_rate: float | None = None,
    acceptance: str | None = None,
    guesses: bool | None = None,
    max_forwards: int | None = None,
    in_flight: int | None = None,
    relaxation: Relaxation | None = None,
    offline: str | None = None,
    alone: str | None = None,
    window: int | None = None,
    tree: Tree | None = None,
) -> Policy:
    """The policy of a mode with overrides on top; None keeps what the mode says.

    threshold     tau itself, instead of
    cloud_budget  a share of cloud forwards per token, 0 < budget <= 1, looked up in the gate's calibration,
                  or
    promise       the share of kept tokens that may differ from the cloud's draw, looked up there as well
    pacing        "fixed", "budget", "early" or "cost"
    span          tokens, or "adaptive": up to 32, ended at a floor of 0.01; without guesses, up to 16 and 0.3

    Raises InvalidRequest for an unknown name, a value out of range, a gate without calibration, and overrides
    that contradict each other or mean nothing in this mode. `calibration` may be None where none is needed.
    """
    _require(mode in MODES, "mode", mode, ", ".join(MODES))
    dials = {"threshold": threshold, "cloud_budget": cloud_budget, "promise": promise}
    rounds: dict[str, Any] = {"guesses": guesses, "max_forwards": max_forwards, "in_flight": in_flight}
    rounds |= {"offline": offline, "alone": alone, "window": window, "tree": tree}
    given = {"gate": gate, **dials, "pacing": pacing, "span": span, "prefix_rate": prefix_rate, **rounds}
    _refuse_meaningless(mode, [name for name, value in given.items() if value is not None])
    policy = _PRESETS[mode]
    usual = DEFAULT_GATE if calibration is None else calibration.default_gate
    changes = {"prefix_rate": prefix_rate, "pacing": pacing, "acceptance": acceptance, **rounds}
    policy = replace(
        policy,
        gate=gate or (usual if mode == "ciar" else policy.gate),
        relaxation=relaxation,
        **_consequences({name: value for name, value in changes.items() if value is not None}),
    )
    if span is not None or guesses is not None:
        policy = _with_span(policy, ADAPTIVE if span is None else span)
    if guesses is None and policy.adaptive_floor is None and not _calibrated(calibration, usual):
        policy = replace(policy, guesses=False)  # they are weighed against a calibrated doubt
    if (policy.adaptive_floor is not None and policy.tree is None) or policy.guesses:
        _table(calibration, usual)
    return _with_threshold(policy, calibration, dials)


def _consequences(given: dict[str, Any]) -> dict[str, Any]:
    """What was given, and what follows from it for all that was not."""
    follows: dict[str, Any] = {}
    if given.get("pacing") == "early":  # nothing is kept as long as it asks
        follows = {"max_forwards": EXACT_FORWARDS}
    if "tree" in given:  # no chain to put guesses into, or to go on behind
        follows |= {"guesses": False, "max_forwards": 1}
    if "window" not in given and ("alone" in given or given.get("acceptance", "coupled") != "coupled"):
        # Under other rules iterations do not settle on plain draws.
        follows |= {"alone": "", "window": 0, "max_forwards": 1}
    return follows | given


def _refuse_meaningless(mode: str, given: list[str]) -> None:
    meaningless = [name for name in given if name in _MEANINGLESS[mode]]
    if meaningless:
        allowed = [name for name in MODES if not set(meaningless) & set(_MEANINGLESS[name])]
        raise InvalidRequest(
            f"{' and '.join(meaningless)} cannot be set in mode {mode!r}",
            f"allowed in: {', '.join(allowed)}",
        )


def _with_span(policy: Policy, span: str | int) -> Policy:
    if span == ADAPTIVE:
        cap, floor = (GUESSING_CAP, GUESSING_FLOOR) if policy.guesses else (ADAPTIVE_CAP, ADAPTIVE_FLOOR)
        return replace(policy, span=cap, adaptive_floor=floor)
    if not isinstance(span, int):
        raise InvalidRequest(
            f"span {span!r} is not allowed", f"allowed: 1 to {MAX_SPAN} tokens, or {ADAPTIVE!r}"
        )
    return replace(policy, span=span, adaptive_floor=None)


def _with_threshold(
    policy: Policy, calibration: Calibration | None, dials: Mapping[str, float | None]
) -> Policy:
    """Settle tau: given, or the one whose measured call rate is the budget, or the bound of the promise."""
    named = {name: value for name, value in dials.items() if value is not None}
    words = [f"{name.replace('_', ' ')} {value}" for name, value in named.items()]
    if len(words) > 1:
        raise InvalidRequest(f"{' and '.join(words)} exclude each other", "each sets tau", "give one of them")
    if policy.gate in UNSCORED:
        _require(not named, f"gate {policy.gate!r} with {' '.join(words)}", "", "no threshold and no budget")
        return policy
    if policy.pacing in ("budget", "early"):
        said = f"policy {policy.pacing!r} with"
        _require(set(named) <= {"cloud_budget"}, said, " ".join(words), "a cloud budget")
    if policy.pacing != "fixed":
        _table(calibration, policy.gate)
    if "threshold" in named:
        return replace(policy, threshold=named["threshold"])
    if "promise" in named:
        return replace(policy, threshold=_table(calibration, policy.gate).bound(named["promise"]))
    budget = named.get("cloud_budget", DEFAULT_BUDGET)
    _require(0.0 < budget <= 1.0, "cloud budget", budget, "above 0, up to 1 cloud forwards per token")
    tau = _table(calibration, policy.gate).threshold(budget)
    return replace(policy, threshold=tau, budget=budget)


def _calibrated(calibration: Calibration | None, gate: str) -> bool:
    return calibration is not None and gate in calibration.gates


def _table(calibration: Calibration | None, gate: str) -> GateTable:
    if calibration is None:
        raise InvalidRequest(f"gate {gate!r} needs a calibration", "it turns scores into probabilities")
    return calibration.table(gate)
