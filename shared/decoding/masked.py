"""The order in which MAR reveals an image's tokens. Knows no model. L tokens, n steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.errors import InvalidRequest

SCHEDULES = ("constant", "linear")


@dataclass(frozen=True)
class Reveal:
    """One step: how many tokens are masked before it and, for the mask of the next one, after it."""

    before: int
    after: int
    count: int


def reveals(tokens: int, steps: int) -> list[Reveal]:
    """The n steps: few tokens first, then more, along a cosine; the last one takes all that are left.

    With as many steps as tokens, each takes one. Raises InvalidRequest for more steps than tokens.
    """
    if not 1 <= steps <= tokens:
        raise InvalidRequest(f"{steps} steps for {tokens} tokens", f"allowed: 1 to {tokens}")
    found, before = [], tokens
    for step in range(steps):
        share = np.cos(math.pi / 2 * (step + 1) / steps)
        after = max(1, min(before - 1, math.floor(tokens * share)))
        found.append(Reveal(before, after, before if step == steps - 1 else before - after))
        before = after
    return found


def masked(order_BL: Tensor, count: int) -> Tensor:
    """Which places are masked [B, L], bool: the first `count` of each order; it is revealed from its end."""
    mask_BL = torch.zeros_like(order_BL, dtype=torch.bool)
    return mask_BL.scatter(1, order_BL[:, :count], True)


def asked(order_BL: Tensor, reveal: Reveal) -> Tensor:
    """Which places a step predicts [B, L], bool."""
    return masked(order_BL, reveal.before) & ~masked(order_BL, reveal.before - reveal.count)


def guidance_of(reveal: Reveal, tokens: int, strength: float, schedule: str) -> float:
    """Guidance of a step: constant, or growing with the tokens that are known after it. Raises InvalidRequest
    for another schedule."""
    if schedule not in SCHEDULES:
        raise InvalidRequest(f"no guidance schedule {schedule!r}", f"allowed: {', '.join(SCHEDULES)}")
    grown = (tokens - reveal.after) / tokens if schedule == "linear" else 1.0
    return 1 + (strength - 1) * grown
