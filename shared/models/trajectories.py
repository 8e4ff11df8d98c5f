"""Whole paths of the diffusion head, for the exact test of a drafted token. Knows no transformer.

Unlike ordinary sampling, the last step adds its noise too, of a standard deviation of about 0.006 that nobody
sees: so every step has a density. Shapes: N tokens, T steps, C token width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shared.decoding.continuous import Gaussian
from shared.decoding.diffusion import Believed, Schedule
from shared.models.diffloss import ChainNoise, Condition, DiffLoss, chain


def path(head: DiffLoss, schedule: Schedule, cond: Condition, noise: ChainNoise) -> Tensor:
    """States [N, T + 1, C]: the start, then what each step led to, T - 1 first; the last one is the token."""
    states = [noise.start_NC]
    for t in reversed(range(len(schedule))):
        t_N = torch.full((len(noise.start_NC),), t, device=noise.start_NC.device)
        found = head.believe(schedule, t_N, states[-1], cond)
        states.append(_gaussian(found).moved(noise.step_NTC[:, t]))
    return torch.stack(states, 1)


def along(head: DiffLoss, schedule: Schedule, states_NTC: Tensor, cond: Condition) -> Gaussian:
    """What the head believes at the state before every step [N, T, C], in one pass over all N T of them; the
    path may be anybody's. `states_NTC` are the first T states of `path`."""
    count, steps = states_NTC.shape[:2]
    t_M = torch.arange(steps - 1, -1, -1, device=states_NTC.device).repeat(count)
    found = _gaussian(head.believe(schedule, t_M, states_NTC.flatten(0, 1), cond.repeated(steps)))
    return Gaussian(found.mean.reshape(states_NTC.shape), found.log_std.reshape(states_NTC.shape))


def last_step(
    head: DiffLoss, schedule: Schedule, cond: Condition, noise: ChainNoise
) -> tuple[Gaussian, Tensor]:
    """Of ordinary sampling, what the published acceptance looks at: the Gaussian of the last step, whose mean
    is the token, and the sums [N], fp64, of the logarithms of the standard deviations of all steps before."""
    before_N = torch.zeros(len(noise.start_NC), dtype=torch.float64)
    last = None
    for _, found in chain(head, schedule, cond, noise):
        if last is not None:
            before_N = before_N + last.log_std.double().sum(-1)
        last = _gaussian(found)
    assert last is not None, "a schedule has steps"
    return last, before_N


def _gaussian(found: Believed) -> Gaussian:
    return Gaussian(found.mean, found.log_variance / 2)
