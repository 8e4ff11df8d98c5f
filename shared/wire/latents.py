"""What models by steps add to the frames: Sampling, Steps, Output. Knows nothing of models.

A latent travels in the dtype it has. Whatever arrives is checked for form and for finite values here.
"""

from __future__ import annotations

from typing import TypeVar

from shared.errors import CiarError, InvalidDraft, InvalidRequest
from shared.messages import Latent, Output, Sampling, Steps
from shared.wire import tensors
from shared.wire.pb import ciar_pb2 as pb

DTYPES = {"fp16": pb.DTYPE_FLOAT16, "fp32": pb.DTYPE_FLOAT32}
_PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}
PartT = TypeVar("PartT", pb.Steps, pb.Output)


def encode_sampling(sampling: Sampling | None) -> pb.Sampling | None:
    """None (an absent field) for other models. Raises InvalidRequest for an unknown precision."""
    if sampling is None:
        return None
    if sampling.precision not in DTYPES:
        what = f"precision {sampling.precision!r} is not allowed"
        raise InvalidRequest(what, f"allowed: {', '.join(DTYPES)}")
    return pb.Sampling(
        sampler=sampling.sampler,
        spacing=sampling.spacing,
        dtype=DTYPES[sampling.precision],
        projection=sampling.projection,
    )


def decode_sampling(order: pb.Open) -> Sampling | None:
    """The Sampling of an order; None if absent. Raises InvalidRequest for a dtype that is no precision."""
    if not order.HasField("sampling"):
        return None
    sent = order.sampling
    if sent.dtype not in _PRECISIONS:
        allowed = ", ".join(pb.Dtype.Name(dtype) for dtype in _PRECISIONS)
        raise InvalidRequest(f"Sampling.dtype is {sent.dtype}", f"allowed: {allowed}")
    return Sampling(sent.sampler, sent.spacing, _PRECISIONS[sent.dtype], sent.projection)


def encode_steps(steps: Steps | None) -> pb.Steps | None:
    """None (an absent field) for other models; a state that the cloud has stays at home."""
    if steps is None:
        return None
    return pb.Steps(count=steps.count, state=None if steps.known else tensors.encode_latent(steps.state))


def decode_steps(draft: pb.Draft) -> Steps | None:
    """The Steps of a draft; None if absent. Raises InvalidDraft."""
    if not draft.HasField("steps"):
        return None
    if not draft.steps.count:
        raise InvalidDraft("a draft asks for 0 steps", "allowed: 1 and more")
    state = _latent(draft.steps, "state", InvalidDraft)
    return Steps(draft.steps.count, state, known=state is None)


def encode_output(output: Output | None) -> pb.Output | None:
    """None (an absent field) for other models."""
    if output is None:
        return None
    return pb.Output(
        noise=tensors.encode_latent(output.noise),
        spread=tensors.encode_latent(output.spread),
        features=tensors.encode_matrix(output.features),
        state=tensors.encode_latent(output.state),
    )


def decode_output(message: pb.Opened | pb.Verdict) -> Output | None:
    """The Output of an answer; None if absent. Raises CiarError."""
    if not message.HasField("output"):
        return None
    sent = message.output
    noise = tensors.decode_latent(sent, "noise", CiarError)
    features = tensors.decode_matrix(sent, "features", CiarError) if sent.HasField("features") else None
    spread, state = (_latent(sent, field, CiarError) for field in ("spread", "state"))
    for other in (spread, state):
        if other is not None and other.shape != noise.shape:
            raise CiarError(f"an output has latents of shapes {noise.shape} and {other.shape}", "one shape")
    return Output(noise, spread, features, state)


def _latent(part: PartT, field: str, refuse: type[CiarError]) -> Latent | None:
    return tensors.decode_latent(part, field, refuse) if part.HasField(field) else None
