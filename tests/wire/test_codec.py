"""The codec: everything that can be said survives the wire, everything else is refused by name."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from shared import errors
from shared.decoding.acceptance import MOST_NEIGHBOURS, Relaxation
from shared.decoding.warp import Warp
from shared.errors import (
    CiarError,
    CloudUnreachable,
    InvalidDraft,
    InvalidPrompt,
    InvalidRequest,
    ModelMismatch,
    ModelUnavailable,
    Overloaded,
    SessionLost,
)
from shared.messages import (
    Draft,
    Features,
    Finish,
    ModelInfo,
    Open,
    Opened,
    Proposal,
    ServerInfo,
    Tokens,
    Usage,
    Verdict,
    no_tokens,
)
from shared.wire import codec, failures
from shared.wire.info import decode_info, encode_info
from shared.wire.pb import ciar_pb2 as pb

ERRORS = (
    CiarError,
    InvalidRequest,
    InvalidPrompt,
    InvalidDraft,
    ModelUnavailable,
    ModelMismatch,
    Overloaded,
    SessionLost,
    CloudUnreachable,
)

# ---- what can be said

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
uint32 = st.integers(0, 2**32 - 1)
seconds = st.integers(0, 10**12).map(lambda us: us / 1e6)  # the wire counts microseconds
warps = st.builds(
    Warp,
    guidance=st.floats(0, 100),
    temperature=st.floats(0, 100),
    top_k=uint32,
    top_p=st.floats(0, 1, exclude_min=True),
)


relaxations = st.builds(
    Relaxation,
    k=st.integers(1, MOST_NEIGHBOURS),
    delta=st.floats(0, 1),
    multiple=st.just(0.0) | st.floats(1, 1e6),
)


def tokens(min_size: int = 0) -> st.SearchStrategy[Tokens]:
    """Vectors that fit two bytes and vectors that do not."""
    largest = st.sampled_from([6, 0xFFFF, 2**31 - 1])
    return largest.flatmap(
        lambda high: st.lists(st.integers(0, high), min_size=min_size, max_size=40).map(
            lambda ids: np.array(ids, dtype=np.int32)
        )
    )


@st.composite
def features_of(draw: st.DrawFn, length: int) -> Features | None:
    places = draw(st.lists(st.integers(0, length - 1), unique=True).map(sorted)) if length else []
    if not places:
        return None
    return Features(
        index=np.array(places, dtype=np.uint16),
        codes=draw(npst.arrays(np.int8, (len(places), draw(st.integers(1, 4))))),
        scale=draw(npst.arrays(np.float16, len(places), elements=st.floats(-60000, 60000, width=16))),
    )


@st.composite
def proposals(draw: st.DrawFn, span: int) -> Proposal:
    shape = (span, draw(st.integers(1, 4)))
    ids = draw(npst.arrays(np.int32, shape, elements=st.integers(0, draw(st.sampled_from([9, 2**31 - 1])))))
    return Proposal(ids, draw(npst.arrays(np.float16, shape, elements=st.floats(0, 1, width=16))))


@st.composite
def opens(draw: st.DrawFn) -> Open:
    resume = draw(tokens())
    return Open(
        model=draw(text),
        cloud_digest=draw(text),
        codebook_size=draw(uint32),
        prompt=draw(text),
        seed=draw(st.integers(0, 2**64 - 1)),
        warp=draw(warps),
        prefix_tokens=draw(uint32),
        acceptance=draw(text),
        resume=resume,
        resume_features=draw(features_of(len(resume))),
        guesses=draw(st.booleans()),
        max_forwards=draw(uint32),
        relaxation=draw(st.none() | relaxations),
        alone=draw(text),
        window=draw(uint32),
    )


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    span, catch_up = draw(tokens(min_size=1)), draw(tokens())
    return Draft(
        round=draw(uint32),
        base=draw(uint32),
        span=span,
        catch_up=catch_up,
        features=draw(features_of(len(catch_up))),
        proposal=draw(st.none() | proposals(len(span))),
        behind=draw(st.none() | uint32),
        parents=draw(tokens()),
    )


openeds = st.builds(
    Opened, session=text, image_tokens=uint32, prefix=tokens(), cloud_forwards=uint32, cloud_s=seconds
)
verdicts = st.builds(
    Verdict,
    round=uint32,
    accepted=uint32,
    token=st.none() | uint32,
    cloud_s=seconds,
    more=tokens(),
    guesses=tokens(),
    cloud_forwards=uint32,
    stale=st.booleans(),
    path=tokens(),
)
usages = st.builds(Usage, *[uint32] * 4, cloud_s=seconds)
infos = st.builds(
    ServerInfo,
    protocol_version=uint32,
    models=st.lists(st.builds(ModelInfo, text, text, uint32, uint32, uint32), max_size=3).map(tuple),
    max_prompt_chars=uint32,
    max_span_tokens=uint32,
    max_sessions=uint32,
    max_message_bytes=uint32,
)


def same(left: Any, right: Any) -> bool:
    """Equal to the bit, arrays, their dtypes and nested values included."""
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if dataclasses.is_dataclass(left):
        names = [field.name for field in dataclasses.fields(left)]
        return type(left) is type(right) and all(same(getattr(left, n), getattr(right, n)) for n in names)
    return type(left) is type(right) and left == right


def request_over_the_wire(frame: pb.GenerateRequest) -> Open | Draft | Finish:
    return codec.decode_request(pb.GenerateRequest.FromString(frame.SerializeToString()))


def response_over_the_wire(message: Opened | Verdict | Usage | CiarError) -> Opened | Verdict | Usage:
    frame = codec.encode_response(message)
    return codec.decode_response(pb.GenerateResponse.FromString(frame.SerializeToString()))


@given(opens())
def test_open_round_trip(message: Open) -> None:
    assert same(request_over_the_wire(codec.encode_open(message)), message)


@given(drafts())
def test_draft_round_trip(message: Draft) -> None:
    assert same(request_over_the_wire(codec.encode_draft(message)), message)


def test_finish_round_trip() -> None:
    assert request_over_the_wire(codec.encode_finish(Finish())) == Finish()


@given(openeds | verdicts | usages)
def test_response_round_trip(message: Opened | Verdict | Usage) -> None:
    assert same(response_over_the_wire(message), message)


@given(infos)
def test_info_round_trip(info: ServerInfo) -> None:
    sent = encode_info(info).SerializeToString()
    assert decode_info(pb.GetInfoResponse.FromString(sent)) == info


@pytest.mark.parametrize("kind", ERRORS)
@given(what=text, why=text, next_step=text)
def test_errors_arrive_as_what_they_are(kind: type[CiarError], what: str, why: str, next_step: str) -> None:
    with pytest.raises(CiarError) as raised:
        response_over_the_wire(kind(what, why, next_step))
    assert type(raised.value) is kind
    assert (raised.value.what, raised.value.why, raised.value.next_step) == (what, why, next_step)


def test_every_error_class_and_every_code_is_in_the_table() -> None:
    local = {errors.Refused}  # what a device makes of a status: no frame names it
    declared = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    assert declared - local == set(ERRORS) == set(failures._CODES)
    assert set(failures._CODES.values()) == set(pb.ErrorCode.values()) - {pb.ERROR_CODE_UNSPECIFIED}


def test_overloaded_says_when_to_come_back() -> None:
    with pytest.raises(Overloaded) as raised:
        response_over_the_wire(Overloaded("no free session", retry_after_s=0.25))
    assert raised.value.retry_after_s == 0.25


def test_an_error_without_a_code_travels_as_its_base_and_an_unknown_code_is_internal() -> None:
    class Local(InvalidDraft):
        """Known to one side only."""

    with pytest.raises(InvalidDraft, match=r"^odd$") as raised:
        response_over_the_wire(Local("odd"))
    assert type(raised.value) is InvalidDraft
    frame = pb.GenerateResponse(error=pb.Error(what="from the future"))
    frame.error.MergeFromString(b"\x08\x63")  # code = 99
    with pytest.raises(CiarError, match="from the future") as unknown:
        codec.decode_response(frame)
    assert type(unknown.value) is CiarError


# ---- what must be refused

IDS = pb.Tensor(dtype=pb.DTYPE_UINT16, shape=[2], data=bytes(4))
NAN, INFINITY, HALF = (np.array([value], "<f2").tobytes() for value in (np.nan, np.inf, 0.5))


def tensor(dtype: pb.Dtype, shape: list[int], data: bytes) -> pb.Tensor:
    return pb.Tensor(dtype=dtype, shape=shape, data=data)


def halves(data: bytes) -> pb.Tensor:
    return tensor(pb.DTYPE_FLOAT16, [len(data) // 2], data)


def places(*values: int) -> pb.Tensor:
    return tensor(pb.DTYPE_UINT16, [len(values)], np.array(values, "<u2").tobytes())


def features(index: pb.Tensor, scale: pb.Tensor, rows: int = 1) -> pb.Features:
    return pb.Features(index=index, codes=tensor(pb.DTYPE_INT8, [rows, 3], bytes(3 * rows)), scale=scale)


def proposal(shape: list[int], data: bytes, probabilities_shape: list[int] | None = None) -> pb.Proposal:
    ids = tensor(pb.DTYPE_UINT16, shape, bytes(2 * int(np.prod(shape))))
    return pb.Proposal(ids=ids, probabilities=tensor(pb.DTYPE_FLOAT16, probabilities_shape or shape, data))


BAD_TENSORS = {
    "truncated": (tensor(pb.DTYPE_UINT16, [5], bytes(9)), r"shape \(5,\) carries 9 bytes.*allowed: 10"),
    "too long": (tensor(pb.DTYPE_INT32, [5], bytes(24)), r"INT32 and shape \(5,\) carries 24 bytes.*20"),
    "no dtype": (pb.Tensor(shape=[1], data=bytes(2)), "dtype DTYPE_UNSPECIFIED.*DTYPE_UINT16, DTYPE_INT32"),
    "wrong dtype": (tensor(pb.DTYPE_INT8, [1], bytes(1)), "dtype DTYPE_INT8.*DTYPE_UINT16, DTYPE_INT32"),
    "unknown dtype": (pb.Tensor.FromString(b"\x08\x63"), "dtype 99.*DTYPE_UINT16, DTYPE_INT32"),
    "no shape": (tensor(pb.DTYPE_UINT16, [], bytes(2)), "rank 0.*allowed: rank 1"),
    "matrix": (tensor(pb.DTYPE_UINT16, [1, 1], bytes(2)), "rank 2.*allowed: rank 1"),
    "high rank": (tensor(pb.DTYPE_UINT16, [1] * 100_000, bytes(2)), "rank 100000.*allowed: rank 1"),
    "huge": (tensor(pb.DTYPE_INT32, [2**32 - 1], bytes(4)), r"\(4294967295,\).*allowed: 17179869180"),
    "2**32 bytes": (tensor(pb.DTYPE_INT32, [2**30], b""), "carries 0 bytes.*allowed: 4294967296"),
    "empty": (tensor(pb.DTYPE_UINT16, [0], b""), r"shape \(0,\).*at least 1"),
    "negative": (tensor(pb.DTYPE_INT32, [2], b"\1\0\0\0\xff\xff\xff\xff"), r"holds -1 at \(1,\)"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
@pytest.mark.parametrize("field", ["span", "catch_up"])
def test_bad_draft_tensors(field: str, bad: pb.Tensor, message: str) -> None:
    draft = pb.Draft(**{"span": IDS, field: bad})
    with pytest.raises(InvalidDraft, match=f"Draft.{field} .*{message}"):
        codec.decode_request(pb.GenerateRequest(draft=draft))


@pytest.mark.parametrize(("bad", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_resume(bad: pb.Tensor, message: str) -> None:
    frame = pb.GenerateRequest(open=pb.Open(warp=pb.Warp(top_p=1), resume=bad))
    with pytest.raises(InvalidRequest, match=f"Open.resume .*{message}") as raised:
        codec.decode_request(frame)
    assert type(raised.value) is InvalidRequest


@pytest.mark.parametrize(("bad", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_prefix_from_a_cloud(bad: pb.Tensor, message: str) -> None:
    with pytest.raises(CiarError, match=f"Opened.prefix .*{message}") as raised:
        codec.decode_response(pb.GenerateResponse(opened=pb.Opened(prefix=bad)))
    assert type(raised.value) is CiarError


BAD_FEATURES = {
    "duplicate": (features(places(1, 1), halves(HALF * 2), 2), r"holds 1 at \(1,\).*places below 2"),
    "descending": (features(places(1, 0), halves(HALF * 2), 2), r"holds 0 at \(1,\).*places below 2"),
    "beyond": (features(places(2), halves(HALF)), r"index holds 2 at \(0,\).*below 2"),
    "nan": (features(places(0), halves(NAN)), r"scale holds nan at \(0,\).*finite"),
    "infinite": (features(places(0, 1), halves(HALF + INFINITY), 2), r"scale holds inf at \(1,\).*finite"),
    "lengths": (features(places(0, 1), halves(HALF), 3), "2 places, 3 rows of codes and 1 scales.*equal"),
    "no codes": (pb.Features(index=places(0), scale=halves(HALF)), "Features.codes is missing"),
    "no index": (pb.Features(), "Features.index is missing"),
    "float codes": (pb.Features(index=places(0), codes=halves(HALF)), "codes has dtype DTYPE_FLOAT16.*INT8"),
    "flat codes": (
        pb.Features(index=places(0), codes=tensor(pb.DTYPE_INT8, [3], bytes(3))),
        "codes has rank 1.*allowed: rank 2",
    ),
    "no width": (
        pb.Features(index=places(0), codes=tensor(pb.DTYPE_INT8, [2**32 - 1, 0], b"")),
        r"codes has shape \(4294967295, 0\).*at least 1",
    ),
    "overflow": (
        pb.Features(index=places(0), codes=tensor(pb.DTYPE_INT8, [2**32 - 1, 2**32 - 1], b"x")),
        "codes .* carries 1 bytes.*allowed: 18446744065119617025",
    ),
    "int32 index": (pb.Features(index=tensor(pb.DTYPE_INT32, [1], bytes(4))), "index has dtype DTYPE_INT32"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_FEATURES.values(), ids=BAD_FEATURES)
def test_bad_features(bad: pb.Features, message: str) -> None:
    draft = pb.Draft(span=IDS, catch_up=IDS, features=bad)
    with pytest.raises(InvalidDraft, match=message):
        codec.decode_request(pb.GenerateRequest(draft=draft))
    opening = pb.Open(warp=pb.Warp(top_p=1), resume=IDS, resume_features=bad)
    with pytest.raises(InvalidRequest, match=message) as raised:
        codec.decode_request(pb.GenerateRequest(open=opening))
    assert type(raised.value) is InvalidRequest


def test_features_of_no_tokens() -> None:
    draft = pb.Draft(span=IDS, features=features(places(0), halves(HALF)))
    with pytest.raises(InvalidDraft, match=r"index holds 0 at \(0,\).*below 0"):
        codec.decode_request(pb.GenerateRequest(draft=draft))


BAD_PROPOSALS = {
    "too few rows": (proposal([1, 3], HALF * 3), r"ids of shape \(1, 3\).*one row per span token, 2"),
    "other shape": (proposal([2, 3], HALF * 6, [3, 2]), r"\(2, 3\) and probabilities of shape \(3, 2\)"),
    "nan": (proposal([2, 2], HALF * 3 + NAN), r"probabilities holds nan at \(1, 1\)"),
    "infinite": (proposal([2, 2], INFINITY + HALF * 3), r"probabilities holds inf at \(0, 0\)"),
    "negative": (proposal([2, 1], HALF + b"\0\xb8"), r"probabilities holds -0.5 at \(1, 0\)"),
    "no ids": (pb.Proposal(probabilities=halves(HALF)), "Proposal.ids is missing"),
    "vector": (proposal([2], HALF * 2), "ids has rank 1.*allowed: rank 2"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_PROPOSALS.values(), ids=BAD_PROPOSALS)
def test_bad_proposals(bad: pb.Proposal, message: str) -> None:
    with pytest.raises(InvalidDraft, match=message):
        codec.decode_request(pb.GenerateRequest(draft=pb.Draft(span=IDS, proposal=bad)))


def test_empty_and_unknown_frames() -> None:
    unknown = b"\x7a\x00"  # field 15
    for sent in (b"", unknown):
        with pytest.raises(InvalidRequest, match=r"empty or unknown.*open, draft, finish"):
            codec.decode_request(pb.GenerateRequest.FromString(sent))
        with pytest.raises(CiarError, match=r"empty or unknown.*protocol version 1"):
            codec.decode_response(pb.GenerateResponse.FromString(sent))


def test_draft_without_span() -> None:
    with pytest.raises(InvalidDraft, match=r"span has 0 tokens.*at least 1"):
        codec.decode_request(pb.GenerateRequest(draft=pb.Draft(round=1)))


@pytest.mark.parametrize(
    ("warp", "message"),
    [
        (pb.Warp(temperature=float("nan"), top_p=1), "temperature nan"),
        (pb.Warp(guidance=float("inf"), top_p=1), "guidance inf"),
        (pb.Warp(), "top_p 0.0"),
        (None, "warp is missing"),
    ],
)
def test_bad_warp(warp: pb.Warp | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        codec.decode_request(pb.GenerateRequest(open=pb.Open(warp=warp)))


def an_open(prompt: str = "a cat", seed: int = 7) -> Open:
    return Open("emoji", "", 256, prompt, seed, Warp(), prefix_tokens=0, acceptance="coupled")


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_that_does_not_fit(seed: int) -> None:
    with pytest.raises(InvalidRequest, match=f"seed {seed} "):
        codec.encode_open(an_open(seed=seed))


def test_prompt_that_is_no_text() -> None:
    with pytest.raises(InvalidPrompt, match=r"\\ud800"):
        codec.encode_open(an_open(prompt="a \ud800 cat"))


@given(drafts(), st.data())
def test_damaged_drafts_decode_or_are_refused(message: Draft, data: st.DataObject) -> None:
    """What protobuf can still read after damage is a message or an error of ours, nothing foreign."""
    sent = bytearray(codec.encode_draft(message).SerializeToString())
    for place in data.draw(st.lists(st.integers(0, len(sent) - 1), min_size=1, max_size=3)):
        sent[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError, InvalidRequest):
        request_over_the_wire(pb.GenerateRequest.FromString(bytes(sent)))


# ---- what it costs


def test_bytes_of_a_draft() -> None:
    span = np.array([4095, 1, 16383, 7, 65535], dtype=np.int32)
    assert len(codec.encode_draft(Draft(round=300, base=4000, span=span)).SerializeToString()) <= 32


def test_bytes_of_a_verdict() -> None:
    verdict = Verdict(round=300, accepted=4, token=65535, cloud_s=1.999999)
    assert len(codec.encode_response(verdict).SerializeToString()) <= 16
    guessing = dataclasses.replace(verdict, guesses=np.arange(10, dtype=np.int32))
    assert len(codec.encode_response(guessing).SerializeToString()) <= 16 + 10 + 2 * 10


def test_a_verdict_of_an_older_cloud_has_cost_one_forward() -> None:
    frame = pb.GenerateResponse(verdict=pb.Verdict(round=3, accepted=1, token=7))
    verdict = codec.decode_response(frame)
    assert isinstance(verdict, Verdict)
    assert (verdict.cloud_forwards, verdict.stale, verdict.drawn) == (1, False, [7])


def test_ids_take_two_bytes_where_they_fit() -> None:
    for largest, dtype in ((65535, pb.DTYPE_UINT16), (65536, pb.DTYPE_INT32)):
        span = np.array([0, largest], dtype=np.int32)
        assert codec.encode_draft(Draft(0, 0, span)).draft.span.dtype == dtype


def test_absent_stays_absent() -> None:
    empty = Features(np.zeros(0, np.uint16), np.zeros((0, 3), np.int8), np.zeros(0, np.float16))
    draft = Draft(0, 0, np.array([1], dtype=np.int32), no_tokens(), features=empty)
    sent = codec.encode_draft(draft).draft
    assert [field.name for field, _ in sent.ListFields()] == ["span"]


@pytest.mark.parametrize(("field", "value"), [("k", 0), ("k", 1001), ("delta", 1.5), ("multiple", 0.5)])
def test_bounds_of_relaxed_acceptance_are_checked_at_the_door(field: str, value: float) -> None:
    good = {"k": 5, "delta": 0.1, "multiple": 0.0}
    opening = pb.Open(warp=pb.Warp(top_p=1), relaxation=pb.Relaxation(**{**good, field: value}))
    with pytest.raises(InvalidRequest, match="relax"):
        codec.decode_request(pb.GenerateRequest(open=opening))
