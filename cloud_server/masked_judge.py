"""What stands of a span of continuous tokens: a function for each acceptance. Knows no sessions and no wire.

The noise is the device's: both build it from (seed, place, step). Shapes: K drafted tokens, C token width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.continuous import Continuous, Kept, Masking, Values
from shared.decoding.continuous import (
    Gaussian,
    Replacement,
    attempts,
    log_uniforms,
    published_ratio,
    published_residual,
    residual,
    tolerant,
    trajectory_ratio,
)
from shared.models.diffloss import ChainNoise, Condition, DiffLoss
from shared.models.families.mar_image import MaskedImage, rounded, tensor_of
from shared.models.trajectories import along, last_step, path

RESIDUAL_BATCHES = (16, 64, 256)  # paths of the target drawn at a time in place of a refused one
STATES = 1600  # that a head looks at in one batch: sixteen paths of the published hundred steps
PROPOSALS = 100  # of the published acceptance, before it gives up


@dataclass(frozen=True, eq=False)
class Judged:
    """What goes back; of it, what stands [n, C] from the span's first token on; and how many tokens have no
    exact sample behind them because none of the replacements was kept."""

    kept: Kept
    standing: Values
    fallbacks: int = 0


@dataclass(frozen=True, eq=False)
class Bench:
    """What a judge works with: the image, the head of the device's model, the order's masking."""

    image: MaskedImage
    proposer: DiffLoss | None
    masking: Masking


def aligned(bench: Bench, span: Continuous) -> Judged:
    """A draft near the cloud's own token along the same noise stands; else that token. One pass."""
    image, drafted = bench.image, _values(span)
    ranks = range(image.known, image.known + len(drafted))
    own = image.draw(ranks, image.condition(ranks))
    log_u_K = log_uniforms(image.seed, image.place_L[ranks.start : ranks.stop].numpy())
    drafted_KC, own_KC = tensor_of(drafted), tensor_of(own)
    stands = tolerant(drafted_KC, own_KC, log_u_K, bench.masking.tolerance).numpy()
    return _settled(drafted, own, stands)


def published(bench: Bench, span: Continuous) -> Judged:
    """The published arithmetic, for comparison alone: it keeps no law. One pass.

    A refused token that finds no replacement becomes zeros, as published; it counts as a fallback.
    """
    image, drafted = bench.image, _values(span)
    assert span.log_std is not None, "checked by the session"
    ranks = range(image.known, image.known + len(drafted))
    places, head = image.place_L[ranks.start : ranks.stop].numpy(), image.model.diffloss
    p, before_K = last_step(head, image.schedule, image.condition(ranks), image.noise(ranks))
    drafted_KC = tensor_of(drafted)
    q = Gaussian(drafted_KC, tensor_of(span.log_std))
    fixed_K = (before_K - torch.tensor(span.log_std_before, dtype=torch.float64)).exp().float()
    stands_K = published_ratio(p, q, drafted_KC, fixed_K) > log_uniforms(image.seed, places).exp()
    own_KC, fallbacks = drafted_KC.clone(), 0
    for index in (~stands_K).nonzero()[:, 0].tolist():
        ours, theirs = (Gaussian(of.mean[index], of.log_std[index]) for of in (p, q))
        noise_NC, log_u_N = attempts(image.seed, int(places[index]), 0, PROPOSALS, drafted_KC.shape[1])
        offered_NC = ours.moved(noise_NC)
        kept_N = log_u_N.exp() < published_residual(ours, theirs, offered_NC, fixed_K[index])
        found = bool(kept_N.any())
        own_KC[index] = offered_NC[int(kept_N.int().argmax())] if found else 0.0
        fallbacks += not found
    judged = _settled(drafted, rounded(own_KC), stands_K.numpy())
    return Judged(judged.kept, judged.standing, fallbacks)


