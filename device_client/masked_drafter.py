"""The small MAR at work on one image: it drafts a span of continuous tokens. Knows no clouds.

Noise is the cloud's, so that both heads draw along the same trajectories. Shapes: K tokens, C token width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from device_client.cloud import Request
from device_client.masked_policy import MaskedPolicy
from shared.continuous import Continuous, Values
from shared.models.by_mask import MaskedPackage
from shared.models.by_scale import label_of
from shared.models.diffloss import Condition
from shared.models.families.mar_image import MaskedImage, rounded, tensor_of
from shared.models.trajectories import last_step, path


class MaskedDrafter:
    """One image. Raises InvalidPrompt for a prompt that names no class, InvalidRequest for more steps than
    tokens."""

    def __init__(self, package: MaskedPackage, request: Request, policy: MaskedPolicy) -> None:
        label = label_of(request.prompt, package.labels, package.model.config.classes)
        self._policy = policy
        with torch.inference_mode():
            self.image = MaskedImage(package.model, label, request.seed, policy.masking, request.warp)

    @property
    def ranks(self) -> range:
        """What the next span holds: a window, or of single tokens as many as the policy says."""
        image = self.image
        if self._policy.acceptance != "trajectory":
            return image.window
        return range(image.known, min(image.known + self._policy.window, image.offsets[-1]))

    @torch.inference_mode()
    def span(self) -> tuple[Continuous, Values]:
        """The next span as it travels, and its tokens; what is known stays as it is."""
        image, ranks, stride = self.image, self.ranks, self._policy.stride
        make = _MAKERS[self._policy.acceptance if self._policy.judged else "aligned"]
        parts, tokens = [], []
        for begin in range(ranks.start, ranks.stop, stride):
            asked = range(begin, min(begin + stride, ranks.stop))
            part, values = make(image, asked)
            image.push(values)
            parts.append(part)
            tokens.append(values)
        image.rewind(ranks.start)
        return _joined(parts), np.concatenate(tokens)

    @torch.inference_mode()
    def push(self, values_KC: Values) -> None:
        """The next tokens are decided."""
        self.image.push(values_KC)


def _aligned(image: MaskedImage, ranks: range) -> tuple[Continuous, Values]:
    values = image.draw(ranks, image.condition(ranks))
    return Continuous(values), values


def _published(image: MaskedImage, ranks: range) -> tuple[Continuous, Values]:
    head, cond = image.model.diffloss, image.condition(ranks)
    last, before_K = last_step(head, image.schedule, cond, image.noise(ranks))
    values = rounded(last.mean)
    return Continuous(values, None, rounded(last.log_std), tuple(before_K.tolist())), values


def _trajectory(image: MaskedImage, ranks: range) -> tuple[Continuous, Values]:
    """The conditions are rounded before they are used: the cloud draws the same paths of them."""
    cond = image.condition(ranks)
    parts = [cond.z_ND] if cond.nothing_ND is None else [cond.z_ND, cond.nothing_ND]
    sent_KRD = rounded(torch.stack(parts, 1))
    z_KRD = tensor_of(sent_KRD)
    heard = Condition(z_KRD[:, 0], z_KRD[:, 1] if len(parts) > 1 else None, cond.guidance)
    states_KTC: Tensor = path(image.model.diffloss, image.schedule, heard, image.noise(ranks))
    return Continuous(conditions=sent_KRD), rounded(states_KTC[:, -1])


_MAKERS: Mapping[str, Callable[[MaskedImage, range], tuple[Continuous, Values]]] = {
    "aligned": _aligned,
    "published": _published,
    "trajectory": _trajectory,
}


def _joined(parts: list[Continuous]) -> Continuous:
    """Parts of one span, one behind the other."""

    def together(name: str) -> Values | None:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else np.concatenate(found)

    before = tuple(value for part in parts for value in part.log_std_before)
    return Continuous(together("values"), together("conditions"), together("log_std"), before)
