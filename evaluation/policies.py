"""The rows of a table: each is a value. Knows nothing of how they are run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from device_client.policy import Policy, policy_for
from device_client.shape import Tree
from shared.decoding.acceptance import Relaxation
from shared.decoding.calibration import Calibration

PROMPTS = (
    "a cat", "a dog face", "a red apple", "a house", "a rocket", "a penguin on a light blue background",
    "a banana noto style", "a sunflower", "a smiling face with sunglasses", "a guitar 3d style",
    "a red heart", "an owl on a pink background", "a bus flat style", "a snowman",
    "a mushroom twemoji style", "a fox", "a birthday cake on a yellow background", "an octopus",
    "a cactus fluent style", "a panda on a light green background",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One row: a name, the overrides of a decode mode, and whether a mode's features may travel."""

    name: str
    mode: str
    overrides: Mapping[str, object] = field(default_factory=dict)
    features: bool = True

    def policy(self, calibration: Calibration) -> Policy:
        """The decode policy of this row for one pair."""
        policy = policy_for(self.mode, calibration, **self.overrides)  # type: ignore[arg-type]
        return replace(policy, features=policy.features and self.features)


BASE = Row("cloud-only", "cloud-only")
_ONCE = {"max_forwards": 1}
_PLAIN = {"guesses": False, **_ONCE}
# The paper's rounds: spans and a prefix, no guesses, one forward a round and per token of the prefix.
PUBLISHED = MappingProxyType({**_PLAIN, "alone": ""})
EXACT = (
    Row("exact", "exact"),
    Row("exact, no guesses", "exact", MappingProxyType(_PLAIN)),
    Row("exact, 1 forward", "exact", MappingProxyType(_ONCE)),
    Row("exact, 2 forwards", "exact", MappingProxyType({"max_forwards": 2})),
    Row("exact, 4 forwards", "exact", MappingProxyType({"max_forwards": 4})),
    Row("exact, 1 forward, 4 in flight", "exact", MappingProxyType({**_ONCE, "in_flight": 4})),
    Row("exact, 2 forwards, 4 in flight", "exact", MappingProxyType({"max_forwards": 2, "in_flight": 4})),
    Row("exact, no guesses, 4 in flight", "exact", MappingProxyType({**_PLAIN, "in_flight": 4})),
    Row("exact, no guesses, span 5", "exact", MappingProxyType({**_PLAIN, "span": 5})),
    Row("exact, no guesses, span 16", "exact", MappingProxyType({**_PLAIN, "span": 16})),
    Row("always, span 1", "ciar", MappingProxyType({**PUBLISHED, "gate": "always", "span": 1})),
    Row("always, span 5", "ciar", MappingProxyType({**PUBLISHED, "gate": "always", "span": 5})),
    Row("always, span 16", "ciar", MappingProxyType({**PUBLISHED, "gate": "always", "span": 16})),
)
GATED = ("agreement", "certificate", "interval", "discrete", "margin", "entropy", "softmax", "random")
CIAR = Row("ciar, default", "ciar")


def early(budget: float) -> Row:
    """Mode ciar that asks about everything until its budget is spent."""
    overrides = MappingProxyType({"cloud_budget": budget, "pacing": "early"})
    return Row(f"ciar, {budget:.0%} early", "ciar", overrides)


CIAR_ONCE = Row("ciar, 1 forward", "ciar", MappingProxyType(_ONCE))
CIAR_ONWARD = Row("ciar, 8 forwards", "ciar", MappingProxyType({"max_forwards": 8}))
DEAF = Row("ciar, no features", "ciar", features=False)
DEVICE = Row("never, prefix 0.06", "ciar", MappingProxyType({**PUBLISHED, "gate": "never"}))


def _alone(name: str, alone: str, window: int) -> Row:
    """The cloud draws the whole image by itself; the device opens and receives."""
    return Row(name, "cloud-only", MappingProxyType({"alone": alone, "window": window}))


def _tree(name: str, nodes: int, width: int, depth: int) -> Row:
    """Trees instead of spans, everything verified."""
    shape = Tree(nodes, width, depth)
    return Row(name, "exact", MappingProxyType({"tree": shape}))


# Jacobi decoding as published draws with fresh noise and accepts by probabilities; with coupled draws it is
# lossless. EAGLE-2 with its published sizes, and as small as this cloud likes it.
SCD = _alone("SCD, window 16", "jacobi", 16)
SCD_WIDE = _alone("SCD, window 24", "jacobi", 24)  # as wide as the cloud goes on behind a correction
SJD = _alone("SJD, window 16", "sjd", 16)
PARALLEL = _alone("row-parallel, 4 behind", "rows", 4)
EAGLE = _tree("EAGLE-2, 60 nodes", 60, 10, 6)
# A sixteenth of the codebook, as LANTERN's 1,000 of 16,384; a delta of 0.1 would relax nothing here.
_RELAXED = MappingProxyType({"acceptance": "relaxed", "relaxation": Relaxation(64, 0.4)})
LANTERN = Row("LANTERN, span 5", "exact", MappingProxyType({**_PLAIN, "span": 5, **_RELAXED}))
LANTERN_TREE = Row("LANTERN, 60 nodes", "exact", MappingProxyType({"tree": Tree(60, 10, 6), **_RELAXED}))
RIVALS = (
    SCD,
    SCD_WIDE,
    _alone("SCD, window 32", "jacobi", 32),
    SJD,
    _alone("SJD, window 32", "sjd", 32),
    EAGLE,
    _tree("EAGLE-2, 24 nodes", 24, 4, 10),
    LANTERN,
    LANTERN_TREE,
    _alone("row-parallel, 8 behind", "rows", 8),
    PARALLEL,
    _alone("row-parallel, 2 behind", "rows", 2),
)
