"""Speculative Jacobi decoding with its own acceptance: the law of whole small images."""

from __future__ import annotations

import torch
from torch import Tensor

from shared.decoding.jacobi import Iterated, speculative_jacobi

VOCAB, PLACES, IMAGES = 6, 2, 4000
FIRST_V = torch.tensor([0.05, 0.30, 0.10, 0.25, 0.20, 0.10])
GUESS = 2  # what stands at a place before its first draw


def behind(token: int) -> Tensor:
    """The law of the second place: it leans on the first."""
    shifted = FIRST_V.roll(token) + 0.05
    return shifted / shifted.sum()


def rows(tokens: list[int]) -> Tensor:
    """log p of every place, given the tokens before it."""
    return torch.stack([FIRST_V, *(behind(token) for token in tokens)])[:PLACES].log()


def draw_image(seed: int) -> tuple[tuple[int, ...], int]:
    """One image of two places, and the forwards it took: all places are judged, or drawn anew, in each."""
    image: list[int] = []
    span, q_KV, forwards = [GUESS, GUESS], torch.eye(VOCAB)[[GUESS, GUESS]], 0
    while len(image) < PLACES:
        log_p_TV = rows([*image, *span])[len(image) :]
        judged = Iterated(log_p_TV, torch.tensor(span), seed, len(image), q_KV=q_KV, iteration=forwards)
        found = speculative_jacobi(judged)
        image += span[: found.accepted] + ([] if found.token is None else [found.token])
        span, forwards = list(found.guesses), forwards + 1
        assert found.drawn_from is not None
        q_KV = found.drawn_from
        assert q_KV.shape == (len(span), VOCAB)
    return tuple(image), forwards


def tail(counts: Tensor, expected: Tensor) -> float:
    """Upper tail of Pearson's chi-square."""
    statistic = ((counts - expected) ** 2 / expected).sum().double()
    degrees = torch.tensor((counts.numel() - 1) / 2).double()
    return float(torch.special.gammaincc(degrees, statistic / 2))


def test_images_follow_the_joint_law() -> None:
    """Chi-square over 36 images of two places, 4,000 seeds; false-alarm rate 1e-6 were the seeds random."""
    drawn = [draw_image(seed) for seed in range(IMAGES)]
    counts = torch.bincount(torch.tensor([a * VOCAB + b for (a, b), _ in drawn]), minlength=VOCAB**2)
    law_VV = torch.stack([FIRST_V[token] * behind(token) for token in range(VOCAB)])
    assert tail(counts, IMAGES * law_VV.flatten()) > 1e-6
    independent = (FIRST_V[:, None] * FIRST_V).flatten()
    assert tail(counts, IMAGES * independent) < 1e-6, "the test would not notice a wrong law"
    forwards = [count for _, count in drawn]
    assert set(forwards) == {1, 2}, "some images settle at once, none takes more forwards than places"
