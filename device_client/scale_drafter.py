"""The small VAR at work on one image: a whole scale at a time, scored place by place. Knows no clouds.

Shapes: T tokens of a scale, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from device_client.cloud import Request
from shared.decoding import gates
from shared.decoding.scales import drawn, scale_noise
from shared.errors import InvalidRequest
from shared.messages import Marks, Tokens
from shared.models.by_scale import SHARES, ScalePackage, evidence, label_of
from shared.models.families.var_run import ScaleRun


@dataclass(frozen=True, eq=False)
class ScaleStep:
    """The device's draft of one scale: tokens and scores [T]."""

    tokens: Tokens
    scores: NDArray[np.float32]


class ScaleDrafter:
    """One image. Raises InvalidPrompt for a prompt that names no class."""

    def __init__(self, package: ScalePackage, request: Request, gate: str) -> None:
        self._package, self._request, self._gate = package, request, gate
        label = label_of(request.prompt, package.labels, package.config.classes)
        base, guidance = package.model.base, request.warp.guidance - 1
        with torch.inference_mode():
            self._run = ScaleRun(base, package.vq.quantize, torch.tensor([label]), guidance)

    @property
    def scale(self) -> int:
        """The scale that comes next."""
        return self._run.scale

    @torch.inference_mode()
    def step(self) -> ScaleStep:
        """Draw the next scale with the noise that the cloud draws it with, and score it."""
        request, config = self._request, self._package.config
        side = config.scales[self.scale]
        noise_1TV = scale_noise([request.seed], self.scale, side * side, config.vocab_size)
        tokens = drawn(self._run.logits(), request.warp, noise_1TV)[0].numpy().astype(np.int32)
        seen = evidence(self._package.model, self._run, noise_1TV[0], request.seed, request.warp)
        scores = gates.gate(self._gate)(seen)
        return ScaleStep(tokens, scores.float().numpy())

    @torch.inference_mode()
    def push(self, tokens: Sequence[int]) -> None:
        """Give the next scale its tokens."""
        self._run.push(torch.tensor([list(tokens)]))


def threshold(package: ScalePackage, gate: str, scale: int, bad: float) -> float:
    """The score that a share `bad` of a scale's places exceeds. Raises InvalidRequest where the gate was not
    calibrated."""
    tables = package.thresholds or {}
    if gate not in tables:
        what = f"gate {gate!r} has no thresholds in model {package.name!r}"
        raise InvalidRequest(what, f"calibrated: {', '.join(tables) or 'none'}", "run ciar-train var-device")
    return float(np.interp(1 - bad, np.linspace(0, 1, SHARES + 1), tables[gate][scale]))


def bad_places(package: ScalePackage, gate: str, scale: int, bad: float, step: ScaleStep) -> Marks:
    """Which places [T] of a draft the device doubts; the gates "never" and "always" need no thresholds."""
    if gate in ("never", "always"):
        return np.full(len(step.tokens), gate == "always")
    marks: Marks = step.scores > threshold(package, gate, scale, bad)
    return marks
