"""How the cloud judges a drafted span: coupled, rejection, greedy, relaxed, one signature (SPEC section 3).

Knows nothing of sessions, models or messages: a rule reads the cloud's warped distribution and the span.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.decoding import noise
from shared.errors import InvalidDraft, InvalidRequest

MOST_NEIGHBOURS = 1000  # columns of a neighbour table
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Judgement:
    """span[:accepted] stands; `token` follows it: correction or bonus, None if the span ended the image.

    guesses  the cloud's own draws for the places behind a correction. They were made behind the rejected
             token, so they are worth no more than a draft. None behind a bonus, and none by `rejection`
    path     of a tree: its nodes that stand, from the root on
    drawn_from  fp32 [n, V] what the guesses were drawn from, where the next judgement asks for it
    """

    accepted: int
    token: int | None
    guesses: tuple[int, ...] = ()
    path: tuple[int, ...] = ()
    drawn_from: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Relaxation:
    """How far `relaxed` may stray. Raises InvalidRequest on a value out of range.

    k          nearest codebook neighbours of a draft that may stand for it, 1 .. MOST_NEIGHBOURS
    delta      how far the law of a token may be from the cloud's, in total variation, 0 .. 1; 1 is no bound
    multiple   lambda: the neighbours add at most (lambda - 1) p(draft), >= 1; 0 is off
    """

    k: int
    delta: float
    multiple: float = 0.0

    def __post_init__(self) -> None:
        # Written so that NaN fails every test.
        for holds, name, value, allowed in (
            (1 <= self.k <= MOST_NEIGHBOURS and self.k % 1 == 0, "k", self.k, f"1 to {MOST_NEIGHBOURS}"),
            (0.0 <= self.delta <= 1.0, "delta", self.delta, "0 to 1"),
            (self.multiple == 0 or self.multiple >= 1, "lambda", self.multiple, "0 (off), 1 and more"),
        ):
            if not holds:
                raise InvalidRequest(f"relax {name} {value:g} is out of range", f"allowed: {allowed}")


@dataclass(frozen=True, eq=False)
class Judged:
    """What a rule judges. Raises InvalidDraft unless there are K or K + 1 rows, and at least one.

    log_p_TV           warped log-probabilities of the cloud: one row per span place, plus one for the bonus
                       unless the span ends the image
    span_K             int64 drafted tokens; K = 0 asks for one plain draw
    position           image position of span[0]
    proposal_ids_KJ    int64 ids of the sparse q each span token was sampled from; `rejection` needs them
    proposal_probs_KJ  fp32 probabilities (rounded to fp16 by the device) of those ids
    neighbours_VN      int32 nearest codebook neighbours of every id, nearest first; `relaxed` needs them
    relaxation         how far `relaxed` may stray
    """

    log_p_TV: Tensor
    span_K: Tensor
    seed: int
    position: int
    proposal_ids_KJ: Tensor | None = None
    proposal_probs_KJ: Tensor | None = None
    neighbours_VN: Tensor | None = None
    relaxation: Relaxation | None = None

    def __post_init__(self) -> None:
        rows, span = self.log_p_TV.shape[0], self.span_K.shape[0]
        if rows < 1 or rows - span not in (0, 1):
            expected = f"expected {max(span, 1)} or {span + 1}"
            raise InvalidDraft(f"{rows} rows cannot judge a span of {span}", expected)


Rule = Callable[[Judged], Judgement]


def coupled(judged: Judged) -> Judgement:
    """Accept while the draft equals argmax(log p + g): what is verified is what the base would have drawn.

    Acceptance is at least (1 - TV) / (1 + TV) per place when the device drafts argmax(log q + g).
    """
    return _settle(judged, _drawn(judged))


def greedy(judged: Judged) -> Judgement:
    """Accept while the draft equals argmax(log p): `coupled` with zero noise."""
    return _settle(judged, judged.log_p_TV.argmax(-1))


def relaxed(judged: Judged) -> Judgement:
    """`coupled`, and a draft stands as well where the cloud drew one of its nearest neighbours (LANTERN).

    Neighbours of the draft x are counted, nearest first, k at most, while their mass m keeps
    2 m <= delta (1 - p(x)) and, with lambda, m <= (lambda - 1) p(x). Lossy: the token's law is within delta
    of p in total variation when the device drafts argmax(log q + g), whatever q is. For then, given x, the
    cloud draws j != x with probability at most p(j) (2 - q(x)) / (1 - p(x)): read the shared noise as a race
    of exponential clocks in which that of x rang first, at a time of mean 1.
    """
    drawn_T = _drawn(judged)
    span = judged.span_K.shape[0]
    return _settle(judged, drawn_T, _drew_neighbour(judged, drawn_T[:span]) if span else None)


def nearest_neighbours(codes_VE: Tensor) -> Tensor:
    """The min(V - 1, MOST_NEIGHBOURS) nearest other codes of every code, nearest first: int32 [V, N].

    Euclidean distance; equally near ones in any order. Memory beyond the result: some tens of MB.
    """
    codes_VE = codes_VE.float()
    kept = min(len(codes_VE) - 1, MOST_NEIGHBOURS)
    halves_V = codes_VE.square().sum(-1) / 2
    rows = []
    for first in range(0, len(codes_VE), _ROWS_AT_ONCE):
        near_RV = codes_VE[first : first + _ROWS_AT_ONCE] @ codes_VE.T - halves_V
        own_R1 = torch.arange(first, first + len(near_RV), device=codes_VE.device)[:, None]
        rows.append(near_RV.scatter_(1, own_R1, -torch.inf).topk(kept).indices.to(torch.int32))
    return torch.cat(rows)


def rejection(judged: Judged) -> Judgement:
    """Accept x with min(1, p(x) / q(x)), else draw from norm((p - q)+) (Leviathan, Chen 2023).

    `q` is the rounded sparse proposal the device really sampled from, so the emitted law is exactly p and
    acceptance is 1 - TV(p, q). Raises InvalidDraft when the proposal is missing or cannot hold the span.
    """
    span = judged.span_K.shape[0]
    q_KV = _dense_proposal(judged)
    p_KV = judged.log_p_TV[:span].exp()
    p_K, q_K = (probs_KV.gather(1, judged.span_K[:, None])[:, 0] for probs_KV in (p_KV, q_KV))
    positions = np.arange(judged.position, judged.position + span)
    u_K = torch.from_numpy(noise.uniform(judged.seed, positions, 1, noise.ACCEPT)[:, 0]).to(p_K.device)
    # fp64, because u < 1 must stay below one: where p = q nothing may be rejected.
    accepted = _leading(u_K * q_K.double() < p_K.double())
    if accepted == span:
        return Judgement(span, _bonus(judged))
    return Judgement(accepted, _residual_draw(judged, accepted, q_KV[accepted]))


def sparsify(log_q_V: Tensor, k: int) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    """The `k` likeliest ids of q and their probabilities among themselves, rounded to fp16, likeliest first.

    Both have min(k, V) entries; ids the warp has filtered out may be among them, with probability 0.
    """
    top = log_q_V.float().topk(min(k, log_q_V.shape[-1]))
    probs_J = top.values.softmax(-1)
    return top.indices.cpu().numpy().astype(np.int32), probs_J.cpu().numpy().astype(np.float16)


def sparse_q(probs_KJ: Tensor) -> Tensor:
    """The q that rounded probabilities stand for, fp32 [..., J]: renormalised, alike on both sides."""
    probs_KJ = probs_KJ.float()
    return probs_KJ / probs_KJ.sum(-1, keepdim=True)


def sample_sparse(ids_J: NDArray[np.int32], probs_J: NDArray[np.float16], noise_V: Tensor) -> int:
    """The device's draft for `rejection`: drawn from the rounded sparse q with the Gumbel noise [V]."""
    ids = torch.from_numpy(ids_J.astype(np.int64)).to(noise_V.device)
    q_J = sparse_q(torch.from_numpy(probs_J.astype(np.float32))).to(noise_V.device)
    return int(ids[(q_J.log() + noise_V[ids]).argmax()])


