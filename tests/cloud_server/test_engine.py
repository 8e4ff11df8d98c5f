"""The engine against full recomputation and against cloud-only drawing: exact but for ties of fp32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_server import engine as engine_module
from cloud_server.engine import LONG_JOB, Engine, batches
from cloud_server.session import Job, Session
from shared.decoding.acceptance import Judged, Judgement, sample_sparse, sparsify
from shared.decoding.noise import gumbel
from shared.decoding.warp import Warp
from shared.errors import InvalidPrompt, InvalidRequest, ModelMismatch, ModelUnavailable, Overloaded
from shared.messages import Features, Proposal
from shared.models.families.chameleon import ChameleonModel, Marks
from shared.models.inter_head import quantise_features
from shared.models.zoo import CloudModel, load_cloud
from tests.cloud_server.rig import base_image, draw_all, order, spoil, tokens
from tests.published import CHAMELEON
from tests.tiny import build_tiny_model, full_log_probs

T, V = 16, 32


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Judged]:
    """Everything the acceptance rules were shown."""
    shown: list[Judged] = []
    find = engine_module.rule

    def watching(name: str):
        def judge(judged: Judged) -> Judgement:
            shown.append(judged)
            return find(name)(judged)

        return judge

    monkeypatch.setattr(engine_module, "rule", watching)
    return shown


@pytest.fixture(scope="module")
def bridged(cloud: CloudModel) -> CloudModel:
    """The same cloud with a W that is not zero."""
    return replace(
        cloud, bridge_DF=torch.randn(cloud.bridge_DF.shape, generator=torch.Generator().manual_seed(0))
    )


def features(index: list[int], width: int = 32, seed: int = 0) -> Features:
    """Features as a device would send them."""
    values = torch.randn(len(index), width, generator=torch.Generator().manual_seed(seed))
    codes, scale = quantise_features(values)
    return Features(np.array(index, dtype=np.uint16), codes.numpy(), scale.numpy())


WARPS = {
    "guided": Warp(guidance=1.5),
    "plain": Warp(),
    "filtered": Warp(guidance=2.0, temperature=0.8, top_k=10, top_p=0.9),
    "unguided": Warp(guidance=0.0),
}


@pytest.mark.parametrize("name", WARPS)
@pytest.mark.parametrize("prompt", ["cat", "a red cat on a white background"])
def test_cloud_only_is_the_base(engine: Engine, cloud: CloudModel, name: str, prompt: str) -> None:
    wanted = order(cloud, 3, prompt, WARPS[name], prefix_tokens=T)
    session = engine.open(wanted)
    assert len(session.slots) == (1 if name == "plain" else 2)
    assert draw_all(engine, session) == base_image(cloud, wanted).tolist()
    assert session.usage().cloud_forwards == T


@st.composite
def plans(draw: st.DrawFn) -> list[tuple[int, int, bool]]:
    """Rounds of (span length, right tokens, is the catch-up kept by the device used)."""
    return draw(
        st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6), st.booleans()), min_size=1, max_size=8)
    )


@settings(max_examples=40)
@given(
    plan=plans(),
    seed=st.integers(0, 2**64 - 1),
    prompt=st.sampled_from(["cat", "a red dog", "a green apple style"]),
)
def test_verified_rounds_are_the_base(
    cloud: CloudModel, plan: list[tuple[int, int, bool]], seed: int, prompt: str
) -> None:
    """Whatever the drafts and the cuts, tokens that are committed by verification alone are the base's."""
    wanted = order(cloud, seed, prompt)
    truth, engine = base_image(cloud, wanted), Engine(cloud, 1)
    session = engine.open(wanted)
    turn = 0
    while len(session.tokens) < T:
        length, keep, _ = plan[turn % len(plan)]
        right = truth[len(session.tokens) :][:length]
        answer = engine.run([Job(session, spoil(right, keep, V))])[0].judgement
        assert answer.accepted == min(keep, len(right))
        turn += 1
    assert session.tokens == truth.tolist()
    assert session.forwards == turn


