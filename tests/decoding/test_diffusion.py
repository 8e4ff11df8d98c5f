"""Schedules and steps of diffusion, beyond the official numbers: properties, and requests without sense."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.decoding.diffusion import (
    STEPS,
    ancestral,
    at,
    believed,
    cosine,
    ddim,
    linear,
    respaced,
    sensitivity,
    spaced,
)
from shared.decoding.masked import asked, guidance_of, masked, reveals
from shared.errors import InvalidRequest


@pytest.mark.parametrize("spacing", ["ddim0", "ddim", "ddim999x", "0", "", "ten", "5,,5", "-3", "ddim700"])
def test_spacings_without_sense_are_refused(spacing: str) -> None:
    with pytest.raises(InvalidRequest):
        spaced(STEPS, spacing)


def test_more_steps_than_there_are_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="wants 501 of 500"):
        spaced(STEPS, "10,501")


def test_parts_have_steps_of_their_own() -> None:
    found = spaced(STEPS, "3,2")
    assert found == (0, 250, 499, 500, 999)


@pytest.mark.parametrize("make", [linear, cosine])
def test_fewer_steps_keep_their_noise_level(make) -> None:
    whole = make()
    few = respaced(whole, "10")
    np.testing.assert_allclose(few.kept, whole.kept[list(few.original)], rtol=1e-9)
    assert respaced(whole, "").original == whole.original


@pytest.mark.parametrize("spacing", ["ddim50", "7"])
def test_true_noise_leads_back_to_the_image(spacing: str) -> None:
    """From any step, in one stride of DDIM steps: the image is recovered where the noise is known."""
    schedule, generator = respaced(linear(), spacing), torch.Generator().manual_seed(3)
    image, noise = (torch.randn(4, 3, 2, 2, generator=generator) for _ in range(2))
    state = torch.empty_like(image)
    for t in reversed(range(len(schedule))):
        t_N = torch.full((4,), t)
        kept = at(schedule.kept, t_N, image)
        state = kept.sqrt() * image + (1 - kept).sqrt() * noise
        before, found = ddim(schedule, t_N, state, noise)
        torch.testing.assert_close(found, image, atol=2e-3, rtol=0)
        if t:
            earlier = at(schedule.kept, t_N - 1, image)
            torch.testing.assert_close(
                before, earlier.sqrt() * image + (1 - earlier).sqrt() * noise, atol=2e-3, rtol=0
            )
    torch.testing.assert_close(before, image, atol=2e-3, rtol=0)


def test_the_last_step_adds_no_noise() -> None:
    schedule, x = respaced(cosine(), "10"), torch.ones(2, 3)
    found = believed(schedule, torch.tensor([0, 4]), x, 0 * x, 0 * x)
    moved = ancestral(found, torch.tensor([0, 4]), 5 * x, temperature=0.9)
    assert torch.equal(moved[0], found.mean[0]) and not torch.equal(moved[1], found.mean[1])


def test_an_error_matters_most_at_the_start() -> None:
    """What a unit of error of the noise does to the state at 50 steps: the numbers of the design note."""
    found = sensitivity(respaced(linear(), "ddim50"))
    assert [round(float(found[t]), 2) for t in (49, 30, 20, 5, 0)] == [0.22, 0.13, 0.09, 0.07, 0.01]


@pytest.mark.parametrize(("tokens", "steps"), [(16, 1), (16, 5), (256, 64), (256, 256)])
def test_every_place_is_asked_once(tokens: int, steps: int) -> None:
    order = torch.stack([torch.randperm(tokens, generator=torch.Generator().manual_seed(s)) for s in (1, 2)])
    seen = torch.zeros(2, tokens, dtype=torch.int64)
    for reveal in reveals(tokens, steps):
        where = asked(order, reveal)
        assert (where & ~masked(order, reveal.before)).sum() == 0 and where.sum() == 2 * reveal.count
        seen += where
    assert seen.unique().tolist() == [1]


def test_reveals_and_guidance_without_sense_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="1 to 16"):
        reveals(16, 17)
    with pytest.raises(InvalidRequest, match="constant, linear"):
        guidance_of(reveals(16, 4)[0], 16, 3.0, "cosine")
