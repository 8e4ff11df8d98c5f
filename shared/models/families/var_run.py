"""A batch of images of VAR, scale by scale. Knows no sampler: who calls says which tokens a scale gets.

Whatever scales the transformer has not seen are given to it in one pass when it is next asked, so the same
few lines are ordinary decoding, the refiner of CoDe taking over, and a cloud that verifies after a while.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shared.decoding.scales import guidance_at, guide_scale
from shared.errors import InvalidRequest
from shared.models.families.var import ScaleCache, VARModel
from shared.models.families.var_vae import ScaleQuantizer


class ScaleRun:
    """State of B images: tokens so far, their sum of maps, the transformer's cache.

    guidance  strength at the last scale
    """

    def __init__(self, model: VARModel, quantizer: ScaleQuantizer, labels_B: Tensor, guidance: float) -> None:
        if quantizer.maps.scales != model.config.scales:
            what = f"the transformer has scales {model.config.scales}, the VQ {quantizer.maps.scales}"
            raise InvalidRequest(what, "both must come from the same publication")
        self.model, self.quantizer, self.guidance = model, quantizer, guidance
        self.tokens: list[Tensor] = []
        self.sum_BEHH = quantizer.nothing(len(labels_B))
        self.inputs: list[Tensor] = []  # of scales 1, 2, ...: [B, p * p, E]
        self.seen = 0  # scales in the cache
        self.cond_RD = model.condition(labels_B)
        # Of the scale last asked for; states have a row per image with its class, then one without.
        self.hidden_RTD = self.cond_RD[:, None][:, :0]
        self.logits_BTV = self.hidden_RTD[: len(labels_B)]
        self._cache = ScaleCache(model.config, 2 * len(labels_B))

    @property
    def scale(self) -> int:
        """The scale that comes next."""
        return len(self.tokens)

    def logits(self) -> Tensor:
        """Guided logits [B, p * p, V] of the next scale, from one pass over all scales not seen yet."""
        scales, first = len(self.model.config.scales), min(self.seen, self.scale)
        maps = self.inputs[max(first - 1, 0) :] or [self.sum_BEHH.flatten(2).transpose(1, 2)[:, :0]]
        maps_RTE = torch.cat(maps, 1).repeat(2, 1, 1)
        hidden = self.model(maps_RTE, self.cond_RD, first, self.scale + 1, self._cache)
        places = self.model.config.scales[self.scale] ** 2
        self.hidden_RTD = hidden[:, -places:]
        cond, uncond = self.model.logits(self.hidden_RTD, self.cond_RD).chunk(2)
        self.seen = self.scale + 1
        self.logits_BTV = guide_scale(cond, uncond, guidance_at(self.scale, scales, self.guidance))
        return self.logits_BTV

    def push(self, tokens_BT: Tensor) -> None:
        """Give the next scale its tokens."""
        self.sum_BEHH = self.quantizer.added(self.sum_BEHH, tokens_BT, self.scale)
        self.tokens.append(tokens_BT)
        if self.scale < len(self.model.config.scales):
            self.inputs.append(self.quantizer.input_map(self.sum_BEHH, self.scale))

    def rewind(self, scale: int) -> None:
        """Go back to before a scale: its tokens and those of all later ones are forgotten."""
        self.tokens, self.inputs = self.tokens[:scale], self.inputs[:scale]
        self.seen = min(self.seen, scale + 1)  # what is seen of a scale does not depend on its tokens
        sums = self.quantizer.sums(self.tokens) if self.tokens else [torch.zeros_like(self.sum_BEHH)]
        self.sum_BEHH = sums[-1]