@settings(max_examples=25)
@given(plan=plans(), seed=st.integers(0, 2**64 - 1))
def test_cached_rounds_equal_a_full_recomputation(
    cloud: CloudModel, plan: list[tuple[int, int, bool]], seed: int
) -> None:
    """With tokens of any origin in between, every judged row is what a forward without a cache computes."""
    with pytest.MonkeyPatch.context() as patch:
        shown: list[Judged] = []
        find = engine_module.rule
        patch.setattr(
            engine_module, "rule", lambda name: lambda judged: shown.append(judged) or find(name)(judged)
        )
        engine = Engine(cloud, 1)
        session = engine.open(order(cloud, seed))
        rng, rows = np.random.default_rng(seed), []
        for length, kept, catches_up in plan:
            left = T - len(session.tokens)
            kept = min(kept, left - 1) * catches_up
            if left < 1:
                break
            catch_up, span = (
                rng.integers(0, V, n).astype(np.int32) for n in (kept, min(length, left - kept))
            )
            accepted = engine.run([Job(session, span, catch_up)])[0].judgement.accepted
            rows.append((shown[-1].position, shown[-1].log_p_TV[: accepted + 1]))
    whole = torch.tensor([*session.tokens, *[0] * (T - len(session.tokens))])
    with torch.no_grad():
        expected = full_log_probs(cloud.model, session.order.prompt, whole)
    for place, log_p_TV in rows:
        torch.testing.assert_close(log_p_TV, expected[place : place + len(log_p_TV)], rtol=1e-4, atol=1e-4)


def jobs_of_every_kind(engine: Engine, cloud: CloudModel) -> list[Job]:
    """Fresh and resumed sessions, one and two rows, long and short prompts, first jobs and a later one."""
    rng = np.random.default_rng(0)
    sessions = [
        engine.open(order(cloud, seed, prompt, warp, resume=rng.integers(0, V, resumed).astype(np.int32)))
        for seed, (prompt, warp, resumed) in enumerate(
            [
                ("cat", Warp(guidance=1.5), 0),
                ("a red cat on a white background", Warp(guidance=3.0), 5),
                ("dog", Warp(), 2),
                ("a blue dog", Warp(guidance=2.0, top_k=5), 12),
                ("a banana", Warp(), 0),
            ]
        )
    ]
    engine.run([Job(sessions[2])])
    spans = [rng.integers(0, V, n).astype(np.int32) for n in (3, 5, 0, 4, 1)]
    catch_ups = [rng.integers(0, V, n).astype(np.int32) for n in (0, 2, 4, 0, 6)]
    return [Job(*parts) for parts in zip(sessions, spans, catch_ups, strict=True)]


