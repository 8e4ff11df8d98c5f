"""A draft that does not fit is refused at the door, with the offending value and the allowed ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cloud_server.engine import Engine
from cloud_server.session import Job, Session
from shared.decoding.acceptance import Judgement
from shared.errors import InvalidDraft
from shared.messages import Draft, Features, Proposal, Usage
from shared.models.zoo import CloudModel
from tests.cloud_server.rig import order, tokens

OWNED = tokens(1, 2, 3)
GOOD = Draft(round=1, base=3, span=tokens(4, 5), catch_up=tokens(6, 7, 8))


def features(index: list[int], rows: int, width: int) -> Features:
    """Features of any shape."""
    codes, scale = np.zeros((rows, width), np.int8), np.ones(rows, np.float16)
    return Features(np.array(index, np.uint16), codes, scale)


def proposal(ids: list[list[int]], probabilities: list[list[float]]) -> Proposal:
    """A proposal of any shape."""
    return Proposal(np.array(ids, np.int32), np.array(probabilities, np.float16))


@pytest.fixture
def session(cloud: CloudModel) -> Session:
    """Three tokens committed, T = 16, V = 32, d_f = 32."""
    return Engine(cloud, 1, max_span=8).open(order(cloud, resume=OWNED))


def test_a_draft_that_fits_is_let_in(session: Session) -> None:
    session.check(GOOD)
    session.check(replace(GOOD, features=features([0, 2], 2, 32)))
    session.check(replace(GOOD, catch_up=tokens(*range(11))))
    session.check(replace(GOOD, catch_up=tokens(), span=tokens(*range(8))))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base": 2}, "base 2 does not fit.*allowed: 3"),
        ({"base": 4}, "base 4 does not fit.*allowed: 3"),
        ({"span": tokens()}, "the span has 0 tokens.*1 to 8"),
        ({"span": tokens(*range(9))}, "the span has 9 tokens.*1 to 8"),
        ({"catch_up": tokens(*range(12))}, "the span ends at 17.*T = 16"),
        ({"span": tokens(4, 32)}, "the span holds token 32 at 1.*0 to 31"),
        ({"span": tokens(-1)}, "the span holds token -1 at 0"),
        ({"catch_up": tokens(6, 2**31 - 1)}, "the catch-up holds token 2147483647 at 1"),
        ({"features": features([0], 1, 31)}, r"codes \(1, 31\).*\[n, 32\]"),
        ({"features": features([0], 2, 32)}, r"codes \(2, 32\)"),
        ({"features": features([3], 1, 32)}, r"places \[3\].*below 3"),
        ({"features": features([1, 1], 2, 32)}, "ascending"),
        (
            {"proposal": proposal([[4], [5]], [[1], [1]])},
            "carries a proposal.*'coupled' acceptance takes none",
        ),
    ],
)
def test_a_draft_that_does_not_fit(session: Session, changes: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidDraft, match=says):
        session.check(replace(GOOD, **changes))
    assert session.tokens == OWNED.tolist()


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (None, "carries no proposal.*'rejection' acceptance needs one"),
        (proposal([[4, 9]], [[0.5, 0.5]]), r"shapes \(1, 2\)"),
        (proposal([[4, 32], [5, 6]], [[0.5, 0.5]] * 2), "the proposal holds token 32 at 1"),
        (proposal([[4, 4], [5, 6]], [[0.5, 0.5]] * 2), "one id twice"),
        (proposal([[4, 9], [5, 6]], [[0.5, 0.5], [0.1, 0.1]]), "sum to 0.19"),
        (proposal([[4, 9], [5, 6]], [[0.5, 0.5], [-0.5, 1.5]]), "1 within rounding"),
        (proposal([[4, 9], [7, 6]], [[0.5, 0.5]] * 2), "span token 5 has probability 0"),
    ],
)
def test_a_proposal_that_does_not_fit(cloud: CloudModel, sent: Proposal | None, says: str) -> None:
    session = Engine(cloud, 1).open(order(cloud, resume=OWNED, acceptance="rejection"))
    session.check(replace(GOOD, proposal=proposal([[4, 9], [5, 6]], [[0.5, 0.5]] * 2)))
    with pytest.raises(InvalidDraft, match=says):
        session.check(replace(GOOD, proposal=sent))


def test_a_round_is_answered_once(session: Session) -> None:
    assert session.answered(GOOD) is None
    verdict = session.record(GOOD, [Judgement(1, 9)], 0.5)
    assert session.answered(GOOD) is verdict
    assert session.usage() == Usage(cloud_forwards=0, rounds=1, judged=2, accepted=1, cloud_s=0.0)
    with pytest.raises(InvalidDraft, match=r"round 1 came again with base 5.*its base was 3"):
        session.answered(replace(GOOD, base=5))
    with pytest.raises(InvalidDraft, match=r"round 0 is out of order.*above 1"):
        session.check(replace(GOOD, round=0))


BEHIND = Draft(round=2, base=8, span=tokens(9), catch_up=tokens(7, 1), behind=1)


@pytest.fixture
def whole(session: Session) -> Session:
    """Round 1 was accepted whole, with bonus 7 at place 8."""
    session.tokens += [6, 7, 8, 4, 5, 7]
    session.record(GOOD, [Judgement(2, 7)], 0.5)
    return session


def test_a_pipelined_draft_stands_where_its_bonus_came(whole: Session) -> None:
    sent = replace(BEHIND, features=features([1], 1, 32))
    settled = whole.settled(sent)
    assert settled is not None and settled.features is not None
    assert (settled.base, settled.catch_up.tolist(), settled.behind) == (9, [1], None)
    assert settled.features.index.tolist() == [0]
    whole.check(settled)
    whole.tokens += [1, 9, 3]
    verdict = whole.record(sent, [Judgement(1, 3)], 0.5)
    assert whole.answered(sent) is verdict and verdict.token == 3 and not verdict.more.size


@pytest.mark.parametrize("changes", [{"catch_up": tokens(6, 1)}, {"behind": 0}, {"round": 4, "behind": 3}])
def test_a_pipelined_draft_is_void_where_another_bonus_came(
    whole: Session, changes: dict[str, object]
) -> None:
    void, before = replace(BEHIND, **changes), whole.usage()
    assert whole.settled(void) is None
    verdict = whole.void(void)
    assert (verdict.stale, verdict.cloud_forwards, verdict.token, verdict.accepted) == (True, 0, None, 0)
    assert whole.answered(void) is verdict and whole.usage() == before
    assert whole.settled(replace(BEHIND, round=9, behind=void.round)) is None  # nothing stands behind it


def test_nothing_stands_behind_a_correction(session: Session) -> None:
    """Not even where the cloud has come as far, and to the same token, by its own forwards."""
    session.tokens += [6, 7, 8, 9, 5, 7]
    verdict = session.record(GOOD, [Judgement(0, 9, (5,)), Judgement(1, 7)], 0.5)
    assert (verdict.token, verdict.more.tolist(), verdict.cloud_forwards) == (9, [5, 7], 2)
    assert session.settled(BEHIND) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"catch_up": tokens()}, "0 catch-up tokens is behind 1.*begins with its bonus"),
        ({"behind": 2}, "round 2 .* is behind 2.*an earlier round"),
        ({"features": features([0], 1, 32)}, "assumed bonus carries a feature"),
    ],
)
def test_a_pipelined_draft_that_cannot_be(whole: Session, changes: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidDraft, match=says):
        whole.settled(replace(BEHIND, **changes))


def test_a_settled_draft_is_checked_like_any_other(whole: Session) -> None:
    settled = whole.settled(replace(BEHIND, base=5))
    assert settled is not None
    with pytest.raises(InvalidDraft, match=r"base 6 does not fit.*allowed: 9"):
        whole.check(settled)


def test_a_job_knows_its_size(session: Session) -> None:
    words = session.prompt_GND.shape[1]
    assert Job(session).inputs == words + 3
    assert Job.judging(session, GOOD).inputs == words + 3 + 3 + 2
    last = Job(session, span=tokens(*range(13)))
    assert last.ends_image
    assert last.inputs == words + 3 + 12
