"""What models of continuous tokens add to the frames: maskings, spans, what is kept, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from device_client.owned import owned
from shared.continuous import Continuous, Kept, Masking, Values
from shared.decoding.warp import Warp
from shared.errors import CiarError, InvalidDraft, InvalidRequest
from shared.messages import Draft, ModelInfo, Open, Opened, ServerInfo, Verdict, no_tokens
from shared.wire import codec, info

WIDTH = 4
MASKING = Masking(8, 50, "constant", 0.25, 3.0)


def values(count: int, seed: int = 0) -> Values:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float16)


def order(**changes: object) -> Open:
    return replace(Open("m", "", 0, "1", 1, Warp(2.0), 4, "aligned", masking=MASKING), **changes)  # type: ignore[arg-type]


def draft(span: Continuous, base: int = 4) -> Draft:
    return Draft(2, base, no_tokens(), continuous=span)


def verdict(stands: list[int], sent: Values) -> Verdict:
    return Verdict(2, sum(stands), None, 0.0, kept=Kept(np.array(stands, bool), sent))


def there_and_back(message: Verdict) -> Verdict:
    back = codec.decode_response(codec.encode_response(message))
    assert isinstance(back, Verdict)
    return back


def test_an_order_comes_back_with_what_is_owned() -> None:
    back = codec.decode_request(codec.encode_open(order(resume_values=values(3))))
    assert isinstance(back, Open) and back.masking == MASKING and back.owned == 3
    assert back.resume_values is not None and np.array_equal(back.resume_values, values(3))
    plain = codec.decode_request(codec.encode_open(order(masking=replace(MASKING, tolerance=np.inf))))
    assert isinstance(plain, Open) and plain.masking is not None and plain.masking.tolerance == np.inf
    assert plain.owned == 0 and plain.resume_values is None


def test_a_token_of_sixteen_numbers_is_thirty_two_bytes() -> None:
    half = [np.zeros((count, 16), np.float16) for count in (1, 9)]
    sizes = [codec.encode_draft(draft(Continuous(part))).ByteSize() for part in half]
    assert 8 * 32 <= sizes[1] - sizes[0] <= 8 * 32 + 6  # lengths take a byte more here and there
    opened = codec.encode_response(Opened("x", 64, no_tokens(), 1, 0.0, values=half[1]))
    assert len(opened.opened.values.data) == 9 * 32


@pytest.mark.parametrize(
    "span",
    [
        Continuous(values(3)),
        Continuous(values(3), None, values(3, 1), (1.5, -3100.25, 0.0)),
        Continuous(conditions=np.ones((3, 2, 5), np.float16)),
    ],
)
def test_spans_come_back(span: Continuous) -> None:
    back = codec.decode_request(codec.encode_draft(draft(span)))
    assert isinstance(back, Draft) and back.continuous is not None
    assert back.drafted == 3 and back.continuous.log_std_before == span.log_std_before
    for name in ("values", "conditions", "log_std"):
        sent, came = getattr(span, name), getattr(back.continuous, name)
        assert (sent is None) == (came is None) and (sent is None or np.array_equal(sent, came))


@pytest.mark.parametrize(
    "span",
    [
        Continuous(),
        Continuous(values(3), np.ones((3, 2, 5), np.float16)),
        Continuous(values(3), None, values(2), (1.0, 1.0)),
        Continuous(values(3), None, values(3), (1.0, 1.0)),
        Continuous(values(3), None, values(3)),
        Continuous(values(3), None, values(3), (1.0, 1.0, np.inf)),
        Continuous(np.full((1, WIDTH), np.inf, np.float16)),
    ],
)
def test_spans_that_cannot_be_are_refused(span: Continuous) -> None:
    with pytest.raises(InvalidDraft):
        codec.decode_request(codec.encode_draft(draft(span)))


def test_maskings_out_of_range_are_refused() -> None:
    frame = codec.encode_open(order())
    frame.open.masking.head_steps = 0
    with pytest.raises(InvalidRequest, match="0 steps of the head"):
        codec.decode_request(frame)


def test_what_stands_is_patched_where_it_does_not() -> None:
    span, sent = Continuous(values(3)), values(1, 7)
    back = there_and_back(verdict([1, 0, 1], sent))
    out = draft(span).values(back)
    assert np.array_equal(out, np.stack([values(3)[0], sent[0], values(3)[2]]))
    whole = there_and_back(verdict([1, 1, 1], np.zeros((0, WIDTH), np.float16)))
    assert np.array_equal(draft(span).values(whole), values(3))
    path = Continuous(conditions=np.ones((3, 2, 5), np.float16))
    assert np.array_equal(draft(path).values(there_and_back(verdict([1, 0, 0], values(2)))), values(2))


def test_marks_of_another_length_are_refused() -> None:
    frame = codec.encode_response(verdict([1, 0, 1], values(1)))
    frame.verdict.kept.judged = 9
    with pytest.raises(CiarError, match="marks"):
        codec.decode_response(frame)


@pytest.mark.parametrize(
    ("span", "answer"),
    [
        (Continuous(values(3)), verdict([1, 0, 1], values(2))),
        (Continuous(values(3)), verdict([1, 0], values(1))),
        (Continuous(values(3)), replace(verdict([1, 0, 1], values(1)), accepted=3)),
        (Continuous(values(3)), replace(verdict([1, 0, 1], values(1)), kept=None)),
        (Continuous(values(3)), replace(verdict([1, 0, 1], values(1)), round=9)),
        (Continuous(values(3)), replace(verdict([1, 0, 1], values(1)), token=3)),
        (Continuous(values(3)), verdict([1, 0, 1], np.zeros((1, 7), np.float16))),
        (Continuous(conditions=np.ones((3, 2, 5), np.float16)), verdict([1, 0, 1], values(3))),
        (Continuous(conditions=np.ones((3, 2, 5), np.float16)), verdict([1, 0, 0], values(1))),
    ],
)
def test_a_device_believes_no_answer_that_cannot_be(span: Continuous, answer: Verdict) -> None:
    mine = owned(order())
    mine.begin(Opened("x", 64, no_tokens(), 1, 0.0, values=values(4)))
    mine.pending.append(draft(span))
    with pytest.raises(CiarError, match="not in the protocol"):
        mine.settle(answer)


def test_what_is_owned_grows_by_what_stands_and_begins_the_next_stream() -> None:
    mine = owned(order())
    mine.begin(Opened("x", 64, no_tokens(), 1, 0.0, values=values(4)))
    mine.pending.append(draft(Continuous(values(2, 1))))
    mine.settle(verdict([1, 0], values(1, 2)))
    again = mine.order()
    assert again.resume_values is not None and len(again.resume) == 0
    assert np.array_equal(
        again.resume_values, np.concatenate([values(4), values(2, 1)[:1], values(1, 2)])
    )
    with pytest.raises(CiarError):
        mine.begin(Opened("x", 8, no_tokens(), 1, 0.0, values=values(4)))  # 10 of 8


def test_the_width_of_tokens_is_served() -> None:
    served = ServerInfo(1, (ModelInfo("m", "d", 0, 64, 0, token_width=16),), 1, 1, 1, 1)
    assert info.decode_info(info.encode_info(served)).models[0].token_width == 16
