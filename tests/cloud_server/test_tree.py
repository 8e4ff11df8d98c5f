"""Draft trees in the engine: judged rows against forwards without a cache, batches, the base's image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from cloud_server.engine import Engine
from cloud_server.session import Job, Session
from cloud_server.tree import TreeJob, job_of
from shared.decoding.tree import ancestors
from shared.errors import InvalidDraft
from shared.messages import Draft, Tokens
from shared.models.zoo import CloudModel
from tests.cloud_server.rig import base_image, order, spoil, tokens
from tests.tiny import full_log_probs

T, V = 16, 32
# parents as in Draft.parents
SHAPES = {
    "chain": (0, 1, 2, 3),
    "fan": (0, 0, 0, 0),
    "comb": (0, 1, 0, 1, 3),
    "late": (0, 0, 2, 2, 4),
}


def plant(session: Session, truth: Tokens, parents: Sequence[int], right: Sequence[int]) -> Draft:
    """A tree behind the session's tokens whose nodes `right` are the base's tokens, all others are wrong."""
    base, left = len(session.tokens), T - len(session.tokens)
    parents = parents[:left]
    depths = [len(above) for above in ancestors(np.array(parents))]
    wrong = [(int(truth[base + depth]) + 1 + node) % V for node, depth in enumerate(depths)]
    span = [int(truth[base + depths[node]]) if node in right else wrong[node] for node in range(len(parents))]
    return Draft(session.rounds, base, tokens(*span), parents=np.array(parents, dtype=np.int32))


def play(
    engine: Engine, cloud: CloudModel, seed: int, rounds: Iterator[tuple[Sequence[int], Sequence[int]]]
) -> Session:
    """A whole image by trees; returns its session."""
    wanted = order(cloud, seed, prefix_tokens=0)
    truth, session = base_image(cloud, wanted), engine.open(wanted)
    while len(session.tokens) < T:
        draft = plant(session, truth, *next(rounds))
        session.check(draft)
        answer = engine.run([job_of(session, draft)])[0]
        verdict = session.record(draft, [answer.judgement], 0.0)
        assert draft.standing(verdict).tolist() == session.tokens[draft.base :][: verdict.accepted]
    assert session.tokens == truth.tolist()
    return session


PATHS = [
    (name, right)
    for name, shape in SHAPES.items()
    for right in ((), (0,), (0, 1), (1, 2, 4), range(len(shape)))
]


@pytest.mark.parametrize(("name", "right"), PATHS)
def test_whatever_tree_comes_the_image_is_the_base(
    engine: Engine, cloud: CloudModel, name: str, right: Sequence[int]
) -> None:
    """Right first nodes, right later ones (which move to other columns), right ones behind wrong ones."""
    session = play(engine, cloud, 3, iter([(SHAPES[name], right)] * T))
    assert session.forwards <= T
    if name == "chain" and len(right) == 4:
        assert session.forwards == -(-T // 5)


def test_trees_and_plain_draws_of_any_order_are_the_base(engine: Engine, cloud: CloudModel) -> None:
    rng = np.random.default_rng(0)
    for seed in range(4):
        rounds = (
            (
                [int(rng.integers(0, node + 1)) for node in range(6)],
                [n for n in range(6) if rng.random() < 0.7],
            )
            for _ in range(T)
        )
        play(engine, cloud, seed, rounds)


def test_every_row_is_what_its_path_alone_would_give(
    cloud: CloudModel, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """log p at a node, from one forward of the whole tree, against a forward of its path without a cache."""
    shown = []
    judge = TreeJob.judge
    monkeypatch.setattr(
        TreeJob, "judge", lambda job, rule, judged: shown.append(judged) or judge(job, rule, judged)
    )
    wanted = order(cloud, 1, prefix_tokens=0, resume=tokens(4, 7, 1))
    session = engine.open(wanted)
    span, parents = tokens(3, 9, 3, 12, 5, 6), np.array((0, 1, 0, 3, 1, 4), dtype=np.int32)
    engine.run([job_of(session, Draft(0, 3, span, tokens(8), parents=parents))])
    for node, above in enumerate(ancestors(parents)):
        path = [4, 7, 1, 8, *span[[*above, node]].tolist()]
        whole = torch.tensor([*path, *[0] * (T - len(path))])
        with torch.no_grad():
            expected_V = full_log_probs(cloud.model, wanted.prompt, whole)[len(path)]
        torch.testing.assert_close(shown[0].log_p_TV[node + 1], expected_V, rtol=1e-4, atol=1e-4)


def mixed(engine: Engine, cloud: CloudModel) -> list[Job]:
    """Trees beside chains and plain draws, at different places; two of them continue a cached image."""
    sessions = [
        engine.open(order(cloud, seed, prompt, resume=base_image(cloud, order(cloud, seed, prompt))[:owned]))
        for seed, (prompt, owned) in enumerate(
            (("cat", 0), ("a red cat on a white background", 5), ("dog", 9), ("a b cat", 2))
        )
    ]
    engine.run([Job(sessions[0])])
    truths = [base_image(cloud, session.order) for session in sessions]
    one, two = (
        plant(sessions[i], truths[i], SHAPES[name], (0, 2, 4)) for i, name in ((0, "comb"), (1, "late"))
    )
    chain = spoil(truths[2][9:12], 2, V)
    return [job_of(sessions[0], one), job_of(sessions[1], two), Job(sessions[2], chain), Job(sessions[3])]


@pytest.mark.parametrize("folded", [False, True])
def test_a_batch_of_trees_and_chains_equals_its_jobs_one_by_one(cloud: CloudModel, folded: bool) -> None:
    together, alone = (Engine(cloud, 4, fold_prefix=folded) for _ in range(2))
    jobs, own = mixed(together, cloud), mixed(alone, cloud)
    batch = [answer.judgement for answer in together.run(jobs)]
    assert batch == [alone.run([job])[0].judgement for job in own]
    for job in jobs:
        session = job.session
        while len(session.tokens) < T:
            together.run([Job(session)])
        assert session.tokens == base_image(cloud, session.order).tolist()


def test_a_chain_of_parents_is_judged_as_the_span(cloud: CloudModel) -> None:
    for keep in range(5):
        tree, chain = Engine(cloud, 1), Engine(cloud, 1)
        sessions = [engine.open(order(cloud, 8, prefix_tokens=0)) for engine in (tree, chain)]
        span = spoil(base_image(cloud, sessions[0].order)[:4], keep, V)
        draft = Draft(0, 0, span, parents=np.arange(4, dtype=np.int32))
        found, expected = tree.run([job_of(sessions[0], draft)])[0], chain.run([Job(sessions[1], span)])[0]
        assert (found.judgement.accepted, found.judgement.token) == (
            expected.judgement.accepted,
            expected.judgement.token,
        )
        assert sessions[0].tokens == sessions[1].tokens and sessions[0].fed == sessions[1].fed


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"parents": tokens(0, 2)}, "hangs from 2"),
        ({"parents": tokens(0)}, "parents"),
        ({"parents": tokens(*range(17)), "span": tokens(*range(17))}, "ends at 17"),
    ],
)
def test_no_tree_is_refused(engine: Engine, cloud: CloudModel, changes: dict, named: str) -> None:
    session = engine.open(order(cloud, prefix_tokens=0))
    with pytest.raises(InvalidDraft, match=named):
        session.check(Draft(0, 0, changes.get("span", tokens(1, 2)), parents=changes["parents"]))


def test_rejection_judges_no_trees(engine: Engine, cloud: CloudModel) -> None:
    session = engine.open(order(cloud, prefix_tokens=0, acceptance="rejection"))
    with pytest.raises(InvalidDraft, match="rejection"):
        session.check(Draft(0, 0, tokens(1, 2), parents=tokens(0, 0)))
