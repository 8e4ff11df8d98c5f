"""The small model at work on one image of a model by steps: what the cloud's noise would be. Knows no clouds.

Shapes: C channels, H the side of the latent, N patches, F features a patch; one image a call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from device_client.step_policy import StepPolicy
from shared.decoding.denoising import Denoising, Guess, Hindsight, denoising, extrapolated
from shared.errors import InvalidRequest, ModelMismatch
from shared.messages import Latent, Output
from shared.models.by_scale import label_of
from shared.models.by_step import BudgetTable, StepPackage
from shared.models.families.dit_device import Anchor


@dataclass(frozen=True)
class StepRequest:
    """What to draw: one image per value. `spacing` and `sampler` as shared.messages.Sampling has them."""

    prompt: str
    seed: int  # 0 <= seed < 2**64
    guidance: float = 2.0
    spacing: str = "ddim50"
    sampler: str = "ddim"

    @property
    def process(self) -> Denoising:
        """Raises InvalidRequest for a spacing or sampler that does not exist."""
        return denoising(self.spacing, self.sampler)


class StepDrafter:
    """One image. Raises InvalidPrompt for a prompt that names no class, InvalidRequest for its process.

    projection  digest of the one by which the cloud shall send features; "": without
    """

    def __init__(self, package: StepPackage, request: StepRequest, policy: StepPolicy) -> None:
        self._package, self._predictor = package, policy.predictor
        self.projection = package.projection if policy.predictor == "device" and policy.guesses else ""
        self.process = request.process
        label = label_of(request.prompt, package.labels, package.model.config.classes)
        self._label, self._scale = torch.tensor([label]), torch.tensor([request.guidance])
        self._anchor = package.model.nobody(1)
        self._said: list[tuple[int, Tensor]] = []  # steps and noises of the cloud, the last two
        self._hindsight = Hindsight() if policy.hindsight else None
        self._guessed: tuple[int, Tensor] | None = None  # the last step and its guess before it was mended

    def hear(self, step: int, output: Output) -> tuple[Tensor, Tensor | None]:
        """Take in what the cloud said of a step; its noise and spread [1, C, H, W]. Raises ModelMismatch for
        latents or features of another shape."""
        model, shape = self._package.model, self._package.shape
        features, wanted = self._anchor.features, bool(self.projection)
        if output.noise.shape != shape or (output.features is not None) != wanted:
            what = f"the cloud says {output.noise.shape}"
            raise ModelMismatch(what, f"this device expects {shape}, with{'' if wanted else 'out'} features")
        if output.features is not None:
            if output.features.shape != features.shape[1:]:
                what = f"the cloud's features are {output.features.shape}"
                raise ModelMismatch(what, f"this device expects {tuple(features.shape[1:])}")
            features = torch.from_numpy(output.features.astype(np.float32))[None]
        eps, spread = tensor(output.noise), None if output.spread is None else tensor(output.spread)
        known = spread if spread is not None or not model.config.learned_spread else torch.zeros_like(eps)
        original = torch.tensor([self.process.original(step)])
        self._anchor = Anchor(original, eps, features, known)
        self._said = [*self._said[-1:], (step, eps)]
        if self._hindsight is not None:
            guessed = self._guessed[1] if self._guessed is not None and self._guessed[0] == step else None
            self._hindsight.heard(step, eps, guessed)
        return eps, spread

    @torch.inference_mode()
    def guess(self, step: int, state: Tensor) -> Guess:
        """What the cloud would say of a latent [1, C, H, W]."""
        found = self._predicted(step, state)
        self._guessed = step, found.eps
        return replace(found, eps=self._hindsight.mended(step, found.eps)) if self._hindsight else found

    def _predicted(self, step: int, state: Tensor) -> Guess:
        eps = self._anchor.eps
        if self._predictor != "reuse" and len(self._said) == 2:
            before, last = self._said
            eps = extrapolated(self.process, step, last, before)
        if self._predictor == "device":
            original, anchor = torch.tensor([self.process.original(step)]), replace(self._anchor, line=eps)
            found: Guess = self._package.model(state, original, self._label, self._scale, anchor)
            return found
        return Guess(eps, torch.zeros_like(eps), self._anchor.eps, self._anchor.spread)


def tensor(latent: Latent) -> Tensor:
    """fp32 [1, C, H, W] of a latent as it travelled."""
    return torch.from_numpy(latent.astype(np.float32))[None]


def threshold_of(package: StepPackage, gate: str, request: StepRequest, share: float) -> float:
    """The threshold by which about that share of the steps is the cloud's. Raises InvalidRequest where that
    was not measured."""
    tables = (package.tables or {}).get(gate, ())
    fitting = [t for t in tables if (t.spacing, t.sampler) == (request.spacing, request.sampler)]
    if not fitting:
        pairs = [(name, table) for name, of in (package.tables or {}).items() for table in of]
        known = {f"{name} on {table.spacing} {table.sampler}" for name, table in pairs}
        what = f"gate {gate!r} on {request.spacing} {request.sampler} is not calibrated"
        why = f"calibrated: {', '.join(sorted(known)) or 'none'}"
        raise InvalidRequest(what, why, "give a --threshold, or calibrate with ciar-train dit-device")
    table: BudgetTable = min(fitting, key=lambda t: abs(t.guidance - request.guidance))
    return float(np.interp(share, table.shares[::-1], table.thresholds[::-1]))
