"""What models by steps add to the frames: latents, outputs, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from shared.decoding.warp import Warp
from shared.errors import CiarError, InvalidDraft, InvalidRequest
from shared.messages import Draft, Open, Opened, Output, Sampling, Steps, Verdict, no_tokens
from shared.wire import codec
from shared.wire.pb import ciar_pb2 as pb

ORDER = Open("m", "", 0, "1", 1, Warp(), 3, "output", sampling=Sampling("ddpm", "50", "fp32", "0" * 16))


def latent(kind: type, fill: float = 0.0) -> np.ndarray:
    values = np.arange(24, dtype=kind).reshape(2, 3, 4)
    values[0, 0, 0] = fill
    return values


@pytest.mark.parametrize(("kind", "size"), [(np.float16, 2), (np.float32, 4)])
def test_latents_come_back_in_the_dtype_they_had(kind: type, size: int) -> None:
    frame = codec.encode_draft(Draft(2, 5, no_tokens(), steps=Steps(4, latent(kind, 0.1))))
    assert len(frame.draft.steps.state.data) == 24 * size and not frame.draft.HasField("span")
    back = codec.decode_request(frame)
    assert isinstance(back, Draft) and back.steps is not None and back.steps.state is not None
    assert (back.steps.count, back.steps.known) == (4, False) and back.steps.state.dtype == kind
    assert np.array_equal(back.steps.state, latent(kind, 0.1))


def test_a_latent_the_cloud_has_stays_at_home() -> None:
    frame = codec.encode_draft(Draft(2, 5, no_tokens(), steps=Steps(1, latent(np.float16), known=True)))
    assert frame.ByteSize() < 12
    back = codec.decode_request(frame)
    assert isinstance(back, Draft) and back.steps is not None and back.steps.state is None


def test_orders_say_how() -> None:
    back = codec.decode_request(codec.encode_open(ORDER))
    assert isinstance(back, Open) and back.sampling == ORDER.sampling
    plain = codec.encode_open(Open("m", "", 64, "1", 1, Warp(), 3, "coupled"))
    assert not plain.open.HasField("sampling")


def test_outputs_come_back() -> None:
    features = np.ones((5, 3), np.float16)
    sent = Output(latent(np.float16), None, features, latent(np.float16, 9))
    answers = Opened("s", 50, no_tokens(), 3, 0.0, output=sent), Verdict(1, 0, None, 0.0, output=sent)
    for answer in answers:
        back = codec.decode_response(codec.encode_response(answer))
        assert isinstance(back, Opened | Verdict) and back.output is not None
        assert back.output.spread is None and back.output.features is not None
        assert np.array_equal(back.output.features, features)
        assert back.output.state is not None and back.output.state[0, 0, 0] == 9


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    draft = codec.encode_draft(Draft(2, 5, no_tokens(), steps=Steps(1, latent(np.float16, value))))
    with pytest.raises(InvalidDraft, match="finite"):
        codec.decode_request(draft)
    output = Output(latent(np.float16, value))
    with pytest.raises(CiarError, match="finite"):
        codec.decode_response(codec.encode_response(Verdict(1, 0, None, 0.0, output=output)))


def test_frames_that_do_not_fit_are_refused() -> None:
    draft = codec.encode_draft(Draft(2, 5, no_tokens(), steps=Steps(1, latent(np.float16))))
    draft.draft.steps.count = 0
    with pytest.raises(InvalidDraft, match="0 steps"):
        codec.decode_request(draft)
    draft.draft.steps.count = 1
    draft.draft.steps.state.dtype = pb.DTYPE_INT32
    with pytest.raises(InvalidDraft, match="DTYPE_FLOAT16, DTYPE_FLOAT32"):
        codec.decode_request(draft)
    order = codec.encode_open(ORDER)
    order.open.sampling.dtype = pb.DTYPE_INT8
    with pytest.raises(InvalidRequest, match="dtype"):
        codec.decode_request(order)
    with pytest.raises(InvalidRequest, match="fp16, fp32"):
        codec.encode_open(Open("m", "", 0, "1", 1, Warp(), 3, "output", sampling=Sampling("", "", "fp8")))
    shapes = Output(latent(np.float16), state=latent(np.float16).reshape(2, 4, 3))
    with pytest.raises(CiarError, match="one shape"):
        codec.decode_response(codec.encode_response(Verdict(1, 0, None, 0.0, output=shapes)))


def test_a_draft_without_steps_needs_a_span() -> None:
    with pytest.raises(InvalidDraft, match="0 tokens"):
        codec.decode_request(codec.encode_draft(Draft(1, 0, no_tokens())))
