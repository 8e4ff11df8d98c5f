"""What a caller may ask for, and what it becomes: a Request and a Policy, checked before anything is sent.

The command line and the REST gateway share it. Knows nothing of either, nor of networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from device_client.loop import Request
from device_client.pacing import PACES
from device_client.policy import (
    CIAR_FORWARDS,
    EXACT_FORWARDS,
    MAX_IN_FLIGHT,
    MAX_SPAN,
    Policy,
    policy_for,
)
from device_client.shape import MAX_NODES, Tree
from shared.decoding.acceptance import MOST_NEIGHBOURS, RULES, Relaxation
from shared.decoding.gates import GATES, gate
from shared.decoding.noise import SEED_LIMIT
from shared.decoding.warp import MAX_GUIDANCE, MAX_TEMPERATURE, Warp
from shared.errors import InvalidRequest
from shared.logs import current_request_id
from shared.messages import ALONE, MAX_FORWARDS
from shared.models.zoo import DevicePackage

Mode = Literal["ciar", "exact", "cloud-only", "device-only"]
GATE_NAMES, RULE_NAMES = ", ".join(GATES), ", ".join(RULES)


def _known_gate(name: str) -> str:
    try:
        gate(name)
    except InvalidRequest as error:
        raise ValueError(error.why) from None
    return name


def _known_rule(name: str) -> str:
    return _one_of(name, RULES)


def _one_of(name: str, allowed: Mapping[str, Any]) -> str:
    if name not in allowed:
        raise ValueError(f"allowed: {', '.join(allowed)}")
    return name


Number = Annotated[float, Field(allow_inf_nan=False)]


class Wish(BaseModel):
    """One picture. What is None is taken from the model's calibration or from the mode."""

    prompt: str = Field(description='what to draw, such as "a cat"; the seed chooses a style it leaves open')
    seed: int = Field(default=0, ge=0, lt=SEED_LIMIT, description=f"which picture: 0 to {SEED_LIMIT - 1}")
    mode: Mode = Field(default="ciar", description="who decides: ciar, exact, cloud-only or device-only")
    gate: Annotated[str, AfterValidator(_known_gate)] | None = Field(
        default=None,
        description=f"when the device asks: {GATE_NAMES}",
    )
    threshold: Number | None = Field(
        default=None, description="ask where the gate's score is above this number"
    )
    cloud_budget: Annotated[Number, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="cloud forwards per token to aim at: above 0, up to 1; instead of a threshold",
    )
    promise: Annotated[Number, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="share of kept tokens that may differ from the cloud's draw: above 0, below 1; "
        "instead of a threshold or a budget",
    )
    policy: Literal["fixed", "budget", "early", "cost"] | None = Field(
        default=None,
        description=f"how the threshold moves within a picture: {', '.join(PACES)}; fixed keeps it, budget "
        "keeps the share of forwards at --cloud-budget, early asks about everything until it is spent, cost "
        "weighs each question against the measured round",
    )
    span: Annotated[int, Field(ge=1, le=MAX_SPAN)] | Literal["adaptive"] | None = Field(
        default=None,
        description=f"drafted tokens per message: 1 to {MAX_SPAN}, or adaptive",
    )
    prefix_rate: Annotated[Number, Field(ge=0, le=1)] | None = Field(
        default=None, description="share of the picture the cloud draws first, 0 to 1"
    )
    acceptance: Annotated[str, AfterValidator(_known_rule)] | None = Field(
        default=None,
        description=f"how the cloud judges: {RULE_NAMES}",
    )
    guesses: bool | None = Field(
        default=None, description="whether the cloud's own draws behind a rejected token come back as guesses"
    )
    max_forwards: Annotated[int, Field(ge=1, le=MAX_FORWARDS)] | None = Field(
        default=None,
        description=f"runs of the cloud model per message, 1 to {MAX_FORWARDS}: more save messages; "
        f"{CIAR_FORWARDS} in ciar, {EXACT_FORWARDS} in exact",
    )
    in_flight: Annotated[int, Field(ge=1, le=MAX_IN_FLIGHT)] | None = Field(
        default=None,
        description=f"messages under way at a time, 1 to {MAX_IN_FLIGHT}: more hide the network's delay",
    )
    relax_k: Annotated[int, Field(ge=1, le=MOST_NEIGHBOURS)] | None = Field(
        default=None,
        description=f"relaxed acceptance: nearest codes that may stand in, 1 to {MOST_NEIGHBOURS}; 10",
    )
    relax_delta: Annotated[Number, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="relaxed acceptance: total variation per token at most, 0 to 1, 1 is no bound; 0.1",
    )
    relax_lambda: Annotated[Number, Field(ge=1)] | None = Field(
        default=None,
        description="relaxed acceptance: mass at most this multiple of the draft's own, 1 and more; off",
    )
    offline: Literal["retry", "finish"] | None = Field(
        default=None, description="when no cloud can be had: retry, then fail; or finish the picture alone"
    )
    alone: Literal["jacobi", "sjd", "rows"] | None = Field(
        default=None,
        description=f"how the cloud draws by itself: {', '.join(ALONE[1:])}; else as the mode says",
    )
    window: Annotated[int, Field(ge=1, le=MAX_SPAN)] | None = Field(
        default=None,
        description="of --alone: tokens per run, or columns a row is behind the one above it (rows)",
    )
    tree: Annotated[int, Field(ge=2, le=MAX_NODES)] | None = Field(
        default=None, description=f"draft trees of so many tokens instead of spans: 2 to {MAX_NODES}"
    )
    guidance: Annotated[Number, Field(ge=0, le=MAX_GUIDANCE)] | None = Field(
        default=None,
        description=f"how closely to follow the prompt: 0 to {MAX_GUIDANCE:g}, 1 is off",
    )
    temperature: Annotated[Number, Field(ge=0, le=MAX_TEMPERATURE)] | None = Field(
        default=None,
        description=f"how varied: 0 to {MAX_TEMPERATURE:g}, 0 is greedy",
    )
    top_k: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="draw among the k likeliest tokens: 0, 1, 2, ..., 0 is off"
    )
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = Field(
        default=None, description="draw among the likeliest tokens of this mass: above 0, up to 1, 1 is off"
    )


