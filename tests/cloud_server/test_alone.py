"""What the cloud draws by itself: Jacobi iteration, its published form, and rows in parallel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cloud_server.alone import Onward, artist, first_guess
from cloud_server.engine import Engine
from cloud_server.session import Job, Session
from shared.decoding.acceptance import Judgement
from shared.decoding.noise import gumbel
from shared.decoding.warp import log_probs
from shared.errors import InvalidRequest
from shared.messages import Open
from shared.models.kv_cache import Window, plain_window
from shared.models.woven import Woven
from shared.models.zoo import CloudModel
from tests.cloud_server.rig import base_image, order
from tests.tiny import WARP

T, COLUMNS = 16, 4


def draw(engine: Engine, wanted: Open, together: int = 1) -> list[Session]:
    """Whole prefixes, in forwards shared by so many sessions of neighbouring seeds."""
    sessions = [engine.open(wanted)] + [
        engine.open(order(engine._cloud, wanted.seed + extra, prefix_tokens=T))
        for extra in range(1, together)
    ]
    artists = [artist(session) for session in sessions]
    while any(session.missing_prefix for session in sessions):
        turn = [(a, a.job()) for a, s in zip(artists, sessions, strict=True) if s.missing_prefix]
        for (drawing, _), answer in zip(turn, engine.run([job for _, job in turn]), strict=True):
            drawing.take(answer.judgement)
    for session in sessions:
        engine.close(session)
    return sessions


@pytest.mark.parametrize("window", [2, 5, 16, 64])
@pytest.mark.parametrize(("seed", "prefix"), [(0, 16), (7, 16), (3, 1), (4, 11)])
def test_jacobi_draws_the_base_in_fewer_forwards(
    engine: Engine, cloud: CloudModel, window: int, seed: int, prefix: int
) -> None:
    wanted = order(cloud, seed, prefix_tokens=prefix, alone="jacobi", window=window)
    (session,) = draw(engine, wanted)
    assert session.tokens == base_image(cloud, wanted)[:prefix].tolist()
    assert session.forwards <= prefix
    if prefix == T and window > 2:
        assert session.forwards < T


def test_jacobi_goes_on_from_what_the_device_owns(engine: Engine, cloud: CloudModel) -> None:
    truth = base_image(cloud, order(cloud, 5))
    wanted = order(cloud, 5, prefix_tokens=T, resume=truth[:7], alone="jacobi", window=8)
    assert draw(engine, wanted)[0].tokens == truth.tolist()


def test_published_jacobi_draws_other_images_of_as_many_forwards(engine: Engine, cloud: CloudModel) -> None:
    images = []
    for seed in range(4):
        wanted = order(cloud, seed, prefix_tokens=T, alone="sjd", window=8)
        (session,) = draw(engine, wanted)
        assert len(session.tokens) == T and session.forwards < T
        assert session.tokens == draw(engine, wanted)[0].tokens, "a seed is an image here as well"
        images.append(session.tokens != base_image(cloud, wanted).tolist())
    assert any(images)


@pytest.mark.parametrize(
    ("forwards", "judgements", "worthwhile"),
    [
        (1, [Judgement(0, 1, (2, 3))], False),
        (8, [Judgement(0, 1, (2, 3))], True),
        (8, [Judgement(2, 1)], False),  # nothing was rejected
        (2, [Judgement(0, 1, (2, 3)), Judgement(1, 4, (5,))], False),
        (3, [Judgement(0, 1, (2, 3)), Judgement(1, 4, (5,))], True),
        (8, [Judgement(0, 1, (2, 3)), Judgement(0, 4, (5,))], False),  # the guesses were worth nothing
        (8, [Judgement(0, 1, (2,)), Judgement(1, 4)], False),  # nothing is guessed any more
    ],
)
def test_without_a_window_the_cloud_goes_on_while_it_gains(
    engine: Engine, cloud: CloudModel, forwards: int, judgements: list[Judgement], worthwhile: bool
) -> None:
    session = engine.open(order(cloud, resume=base_image(cloud, order(cloud))[:3], max_forwards=forwards))
    onward = Onward(session, judgements[0])
    for judgement in judgements[1:]:
        onward.take(judgement)
    assert onward.worthwhile == worthwhile
    if worthwhile:
        job = onward.job()
        assert job.span.tolist() == list(judgements[-1].guesses) and job.base == len(session.tokens)


@pytest.mark.parametrize("window", [2, 5, 64])
@pytest.mark.parametrize("seed", [0, 7])
def test_with_a_window_the_cloud_goes_on_to_the_end_as_it_would_alone(
    engine: Engine, cloud: CloudModel, window: int, seed: int
) -> None:
    """Behind drafts wrong at their second place, eight forwards each; every forward brings a token of
    the base at least."""
    truth = base_image(cloud, order(cloud, seed))
    session = engine.open(order(cloud, seed, alone="jacobi", window=window, max_forwards=8))
    while (begun := len(session.tokens)) < T:
        draft = truth[begun : begun + 3].astype(np.int32)
        draft[1:2] = (draft[1:2] + 1) % 32
        judgement = engine.run([Job(session, draft)])[0].judgement
        assert judgement.accepted == 1
        onward, forwards = Onward(session, judgement), 1
        while onward.worthwhile:
            before, job = len(session.tokens), onward.job()
            assert len(job.span) == min(window, T - before) - 1
            onward.take(engine.run([job])[0].judgement)
            assert len(session.tokens) > before
            forwards += 1
        assert forwards == 8 or len(session.tokens) == T
    assert session.tokens == truth.tolist()
    assert session.forwards < T or window == 2
    engine.close(session)


def test_the_first_guess_is_the_token_above() -> None:
    assert first_guess([], 4) == 0
    assert first_guess([9, 8], 4) == 8
    assert first_guess([9, 8, 7, 6, 5], 4) == 8


@pytest.mark.parametrize("lag", [COLUMNS, COLUMNS + 5])
def test_rows_behind_whole_rows_are_the_base(engine: Engine, cloud: CloudModel, lag: int) -> None:
    wanted = order(cloud, 2, prefix_tokens=T, alone="rows", window=lag)
    (session,) = draw(engine, wanted)
    assert session.tokens == base_image(cloud, wanted).tolist() and session.forwards == T


@torch.inference_mode()
def rows_spelled_out(cloud: CloudModel, wanted: Open) -> tuple[list[int], int]:
    """Row-parallel decoding by forwards without a cache: everything drawn so far, masks and all, each time.

    A token is computed once, with what was there then, as in the cached run; the rows of keys before it stay
    what they were. So the hidden rows of every layer are recomputed from masks that say when each came.
    """
    model, prompt_2ND = cloud.model, cloud.model.prompt_rows(wanted.prompt)
    count, rows = prompt_2ND.shape[1], model.config.prefix_len
    image: dict[int, int] = {}
    fed: list[tuple[int, int, int]] = []  # (forward, place, token) in the order of feeding
    forward = 0
    while len(image) < T:
        done = [all(r * COLUMNS + c in image for c in range(COLUMNS)) for r in range(COLUMNS)]
        counts = [sum(r * COLUMNS + c in image for c in range(COLUMNS)) for r in range(COLUMNS)]
        may = [r == 0 or (done[0] if r == 1 else counts[r - 1] >= wanted.window) for r in range(COLUMNS)]
        places = [r * COLUMNS + counts[r] for r in range(COLUMNS) if may[r] and not done[r]]
        last = max((r for r in range(COLUMNS) if done[r]), default=0) * COLUMNS + COLUMNS - 1
        new = {p: t for p, t in image.items() if (p, t) not in [(place, token) for _, place, token in fed]}
        new |= {p - 1: image[last] for p in places if p and p - 1 not in image}
        fed += [(forward, place, token) for place, token in sorted(new.items())]
        hidden = _hidden(cloud, prompt_2ND, fed, count, rows)
        for place in places:
            at = count - 1 if place == 0 else count + max(i for i, f in enumerate(fed) if f[1] == place - 1)
            log_p = log_probs(*model.gpt.logits(hidden[:, at : at + 1]), wanted.warp)
            image[place] = int((log_p + gumbel(wanted.seed, [place], log_p.shape[-1])).argmax())
        forward += 1
    return [image[place] for place in range(T)], forward


def _hidden(
    cloud: CloudModel, prompt_2ND: torch.Tensor, fed: list[tuple[int, int, int]], count: int, rows: int
) -> torch.Tensor:
    gpt = cloud.model.gpt
    ids, places = torch.tensor([f[2] for f in fed]).long(), torch.tensor([f[1] for f in fed]).long()
    x = torch.cat([prompt_2ND, gpt.embed_tokens(ids, places).expand(2, -1, -1)], 1)
    positions = torch.tensor([*range(rows - count, rows), *(rows + f[1] for f in fed)]).expand(2, -1)
    mask = torch.zeros(len(positions[0]), len(positions[0]), dtype=torch.bool)
    mask[:count, :count] = torch.ones(count, count).tril().bool()
    for index, (when, place, _) in enumerate(fed):
        mask[count + index, :count] = True
        for other, (then, where, _) in enumerate(fed):
            newer = any(f[1] == where and then < f[0] <= when for f in fed)
            mask[count + index, count + other] = where <= place and then <= when and not newer
    plain: Window = plain_window(positions, torch.zeros(2).long())
    window = Woven(plain.positions_BT, mask.expand(2, -1, -1), turned_by_BT=positions)
    return gpt(x, window)


@pytest.mark.parametrize("lag", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 11])
def test_rows_in_parallel_are_what_uncached_forwards_draw(
    engine: Engine, cloud: CloudModel, lag: int, seed: int
) -> None:
    """The first row alone, the second behind it, each later one `lag` tokens behind the one above."""
    wanted = order(cloud, seed, prefix_tokens=T, alone="rows", window=lag)
    (session,) = draw(engine, wanted)
    tokens, forwards = rows_spelled_out(cloud, wanted)
    assert session.tokens == tokens
    assert session.forwards == forwards == 2 * COLUMNS + (COLUMNS - 2) * lag


@pytest.mark.parametrize(("alone", "window"), [("jacobi", 8), ("sjd", 8), ("rows", 2)])
def test_company_changes_nothing(engine: Engine, cloud: CloudModel, alone: str, window: int) -> None:
    wanted = order(cloud, 6, prefix_tokens=T, alone=alone, window=window)
    (single,) = draw(engine, wanted)
    among, *others = draw(engine, wanted, together=3)
    assert (among.tokens, among.forwards) == (single.tokens, single.forwards)
    for other in others:
        assert other.tokens == base_image(cloud, other.order).tolist() and other.forwards == T


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"alone": "columns", "window": 2}, "columns"),
        ({"alone": "jacobi"}, "window 0"),
        ({"alone": "jacobi", "window": 65}, "window 65"),
        ({"alone": "rows", "window": 65}, "1 to 64"),
        ({"window": 3}, "window 3"),
        ({"alone": "jacobi", "window": 4, "acceptance": "rejection"}, "rejection"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    engine: Engine, cloud: CloudModel, changes: dict, named: str
) -> None:
    with pytest.raises(InvalidRequest, match=named):
        engine.open(order(cloud, **changes))


def test_a_warp_without_guidance_draws_rows_too(engine: Engine, cloud: CloudModel) -> None:
    """One cache row per session instead of two."""
    wanted = order(cloud, 3, warp=replace(WARP, guidance=1.0), prefix_tokens=T, alone="rows", window=1)
    (session,) = draw(engine, wanted)
    assert len(session.tokens) == T and np.array(session.tokens).max() < cloud.model.config.vocab_size