def trajectory(bench: Bench, span: Continuous) -> Judged:
    """The law of the cloud alone, one token after another, exactly: whole paths of the device's head are
    judged at the states they went through; the first refused one is replaced by a path of the residual law,
    and behind a span that stands whole the cloud draws one more token. One pass.
    """
    image, proposer = bench.image, bench.proposer
    assert proposer is not None and span.conditions is not None, "checked by the session"
    z_RKD = tensor_of(span.conditions).transpose(0, 1)
    count = z_RKD.shape[1]
    ranks = range(image.known, image.known + count)
    strengths_K1 = torch.tensor([[image.guidance(rank)] for rank in ranks])
    theirs = Condition(z_RKD[0], z_RKD[1] if len(z_RKD) > 1 else None, strengths_K1)
    states_KTC = path(proposer, image.schedule, theirs, image.noise(ranks))
    drafted = rounded(states_KTC[:, -1])
    ours = image.conditions_behind(drafted)
    ratio_K = _log_ratio(bench, ours.of(slice(0, count)), theirs, states_KTC)
    log_u_K = log_uniforms(image.seed, image.place_L[ranks.start : ranks.stop].numpy())
    refused = (log_u_K > ratio_K).nonzero()[:, 0].tolist()
    accepted, ends, fallbacks = refused[0] if refused else count, [], 0
    if refused:
        one = slice(accepted, accepted + 1)
        found = _replacement(bench, ours.of(one), theirs.of(one), ranks[accepted])
        ends, fallbacks = [rounded(found.path[-1:])], int(found.fallback)
    elif ranks.stop < len(image.place_L):
        behind = range(ranks.stop, ranks.stop + 1)
        last = ours.of(slice(count, count + 1))
        ends = [rounded(path(image.model.diffloss, image.schedule, last, image.noise(behind))[:, -1])]
    standing: Values = np.concatenate([drafted[:accepted], *ends])
    return Judged(Kept(np.arange(count) < accepted, standing), standing, fallbacks)


JUDGES: Mapping[str, Callable[[Bench, Continuous], Judged]] = {
    "aligned": aligned,
    "trajectory": trajectory,
    "published": published,
}


def _log_ratio(bench: Bench, ours: Condition, theirs: Condition, states_NTC: Tensor) -> Tensor:
    """log p - log q [N] of whole paths, each head looking at STATES of their states at a time."""
    image, proposer = bench.image, bench.proposer
    assert proposer is not None, "checked by the session"
    found, count = [], max(1, STATES // len(image.schedule))
    for begin in range(0, len(states_NTC), count):
        some = slice(begin, begin + count)
        states = states_NTC[some]
        p = along(image.model.diffloss, image.schedule, states[:, :-1], ours.of(some))
        q = along(proposer, image.schedule, states[:, :-1], theirs.of(some))
        found.append(trajectory_ratio(p, q, states[:, 1:]))
    return torch.cat(found)


def _replacement(bench: Bench, ours: Condition, theirs: Condition, rank: int) -> Replacement:
    """A path of the residual law of one token, from the start that its draft had."""
    image = bench.image
    place, steps = int(image.place_L[rank]), len(image.schedule)
    start_1C = image.noise(range(rank, rank + 1)).start_NC
    width, begun, picks = start_1C.shape[1], 0, torch.zeros(0)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        nonlocal begun, picks
        noise, picks = attempts(image.seed, place, begun, count, steps * width)
        begun += count
        chains = ChainNoise(start_1C.expand(count, -1), noise.reshape(count, steps, width))
        paths = path(image.model.diffloss, image.schedule, ours.repeated(count), chains)
        return paths, _log_ratio(bench, ours.repeated(count), theirs.repeated(count), paths)

    return residual(draw, lambda count: picks, RESIDUAL_BATCHES)


def _settled(drafted: Values, own: Values, stands: np.ndarray) -> Judged:
    standing: Values = np.where(stands[:, None], drafted, own)
    return Judged(Kept(stands, own[~stands]), standing)


def _values(span: Continuous) -> Values:
    assert span.values is not None, "checked by the session"
    return span.values
