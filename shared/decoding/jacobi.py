"""Speculative Jacobi decoding with its own acceptance (Teng et al. 2024): drafts of one iteration, judged in
the next. Knows nothing of models or sessions.

Its lossless sibling with coupled draws needs no rule of its own: there `coupled` judges the draws of the
iteration before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shared.decoding import noise
from shared.decoding.acceptance import Judged, Judgement, rejection

FRESH = 64  # the stream of iteration i is FRESH + i: another draw at the same place in every iteration


@dataclass(frozen=True, eq=False)
class Iterated(Judged):
    """A span whose tokens were drawn in earlier iterations.

    q_KV       fp32 what each was drawn from; all mass on a token that was put there without a draw
    iteration  number of this forward, from 0
    """

    q_KV: Tensor | None = None
    iteration: int = 0


def speculative_jacobi(judged: Iterated) -> Judgement:
    """Accept each token with min(1, p / q), q being what it was drawn from, else draw from norm((p - q)+);
    draw all that follow a rejection anew, from p (`guesses`, with `drawn_from`).

    A place is judged once, with uniforms of its own, and was drawn with noise of its own iteration: the law
    of the image is exactly the base's, its tokens are not.
    """
    span, size = judged.span_K.shape[0], judged.log_p_TV.shape[1]
    assert judged.q_KV is not None
    ids_KV = torch.arange(size, device=judged.log_p_TV.device).expand(span, -1)
    found = rejection(replace(judged, proposal_ids_KJ=ids_KV, proposal_probs_KJ=judged.q_KV))
    behind_TV = judged.log_p_TV[found.accepted + 1 : span]
    first = judged.position + found.accepted + 1
    places = range(first, first + len(behind_TV))
    g_TV = noise.gumbel(judged.seed, places, size, FRESH + judged.iteration).to(behind_TV.device)
    drawn = tuple((behind_TV + g_TV).argmax(-1).tolist())
    return replace(found, guesses=drawn, drawn_from=behind_TV.exp())