def test_a_batch_equals_its_jobs_one_by_one(cloud: CloudModel, seen: list[Judged]) -> None:
    together, alone = Engine(cloud, 8), Engine(cloud, 8)
    jobs = jobs_of_every_kind(together, cloud)
    batch = [answer.judgement for answer in together.run(jobs)]
    batched_rows = seen[-len(jobs) :]
    own = jobs_of_every_kind(alone, cloud)
    single = [alone.run([job])[0].judgement for job in own]
    assert batch == single
    assert [job.session.tokens for job in jobs] == [job.session.tokens for job in own]
    for one, other in zip(batched_rows, seen[-len(jobs) :], strict=True):
        torch.testing.assert_close(one.log_p_TV, other.log_p_TV, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("folded", [False, True])
def test_rounds_after_a_batch_see_an_unharmed_cache(cloud: CloudModel, folded: bool) -> None:
    """Padding rewrites one entry of a row's own: many ragged batches still end in the base's images, whether
    prompts are folded or not."""
    engine, rng = Engine(cloud, 5, fold_prefix=folded), np.random.default_rng(1)
    orders = [
        order(cloud, seed, prompt)
        for seed, prompt in enumerate(["cat", "a dog", "a red dog", "a b cat", "cat"])
    ]
    truths, sessions = (
        [base_image(cloud, wanted) for wanted in orders],
        [engine.open(wanted) for wanted in orders],
    )
    while running := [index for index, session in enumerate(sessions) if len(session.tokens) < T]:
        jobs = []
        for index in running:
            right = truths[index][len(sessions[index].tokens) :][: rng.integers(0, 6)]
            jobs.append(Job(sessions[index], spoil(right, rng.integers(0, 6), V)))
        for batch in batches(jobs):
            engine.run(batch)
    assert [session.tokens for session in sessions] == [truth.tolist() for truth in truths]


def test_only_prompts_whose_keys_vanish_are_folded(cloud: CloudModel, tmp_path: Path) -> None:
    sequence = ChameleonModel(CHAMELEON, Marks(0, 22, 21), tmp_path)
    with pytest.raises(InvalidRequest, match="chameleon"):
        Engine(replace(cloud, model=sequence), 1, fold_prefix=True)


@pytest.mark.parametrize("owned", range(T + 1))
def test_a_resumed_session_goes_on_as_if_uninterrupted(engine: Engine, cloud: CloudModel, owned: int) -> None:
    wanted = order(cloud, 9, prefix_tokens=T)
    truth = base_image(cloud, wanted)
    session = engine.open(replace(wanted, resume=truth[:owned]))
    assert session.missing_prefix == T - owned
    assert draw_all(engine, session) == truth.tolist()
    assert session.forwards == T - owned


def test_features_change_nothing_while_the_bridge_is_zero(cloud: CloudModel, seen: list[Judged]) -> None:
    for sent in (None, features([0, 2])):
        engine = Engine(cloud, 1)
        engine.run([Job(engine.open(order(cloud)), tokens(1, 2), tokens(3, 4, 5), sent)])
    assert torch.equal(seen[0].log_p_TV, seen[1].log_p_TV)


def test_a_feature_is_added_to_its_own_token(bridged: CloudModel, seen: list[Judged]) -> None:
    """Catch-up with features equals the same tokens resumed with the same features, not the plain ones."""
    kept, sent = tokens(3, 4, 5, 6), features([1, 3])
    engine = Engine(bridged, 4)
    engine.run([Job(engine.open(order(bridged)), tokens(1, 2), kept, sent)])
    engine.run([Job(engine.open(order(bridged, resume=kept, resume_features=sent)), tokens(1, 2))])
    engine.run([Job(engine.open(order(bridged)), tokens(1, 2), kept)])
    engine.run([Job(engine.open(order(bridged)), tokens(1, 2), kept, replace(sent, index=sent.index - 1))])
    live, resumed, plain, moved = (judged.log_p_TV for judged in seen)
    torch.testing.assert_close(live, resumed, rtol=1e-5, atol=1e-5)
    assert (live - plain).abs().max() > 0.1
    assert (live - moved).abs().max() > 0.1


def test_resume_features_survive_a_split_feed(bridged: CloudModel, seen: list[Judged]) -> None:
    """They are fed with their tokens once, and later forwards do not add them again to other tokens."""
    engine, kept, sent = Engine(bridged, 2), tokens(3, 4, 5), features([0, 2])
    split = engine.open(order(bridged, resume=kept, resume_features=sent))
    first = engine.run([Job(split)])[0].judgement.token
    engine.run([Job(split, tokens(7))])
    assert first is not None
    whole = engine.open(order(bridged, resume=tokens(*kept, first), resume_features=sent))
    engine.run([Job(whole, tokens(7))])
    torch.testing.assert_close(seen[1].log_p_TV, seen[2].log_p_TV, rtol=1e-5, atol=1e-5)


def test_a_reused_slot_leaks_nothing(cloud: CloudModel, seen: list[Judged]) -> None:
    used, fresh = Engine(cloud, 1), Engine(cloud, 1)
    first = used.open(order(cloud, 1, "a red cat on a white background"))
    draw_all(used, first)
    used.close(first)
    used.close(first)
    draw_all(used, used.open(order(cloud, 2, "dog")))
    draw_all(fresh, fresh.open(order(cloud, 2, "dog")))
    for one, other in zip(seen[T : 2 * T], seen[2 * T :], strict=True):
        assert torch.equal(one.log_p_TV, other.log_p_TV)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> CloudModel:
    """T = 64, so that a resume can be long."""
    folder: Path = build_tiny_model(tmp_path_factory.mktemp("large"), grid=8, vocab=64)
    return load_cloud(str(folder), folder)


def test_a_long_job_runs_alone_and_changes_nobody(large: CloudModel) -> None:
    engine = Engine(large, 3)
    orders = [order(large, seed, prefix_tokens=64) for seed in range(3)]
    truths = [base_image(large, wanted) for wanted in orders]
    orders[1] = replace(orders[1], resume=truths[1][:50])
    sessions = [engine.open(wanted) for wanted in orders]
    groups = batches([Job(session) for session in sessions])
    assert [[job.session for job in group] for group in groups] == [[sessions[0], sessions[2]], [sessions[1]]]
    assert groups[1][0].inputs > LONG_JOB
    for group in groups:
        engine.run(group)
    assert [draw_all(engine, session) for session in sessions] == [truth.tolist() for truth in truths]


def test_rejection_judges_a_sampled_span(engine: Engine, cloud: CloudModel) -> None:
    """A draft sampled from the distribution of the cloud is accepted; at the image's end without a bonus."""
    wanted = order(cloud, 4, acceptance="rejection", resume=base_image(cloud, order(cloud, 4))[: T - 1])
    session = engine.open(wanted)
    with torch.no_grad():
        log_p_V = full_log_probs(cloud.model, wanted.prompt, torch.tensor([*session.tokens, 0]))[-1]
    ids, probabilities = sparsify(log_p_V, V)
    drawn = sample_sparse(ids, probabilities, gumbel(4, [T - 1], V)[0])
    job = Job(session, tokens(drawn), proposal=Proposal(ids[None], probabilities[None]))
    judgement = engine.run([job])[0].judgement
    assert (judgement.accepted, judgement.token) == (1, None)
    assert len(session.tokens) == T


def test_greedy_ignores_the_seed(engine: Engine, cloud: CloudModel) -> None:
    images = [draw_all(engine, engine.open(order(cloud, seed, acceptance="greedy"))) for seed in range(2)]
    assert images[0] == images[1]


def refusals() -> Iterator[tuple[dict[str, object], type[Exception], str]]:
    """Orders that do not fit, the error each one raises, and what it must say."""
    yield {"cloud_digest": "feed"}, ModelMismatch, "feed, this server has"
    yield {"codebook_size": 31}, ModelMismatch, "31 codes, the cloud 32"
    yield {"model": "other"}, ModelUnavailable, "no model 'other'"
    yield {"acceptance": "kindly"}, InvalidRequest, "'kindly'.*coupled"
    yield {"seed": 2**64}, InvalidRequest, "seed 18446744073709551616"
    yield {"max_forwards": 9}, InvalidRequest, "max_forwards is 9.*0 to 8"
    yield {"seed": -1}, InvalidRequest, "seed -1"
    yield {"prefix_tokens": 17}, InvalidRequest, "prefix_tokens is 17.*0 to T = 16"
    yield {"resume": np.zeros(17, np.int32)}, InvalidRequest, "resume is 17"
    yield {"resume": tokens(1, 32)}, InvalidRequest, "token 32 at 1.*0 to 31"
    yield {"resume": tokens(1), "resume_features": features([0], 31)}, InvalidRequest, "31.*32"
    yield {"prompt": "   "}, InvalidPrompt, "empty"
    yield {"prompt": "x" * 10_000}, InvalidPrompt, "10000 characters"
    yield {"prompt": "zebra"}, InvalidPrompt, "zebra"


@pytest.mark.parametrize(("changes", "kind", "says"), [*refusals()])
def test_an_order_that_does_not_fit_takes_no_slot(
    cloud: CloudModel, changes: dict[str, object], kind: type[Exception], says: str
) -> None:
    engine = Engine(cloud, 1)
    with pytest.raises(kind, match=says) as caught:
        engine.open(replace(order(cloud), **changes))
    assert type(caught.value) is kind
    engine.open(order(cloud, cloud_digest=""))


def test_no_slot_is_free(cloud: CloudModel) -> None:
    engine = Engine(cloud, 2)
    held: list[Session] = [engine.open(order(cloud)) for _ in range(2)]
    with pytest.raises(Overloaded, match="all 2 sessions"):
        engine.open(order(cloud))
    engine.close(held[0])
    assert engine.open(order(cloud)).slots == held[0].slots