RULES: Mapping[str, Rule] = MappingProxyType(
    {"coupled": coupled, "rejection": rejection, "greedy": greedy, "relaxed": relaxed}
)


def rule(name: str) -> Rule:
    """The rule of that name. Raises InvalidRequest naming the allowed ones."""
    if name not in RULES:
        raise InvalidRequest(f"unknown acceptance rule {name!r}", f"allowed: {', '.join(RULES)}")
    return RULES[name]


def _settle(judged: Judged, drawn_T: Tensor, near_K: Tensor | None = None) -> Judgement:
    """Compare the span with the cloud's own draws, one per row; where `near_K`, a draft stands anyway."""
    drawn, stands_K = drawn_T.tolist(), drawn_T[: judged.span_K.shape[0]] == judged.span_K
    accepted = _leading(stands_K if near_K is None else stands_K | near_K)
    token = drawn[accepted] if accepted < len(drawn) else None
    return Judgement(accepted, token, tuple(drawn[accepted + 1 :]))


def _drew_neighbour(judged: Judged, drawn_K: Tensor) -> Tensor:
    """Where the cloud drew a counted neighbour of the draft: bool [K]."""
    if judged.neighbours_VN is None or judged.relaxation is None:
        raise InvalidRequest("relaxed acceptance needs k, delta and a codebook", "the cloud has none")
    _check_ids(judged.span_K, judged.log_p_TV.shape[1])
    bounds = judged.relaxation
    near_KN = judged.neighbours_VN[judged.span_K, : bounds.k].long()
    p_KV = judged.log_p_TV[: len(drawn_K)].exp()
    own_K1 = p_KV.gather(1, judged.span_K[:, None])
    mass_KN = p_KV.gather(1, near_KN).double().cumsum(1)
    most_K1 = bounds.delta * (1 - own_K1.double()) / 2 if bounds.delta < 1 else torch.ones_like(own_K1)
    if bounds.multiple:
        most_K1 = torch.minimum(most_K1, (bounds.multiple - 1) * own_K1)
    return ((near_KN == drawn_K[:, None]) & (mass_KN <= most_K1)).any(1)


