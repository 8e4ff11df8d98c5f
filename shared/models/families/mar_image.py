"""One image of MAR in the making, as device and cloud both see it: what is known, and what a model says of
the next places. Knows no acceptance and no wire.

Ranks count the places of an image in the order of its seed; what is known are always the first ranks. Tokens
are rounded to half precision when they are drawn, and everything goes on from the rounded ones.

Shapes: L tokens, C token width, N asked ranks, R rows of guidance, D width of z.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from shared.continuous import Masking, Values
from shared.decoding.continuous import order_of, start_noise, step_noise
from shared.decoding.diffusion import cosine, respaced
from shared.decoding.masked import guidance_of, reveals
from shared.decoding.warp import Warp
from shared.models.diffloss import ChainNoise, Condition, draw_tokens
from shared.models.families.mar import MARModel

_LARGEST = float(np.finfo(np.float16).max)


def rounded(tokens_NC: Tensor) -> Values:
    """What a token is once it has been drawn: fp16, finite."""
    values: Values = tokens_NC.clamp(-_LARGEST, _LARGEST).half().numpy()
    return values


def tensor_of(values: np.ndarray) -> Tensor:
    """fp32, of what came in half precision."""
    return torch.from_numpy(values.astype(np.float32))


class MaskedImage:
    """The state of one image. `offsets` are the ranks at which the cloud's windows begin, and L. Raises
    InvalidRequest for more steps than tokens."""

    def __init__(self, model: MARModel, label: int, seed: int, masking: Masking, warp: Warp) -> None:
        tokens = model.config.tokens
        self.model, self.seed, self._masking, self._warp = model, seed, masking, warp
        self.schedule = replace(respaced(cosine(), str(masking.head_steps)), clip=masking.clip)
        self._windows = reveals(tokens, masking.steps)
        self.offsets = (0, *accumulate(window.count for window in self._windows))
        self.place_L = order_of(seed, tokens).flip(0)
        self.known = 0
        self._token_1LC = torch.zeros(1, tokens, model.config.token_dim)
        class_1D = model.classes(torch.tensor([label]))
        self._cond_RD = torch.cat([class_1D, model.nothing(1)]) if warp.guidance != 1.0 else class_1D

    @property
    def window(self) -> range:
        """The ranks of the window that the known ones end in."""
        end = next(offset for offset in self.offsets if offset > self.known)
        return range(self.known, end)

    def push(self, values_NC: Values) -> None:
        """The next tokens are known."""
        ranks = slice(self.known, self.known + len(values_NC))
        self._token_1LC[0, self.place_L[ranks]] = tensor_of(values_NC)
        self.known += len(values_NC)

    def rewind(self, known: int) -> None:
        """So many tokens are known, no more."""
        self.known = known

    def guidance(self, rank: int) -> float:
        """Of the window that a rank is in."""
        step = next(step for step, end in enumerate(self.offsets[1:]) if rank < end)
        tokens, masking = self.model.config.tokens, self._masking
        return guidance_of(self._windows[step], tokens, self._warp.guidance, masking.schedule)

    def condition(self, ranks: range) -> Condition:
        """What the head is told of these ranks, from one pass over all that is known. They lie in one
        window."""
        rows = len(self._cond_RD)
        hidden_RL = self._hidden(self.known).expand(rows, -1)
        z_RLD = self.model(self._token_1LC.expand(rows, -1, -1), hidden_RL, self._cond_RD)
        z_RND = z_RLD[:, self.place_L[ranks.start : ranks.stop]]
        return Condition(z_RND[0], z_RND[1] if rows > 1 else None, self.guidance(ranks.start))

    def conditions_behind(self, values_KC: Values) -> Condition:
        """What the head is told of each of the next ranks if the tokens before it were these, and of the one
        behind them, unless the image ends there; from one pass."""
        first, tokens = self.known, self.model.config.tokens
        ranks = range(first, min(first + len(values_KC) + 1, tokens))
        self.push(values_KC)
        self.rewind(first)
        hidden_NL = torch.cat([self._hidden(rank) for rank in ranks])
        turns, count = len(self._cond_RD), len(ranks)
        token_MLC = self._token_1LC.expand(turns * count, -1, -1)
        cond_MD = self._cond_RD.repeat_interleave(count, 0)
        z_MLD = self.model.ragged(token_MLC, hidden_NL.repeat(turns, 1), cond_MD)
        at_M = self.place_L[ranks.start : ranks.stop].repeat(turns)
        z_MD = z_MLD[torch.arange(turns * count), at_M]
        guidance_N1 = torch.tensor([[self.guidance(rank)] for rank in ranks])
        return Condition(z_MD[:count], z_MD[count:] if turns > 1 else None, guidance_N1)

    def noise(self, ranks: range) -> ChainNoise:
        """Keyed by the seed and the places of these ranks."""
        places = self.place_L[ranks.start : ranks.stop].numpy()
        width, steps = self.model.config.token_dim, len(self.schedule)
        steps_NTC = step_noise(self.seed, places, steps, width)
        return ChainNoise(start_noise(self.seed, places, width), steps_NTC)

    def draw(self, ranks: range, cond: Condition) -> Values:
        """The model's own tokens [N, C] there by ordinary sampling."""
        head, noise = self.model.diffloss, self.noise(ranks)
        return rounded(draw_tokens(head, self.schedule, cond, noise, self._warp.temperature))

    def _hidden(self, known: int) -> Tensor:
        hidden_1L = torch.zeros(1, len(self.place_L), dtype=torch.bool)
        hidden_1L[0, self.place_L[known:]] = True
        return hidden_1L
