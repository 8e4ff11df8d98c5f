"""A batch of images of MAR, step by step. All noise is an argument, so device and cloud draw along the same
trajectories. Knows no files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.decoding.diffusion import Schedule
from shared.decoding.masked import Reveal, asked, guidance_of, masked, reveals
from shared.models.diffloss import ChainNoise, Condition, draw_tokens
from shared.models.families.mar import MARModel


@dataclass(frozen=True, eq=False)
class Plan:
    """How B images are drawn: order_BL the places, the first ones revealed last; start_BLC and step_BLTC the
    noise of each place; strength 1 is no guidance."""

    order_BL: Tensor
    start_BLC: Tensor
    step_BLTC: Tensor
    steps: int
    strength: float = 1.0
    guidance: str = "linear"
    temperature: float = 1.0


@dataclass(frozen=True, eq=False)
class Step:
    """What one step gave: where [B, L], for which z [N, Dd] (guided: as many of no class below), all tokens
    so far [B, L, C]."""

    reveal: Reveal
    guidance: float
    asked_BL: Tensor
    z_RD: Tensor
    tokens_BLC: Tensor


def outputs(
    model: MARModel, tokens_BLC: Tensor, masked_BL: Tensor, asked_BL: Tensor, cond_RD: Tensor
) -> Tensor:
    """z [N, Dd] of the asked places, by row and then by place. `cond_RD` has B rows, or 2 B where there is
    guidance: then as many z of no class follow."""
    turns = len(cond_RD) // len(tokens_BLC)
    z_RLD: Tensor = model(tokens_BLC.repeat(turns, 1, 1), masked_BL.repeat(turns, 1), cond_RD)
    return z_RLD[asked_BL.repeat(turns, 1)]


def told(z_RD: Tensor, guided: bool, guidance: float) -> Condition:
    """What the head is told, of `outputs`."""
    if not guided:
        return Condition(z_RD)
    with_class, nothing = z_RD.chunk(2)
    return Condition(with_class, nothing, guidance)


def steps(model: MARModel, schedule: Schedule, cond_BD: Tensor, plan: Plan) -> Iterator[Step]:
    """Draw B images; the tokens of the last step are the images."""
    tokens_BLC = torch.zeros_like(plan.start_BLC)
    guided = plan.strength != 1.0
    cond_RD = torch.cat([cond_BD, model.nothing(len(cond_BD))]) if guided else cond_BD
    for reveal in reveals(model.config.tokens, plan.steps):
        where = asked(plan.order_BL, reveal)
        guidance = guidance_of(reveal, model.config.tokens, plan.strength, plan.guidance)
        hidden = masked(plan.order_BL, reveal.before)
        z_RD = outputs(model, tokens_BLC, hidden, where, cond_RD)
        noise = ChainNoise(plan.start_BLC[where], plan.step_BLTC[where])
        cond = told(z_RD, guided, guidance)
        drawn_NC = draw_tokens(model.diffloss, schedule, cond, noise, plan.temperature)
        tokens_BLC = tokens_BLC.masked_scatter(where[..., None], drawn_NC)
        yield Step(reveal, guidance, where, z_RD, tokens_BLC)