@dataclass(frozen=True, eq=False)
class Plan:
    """A checked wish: what the loop runs, what the picture says about itself, what the caller should know."""

    request: Request
    policy: Policy
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    request_id: str = field(default_factory=current_request_id)  # names the picture in both sides' logs


def request_for(package: DevicePackage, prompt: str, seed: int, warp: Warp | None = None) -> Request:
    """What this model draws for a prompt: the calibrated warp, and what is left open chosen by the seed."""
    return Request(package.model.base.complete(prompt, seed), seed, warp or package.calibration.warp)


def make_plan(package: DevicePackage, wish: Wish) -> Plan:
    """Turn a wish into a plan for this model.

    Raises InvalidRequest (InvalidPrompt among it) where the two do not fit; the network is not touched.
    """
    calibration = package.calibration
    asked = wish.model_dump(include={"guidance", "temperature", "top_k", "top_p"}, exclude_none=True)
    package.model.base.check_prompt(wish.prompt)
    request = request_for(package, wish.prompt, wish.seed, replace(calibration.warp, **asked))
    policy = policy_for(
        wish.mode,
        calibration,
        gate=wish.gate,
        threshold=wish.threshold,
        cloud_budget=wish.cloud_budget,
        span=wish.span,
        prefix_rate=wish.prefix_rate,
        acceptance=wish.acceptance,
        guesses=wish.guesses,
        max_forwards=wish.max_forwards,
        in_flight=wish.in_flight,
        promise=wish.promise,
        pacing=wish.policy,
        relaxation=_relaxation(wish),
        offline=wish.offline,
        alone=wish.alone,
        window=wish.window,
        tree=None if wish.tree is None else Tree(wish.tree),
    )
    return Plan(request, policy, _settings(package, request, policy), tuple(_notes(package, request)))


def _relaxation(wish: Wish) -> Relaxation | None:
    """The bounds of `relaxed` acceptance. Raises InvalidRequest where they are given without it."""
    given = wish.model_dump(include={"relax_k", "relax_delta", "relax_lambda"}, exclude_none=True)
    if wish.acceptance == "relaxed":
        return Relaxation(
            given.get("relax_k", 10), given.get("relax_delta", 0.1), given.get("relax_lambda", 0.0)
        )
    if given:
        names = " and ".join(given)
        raise InvalidRequest(f"{names} mean nothing to {wish.acceptance or 'coupled'!r}", "only to relaxed")
    return None


def release() -> str:
    """The version of this program; a checkout that was never installed has none."""
    try:
        return version("ciar")
    except PackageNotFoundError:
        return "unreleased"


def complaint(error: Mapping[str, Any]) -> str:
    """One error of pydantic, in words: the value where there is one, and what was expected."""
    text = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] in ("missing", "json_invalid") or isinstance(error["input"], dict):
        return text
    return f"{repr(error['input'])[:60]}: {text[0].lower()}{text[1:]}"


def _settings(package: DevicePackage, request: Request, policy: Policy) -> dict[str, Any]:
    return {
        "prompt": request.prompt,
        "seed": request.seed,
        "mode": policy.mode,
        "model": package.name,
        "device_digest": package.digest,
        "cloud_digest": package.cloud_digest,
        "policy": asdict(policy),
        "warp": asdict(request.warp),
    }


def _notes(package: DevicePackage, request: Request) -> list[str]:
    notes = []
    if unknown := package.model.base.unknown_words(request.prompt):
        notes.append(f"ignoring words the model does not know: {', '.join(map(repr, unknown))}")
    distilled = package.model.config.distilled_guidance
    if distilled is not None and distilled != request.warp.guidance:
        notes.append(
            f"the device model learned guidance {distilled:g}; at {request.warp.guidance:g} the cloud will "
            "correct it more often"
        )
    return notes
