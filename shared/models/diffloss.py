"""MAR's head: a small diffusion model that draws one continuous token, given the transformer's output for it.

Source: Li et al., "Autoregressive image generation without vector quantization" (2024), and its public code,
whose names the parameters have. Knows no transformer; all noise is an argument. Outputs and states are fp32:
at the first step an error of the predicted noise is enlarged some 300 times.

Shapes: N tokens, C token width, D condition width, T steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared.decoding.diffusion import Believed, Schedule, ancestral, believed, guided_eps
from shared.models.vit import NORM_EPS, FinalLayer, TimeEmbedding, conditioning, modulated


class HeadBlock(nn.Module):
    """A residual block under adaLN: shift, scale, gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = conditioning(width, 3)

    def forward(self, h_NW: Tensor, y_NW: Tensor) -> Tensor:
        """Shape kept."""
        shift, scale, gate = self.adaLN_modulation(y_NW).chunk(3, dim=-1)
        out: Tensor = h_NW + gate * self.mlp(modulated(self.in_ln(h_NW), shift, scale))
        return out


class DenoisingMLP(nn.Module):
    """State, step and condition -> predicted noise and the place of the variance, side by side [N, 2C]."""

    def __init__(self, token_dim: int, cond_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = TimeEmbedding(width)
        self.cond_embed, self.input_proj = nn.Linear(cond_dim, width), nn.Linear(token_dim, width)
        self.res_blocks = nn.ModuleList(HeadBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * token_dim)

    def forward(self, x_NC: Tensor, step_N: Tensor, z_ND: Tensor) -> Tensor:
        """`step_N` are original steps."""
        y_NW = self.time_embed(step_N) + self.cond_embed(z_ND)
        h_NW = self.input_proj(x_NC)
        for block in self.res_blocks:
            h_NW = block(h_NW, y_NW)
        out: Tensor = self.final_layer(h_NW, y_NW).float()
        return out


@dataclass(frozen=True, eq=False)
class Condition:
    """What a token is drawn for: z [N, D]; where it is guided, z of no class [N, D] and the strength, one or
    a token's own [N, 1]."""

    z_ND: Tensor
    nothing_ND: Tensor | None = None
    guidance: float | Tensor = 1.0

    def of(self, rows: slice) -> Condition:
        """That of some of the tokens."""
        nothing = None if self.nothing_ND is None else self.nothing_ND[rows]
        strength = self.guidance[rows] if isinstance(self.guidance, Tensor) else self.guidance
        return Condition(self.z_ND[rows], nothing, strength)

    def repeated(self, times: int) -> Condition:
        """Every token's so many times in a row."""
        nothing = None if self.nothing_ND is None else self.nothing_ND.repeat_interleave(times, 0)
        strength = self.guidance
        if isinstance(strength, Tensor):
            strength = strength.repeat_interleave(times, 0)
        return Condition(self.z_ND.repeat_interleave(times, 0), nothing, strength)


class DiffLoss(nn.Module):
    """The head under the name it has in the files; the paper's name is that of its loss."""

    def __init__(self, token_dim: int, cond_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.net = DenoisingMLP(token_dim, cond_dim, width, depth)

    def output(self, x_NC: Tensor, step_N: Tensor, cond: Condition) -> Tensor:
        """[N, 2C]: noise, guided where there is guidance, and v of the conditional row, which never is."""
        if cond.nothing_ND is None:
            found: Tensor = self.net(x_NC, step_N, cond.z_ND)
            return found
        z_RD = torch.cat([cond.z_ND, cond.nothing_ND])
        both_RC = self.net(x_NC.repeat(2, 1), step_N.repeat(2), z_RD)
        (eps, uncond_eps), width = both_RC[:, : x_NC.shape[1]].chunk(2), x_NC.shape[1]
        v_NC = both_RC[: len(x_NC), width:]
        return torch.cat([guided_eps(eps, uncond_eps, cond.guidance), v_NC], 1)

    def believe(self, schedule: Schedule, t_N: Tensor, x_NC: Tensor, cond: Condition) -> Believed:
        """The Gaussian of the state before, for kept steps `t_N`."""
        steps_N = torch.tensor(schedule.original, device=x_NC.device)[t_N]
        eps, v = self.output(x_NC, steps_N, cond).chunk(2, dim=1)
        return believed(schedule, t_N, x_NC, eps, v)


@dataclass(frozen=True, eq=False)
class ChainNoise:
    """Noise of N tokens: the start [N, C], and [N, T, C] by kept step; that of step 0 is not used."""

    start_NC: Tensor
    step_NTC: Tensor


def chain(
    head: DiffLoss, schedule: Schedule, cond: Condition, noise: ChainNoise, temperature: float = 1.0
) -> Iterator[tuple[Tensor, Believed]]:
    """From noise to a token: after each step, T - 1 first, the state [N, C] and what was believed.

    The last state is the token. The start is never scaled by the temperature.
    """
    x_NC = noise.start_NC
    for t in reversed(range(len(schedule))):
        t_N = torch.full((len(x_NC),), t, device=x_NC.device)
        found = head.believe(schedule, t_N, x_NC, cond)
        x_NC = ancestral(found, t_N, noise.step_NTC[:, t], temperature)
        yield x_NC, found


def draw_tokens(
    head: DiffLoss, schedule: Schedule, cond: Condition, noise: ChainNoise, temperature: float = 1.0
) -> Tensor:
    """The last state of `chain` [N, C]."""
    x_NC = noise.start_NC
    for x_NC, _ in chain(head, schedule, cond, noise, temperature):  # noqa: B007 - the last one is wanted
        pass
    return x_NC