def _leading(passed_K: Tensor) -> int:
    """How many places pass before the first that fails."""
    return int(passed_K.long().cumprod(0).sum())


def _drawn(judged: Judged) -> Tensor:
    """argmax(log p + g) of every row: int64 [T]. An id that the warp filtered out needs no noise."""
    log_p_TV = judged.log_p_TV
    if log_p_TV.device.type != "cpu":
        return (log_p_TV + _noise(judged, 0, noise.DRAW)).argmax(-1)
    wanted_TV = log_p_TV.isfinite().numpy()
    positions = np.arange(judged.position, judged.position + len(log_p_TV))
    return (log_p_TV + noise.gumbel_where(wanted_TV, judged.seed, positions)).argmax(-1)


def _noise(judged: Judged, first_row: int, stream: int) -> Tensor:
    """Gumbel noise of the rows from `first_row` on, fp32, where the logits are."""
    rows, size = judged.log_p_TV.shape
    device = judged.log_p_TV.device
    positions = np.arange(judged.position + first_row, judged.position + rows)
    if device.type == "cpu":
        return noise.gumbel(judged.seed, positions, size, stream)
    return noise.gumbel_torch(judged.seed, torch.from_numpy(positions), size, stream, device)


def _bonus(judged: Judged) -> int | None:
    """The plain draw behind an accepted span, from the shared noise; None where the span ends the image."""
    span = judged.span_K.shape[0]
    if judged.log_p_TV.shape[0] == span:
        return None
    return int((judged.log_p_TV[span] + _noise(judged, span, noise.DRAW)[0]).argmax())


def _residual_draw(judged: Judged, row: int, q_V: Tensor) -> int:
    """A draw from norm((p - q)+), or from p when nothing is left of it."""
    log_p_V = judged.log_p_TV[row]
    residual_V = (log_p_V.exp() - q_V).clamp(min=0.0)
    log_residual_V = residual_V.log() if bool(residual_V.any()) else log_p_V
    # Gumbel-max needs no normalisation: a constant added to every logarithm moves no argmax.
    position = np.array([judged.position + row])
    noise_V = noise.gumbel(judged.seed, position, len(q_V), noise.RESIDUAL)[0]
    return int((log_residual_V + noise_V.to(q_V.device)).argmax())


def _dense_proposal(judged: Judged) -> Tensor:
    """The checked proposal as fp32 [K, V]."""
    ids_KJ, probs_KJ = judged.proposal_ids_KJ, judged.proposal_probs_KJ
    span, size = judged.span_K.shape[0], judged.log_p_TV.shape[1]
    q_KV = judged.log_p_TV.new_zeros((span, size))
    if span == 0:
        return q_KV
    if ids_KJ is None or probs_KJ is None:
        raise InvalidDraft("the draft carries no proposal", "rejection needs the q of every span token")
    if ids_KJ.shape != probs_KJ.shape or ids_KJ.shape[0] != span:
        shapes = f"{tuple(ids_KJ.shape)} and {tuple(probs_KJ.shape)}"
        raise InvalidDraft(f"proposal shapes {shapes} do not fit", f"expected two of [{span}, k]")
    _check_ids(ids_KJ, size)
    _check_ids(judged.span_K, size)
    if not bool((probs_KJ.isfinite() & (probs_KJ >= 0)).all()) or not bool((probs_KJ.sum(-1) > 0).all()):
        raise InvalidDraft("a proposal row is no distribution", "allowed: finite, >= 0 and not all zero")
    q_KV.scatter_add_(1, ids_KJ, sparse_q(probs_KJ))
    if not bool((q_KV.gather(1, judged.span_K[:, None]) > 0).all()):
        raise InvalidDraft("a span token has probability 0 in its own proposal", "it was not drawn from it")
    return q_KV


def _check_ids(ids: Tensor, size: int) -> None:
    if bool(((ids < 0) | (ids >= size)).any()):
        found = f"token ids {int(ids.min())} .. {int(ids.max())}"
        raise InvalidDraft(f"{found} do not fit", f"allowed: 0 to {size - 1}")
