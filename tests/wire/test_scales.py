"""What models by scales add to the frames: packed tokens, marks, patches, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from shared.decoding.warp import Warp
from shared.errors import CiarError, InvalidDraft, InvalidRequest
from shared.messages import Draft, Open, Opened, Patch, Tokens, Verdict
from shared.wire import codec
from shared.wire.pb import ciar_pb2 as pb


def ids(*tokens: int) -> Tokens:
    return np.array(tokens, dtype=np.int32)


def marks(*places: int, length: int = 9) -> np.ndarray:
    return np.isin(np.arange(length), places)


DRAFT = Draft(2, 5, ids(*range(9)), ids(4095, 0, 7), bad=marks(0, 8))


def test_tokens_have_twelve_bits_and_come_back() -> None:
    frame = codec.encode_draft(DRAFT)
    assert (frame.draft.span.dtype, len(frame.draft.span.data)) == (pb.DTYPE_UINT12, 14)
    back = codec.decode_request(frame)
    assert isinstance(back, Draft) and back.bad is not None
    assert back.span.tolist() == list(range(9)) and back.catch_up.tolist() == [4095, 0, 7]
    assert np.flatnonzero(back.bad).tolist() == [0, 8] and len(frame.draft.bad) == 2
    large = codec.encode_draft(Draft(1, 0, ids(4096), bad=marks(length=1)))
    assert large.draft.span.dtype == pb.DTYPE_UINT16


def test_a_hand_over_of_six_scales_is_137_bytes() -> None:
    opened = Opened("x", 680, ids(*[9] * 91), 6, 0.0, by_scale=True)
    assert len(codec.encode_response(opened).opened.prefix.data) == 137
    order = Open("m", "", 4096, "1", 1, Warp(), 0, "all", resume=ids(*[9] * 91))
    assert len(codec.encode_open(order).open.resume.data) == 137


def test_models_of_tokens_send_what_they_always_sent() -> None:
    frame = codec.encode_draft(Draft(2, 5, ids(1, 2)))
    assert frame.draft.span.dtype == pb.DTYPE_UINT16 and not frame.draft.bad


def test_a_patch_replaces_tokens() -> None:
    sent = Verdict(2, 7, None, 0.0, patch=Patch(ids(1, 8), ids(50, 60)))
    back = codec.decode_response(codec.encode_response(sent))
    assert isinstance(back, Verdict)
    assert DRAFT.standing(back).tolist() == [0, 50, 2, 3, 4, 5, 6, 7, 60]
    whole = codec.decode_response(codec.encode_response(Verdict(2, 9, None, 0.0, patch=Patch(ids(), ids()))))
    assert isinstance(whole, Verdict) and DRAFT.standing(whole).tolist() == list(range(9))


@pytest.mark.parametrize("bad", [b"\xff", b"\xff\xff\xff", b"\x00\x01"])
def test_marks_that_do_not_fit_are_refused(bad: bytes) -> None:
    frame = codec.encode_draft(DRAFT)
    frame.draft.bad = bad
    with pytest.raises(InvalidDraft):
        codec.decode_request(frame)


def test_packed_bytes_that_do_not_fit_are_refused() -> None:
    frame = codec.encode_draft(DRAFT)
    frame.draft.span.data += b"\x00"
    with pytest.raises(InvalidDraft, match="12 bits"):
        codec.decode_request(frame)
    order = codec.encode_open(Open("m", "", 4096, "1", 1, Warp(), 0, "all", resume=ids(1)))
    order.open.resume.data = b"\x00\x1f"  # what fills up is not zero
    with pytest.raises(InvalidRequest):
        codec.decode_request(order)


@pytest.mark.parametrize("places", [[1, 1], [2, 1], [1]])
def test_patches_that_do_not_fit_are_refused(places: list[int]) -> None:
    frame = codec.encode_response(Verdict(2, 7, None, 0.0, patch=Patch(ids(1, 8), ids(50, 60))))
    frame.verdict.patch.places.shape[:] = [len(places)]
    frame.verdict.patch.places.data = np.array(places, dtype="<u2").tobytes()
    with pytest.raises(CiarError):
        codec.decode_response(frame)
