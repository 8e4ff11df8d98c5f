"""Arrays <-> pb.Tensor, and the two values made of arrays: Features and Proposal. Knows nothing of models.

Nothing is believed: dtype, rank, every dimension and the number of bytes are checked before an array is made,
so a frame never costs more memory than it has bytes. `refuse` is the error class a violation is raised as.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from shared.decoding.scales import packed, unpacked
from shared.errors import CiarError, InvalidDraft, InvalidRequest
from shared.messages import Features, Latent, Marks, Patch, Proposal, Tokens, no_tokens
from shared.wire.pb import ciar_pb2 as pb

Refusal = type[CiarError]

_NUMPY: dict[int, np.dtype[Any]] = {
    pb.DTYPE_UINT16: np.dtype("<u2"),
    pb.DTYPE_INT32: np.dtype("<i4"),
    pb.DTYPE_INT8: np.dtype("i1"),
    pb.DTYPE_FLOAT16: np.dtype("<f2"),
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
}
_LARGEST_UINT16 = 0xFFFF
_UINT12 = 1 << 12  # ids below this fit


@dataclass(frozen=True)
class _Form:
    """What a Tensor field may hold."""

    rank: int
    dtypes: tuple[pb.Dtype, ...]


_TOKENS = _Form(1, (pb.DTYPE_UINT16, pb.DTYPE_INT32, pb.DTYPE_UINT12))
_INDEX = _Form(1, (pb.DTYPE_UINT16,))
_CODES = _Form(2, (pb.DTYPE_INT8,))
_SCALE = _Form(1, (pb.DTYPE_FLOAT16,))
_PROPOSAL_IDS = _Form(2, (pb.DTYPE_UINT16, pb.DTYPE_INT32))
_PROBABILITIES = _Form(2, (pb.DTYPE_FLOAT16,))
_LATENT = _Form(3, (pb.DTYPE_FLOAT16, pb.DTYPE_FLOAT32))


def encode_tokens(tokens: Tokens, *, by_scale: bool = False) -> pb.Tensor | None:
    """Tokens [n], two bytes each where all fit, 12 bits those of models by scales; None (an absent field) if
    there are none."""
    if by_scale and tokens.size and tokens.max() < _UINT12:
        data = packed(tokens.tolist(), _UINT12)
        return pb.Tensor(dtype=pb.DTYPE_UINT12, shape=tokens.shape, data=data)
    return _encode_ids(tokens) if tokens.size else None


def decode_tokens(message: Message, field: str, refuse: Refusal) -> Tokens:
    """int32 [n] from a Tensor field of `message`; empty if the field is absent."""
    return _decode_ids(message, field, _TOKENS, refuse) if message.HasField(field) else no_tokens()


def encode_features(features: Features | None) -> pb.Features | None:
    """None (an absent field) if there are no features."""
    if features is None or not features.index.size:
        return None
    return pb.Features(
        index=_encode(features.index, pb.DTYPE_UINT16),
        codes=_encode(features.codes, pb.DTYPE_INT8),
        scale=_encode(features.scale, pb.DTYPE_FLOAT16),
    )


def decode_features(message: Message, field: str, tokens: int, refuse: Refusal) -> Features | None:
    """Features of some of `tokens` tokens, from a Features field of `message`; None if absent."""
    if not message.HasField(field):
        return None
    sent = getattr(message, field)
    index = _decode(sent, "index", _INDEX, refuse)
    codes = _decode(sent, "codes", _CODES, refuse)
    scale = _decode(sent, "scale", _SCALE, refuse)
    if not len(index) == len(codes) == len(scale):
        lengths = f"{len(index)} places, {len(codes)} rows of codes and {len(scale)} scales"
        raise refuse(f"{field} has {lengths}", "the three lengths are equal")
    _require_places(index, tokens, refuse)
    _require(np.isfinite(scale), scale, "Features.scale", "finite values", refuse)
    return Features(index=index, codes=codes, scale=scale)


def encode_patch(patch: Patch | None) -> pb.Patch | None:
    """None (an absent field) if nothing is replaced."""
    if patch is None or not patch.places.size:
        return None
    places = _encode(patch.places, pb.DTYPE_UINT16)
    return pb.Patch(places=places, tokens=encode_tokens(patch.tokens, by_scale=True))


def decode_patch(verdict: pb.Verdict) -> Patch | None:
    """The Patch of a verdict; None if absent. Raises CiarError."""
    if not verdict.HasField("patch"):
        return None
    places = _decode(verdict.patch, "places", _INDEX, CiarError).astype(np.int32)
    tokens = _decode_ids(verdict.patch, "tokens", _TOKENS, CiarError)
    if len(places) != len(tokens) or (np.diff(places) <= 0).any():
        what = f"a patch has {len(tokens)} tokens for places {places[:8].tolist()}"
        raise CiarError(what, "one each, places ascending")
    return Patch(places, tokens)


def encode_bad(bad: Marks | None) -> bytes:
    """A bit per span token; nothing if no token is marked."""
    return b"" if bad is None or not bad.any() else np.packbits(bad).tobytes()


def decode_bad(draft: pb.Draft, span: int) -> Marks:
    """Marks [K] of the span tokens. Raises InvalidDraft for another number of bits."""
    if not draft.bad:
        return np.zeros(span, dtype=np.bool_)
    if len(draft.bad) != -(-span // 8):
        raise InvalidDraft(f"{len(draft.bad)} bytes of marks for {span} tokens", "a bit each")
    bits = np.unpackbits(np.frombuffer(draft.bad, dtype=np.uint8))
    if bits[span:].any():
        raise InvalidDraft(f"marks behind the last of {span} tokens", "the last byte is filled with zeros")
    return bits[:span].astype(np.bool_)


def encode_proposal(proposal: Proposal | None) -> pb.Proposal | None:
    """None (an absent field) if there is no proposal."""
    if proposal is None:
        return None
    return pb.Proposal(
        ids=_encode_ids(proposal.ids), probabilities=_encode(proposal.probabilities, pb.DTYPE_FLOAT16)
    )


def decode_proposal(draft: pb.Draft, span: int) -> Proposal | None:
    """The Proposal for a span of `span` tokens; None if the field is absent. Raises InvalidDraft."""
    if not draft.HasField("proposal"):
        return None
    ids = _decode_ids(draft.proposal, "ids", _PROPOSAL_IDS, InvalidDraft)
    probabilities = _decode(draft.proposal, "probabilities", _PROBABILITIES, InvalidDraft)
    if ids.shape != probabilities.shape or len(ids) != span:
        shapes = f"ids of shape {ids.shape} and probabilities of shape {probabilities.shape}"
        raise InvalidDraft(f"the proposal has {shapes}", f"both have one row per span token, {span}")
    allowed = np.isfinite(probabilities) & (probabilities >= 0)
    _require(allowed, probabilities, "Proposal.probabilities", "finite values of at least 0", InvalidDraft)
    return Proposal(ids=ids, probabilities=probabilities)


def encode_latent(latent: Latent | None) -> pb.Tensor | None:
    """A latent [C, H, W] in the dtype it has; None (an absent field) if there is none."""
    if latent is None:
        return None
    return _encode(latent, pb.DTYPE_FLOAT16 if latent.dtype == np.float16 else pb.DTYPE_FLOAT32)


def decode_latent(message: Message, field: str, refuse: Refusal) -> Latent:
    """fp16 or fp32 [C, H, W], finite, from a Tensor field of `message`."""
    latent: Latent = _decode(message, field, _LATENT, refuse)
    _require(np.isfinite(latent), latent, _name(message, field), "finite values", refuse)
    return latent


def encode_matrix(matrix: NDArray[np.float16] | None) -> pb.Tensor | None:
    """fp16 [N, d]; None (an absent field) if there is none."""
    return None if matrix is None or not matrix.size else _encode(matrix, pb.DTYPE_FLOAT16)


def decode_matrix(message: Message, field: str, refuse: Refusal, rank: int = 2) -> NDArray[np.float16]:
    """fp16 [N, d], finite, from a Tensor field of `message`; of three axes where `rank` says so."""
    matrix: NDArray[np.float16] = _decode(message, field, _Form(rank, (pb.DTYPE_FLOAT16,)), refuse)
    _require(np.isfinite(matrix), matrix, _name(message, field), "finite values", refuse)
    return matrix


def _encode(array: NDArray[Any], dtype: pb.Dtype) -> pb.Tensor:
    return pb.Tensor(dtype=dtype, shape=array.shape, data=array.astype(_NUMPY[dtype]).tobytes())


def _encode_ids(ids: NDArray[np.int32]) -> pb.Tensor:
    two_bytes = ids.min() >= 0 and ids.max() <= _LARGEST_UINT16
    return _encode(ids, pb.DTYPE_UINT16 if two_bytes else pb.DTYPE_INT32)


def _decode(message: Message, field: str, form: _Form, refuse: Refusal) -> NDArray[Any]:
    """A read-only array of native byte order, once the tensor is known to be what `form` allows."""
    if not message.HasField(field):
        raise refuse(f"{_name(message, field)} is missing")
    tensor: pb.Tensor = getattr(message, field)
    kind, shape, data = tensor.dtype, tuple(tensor.shape), tensor.data
    if kind not in form.dtypes:
        allowed = ", ".join(pb.Dtype.Name(dtype) for dtype in form.dtypes)
        raise refuse(f"{_name(message, field)} has dtype {_dtype_name(kind)}", f"allowed: {allowed}")
    if len(shape) != form.rank:
        raise refuse(f"{_name(message, field)} has rank {len(shape)}", f"allowed: rank {form.rank}")
    if min(shape) < 1:
        why = "every dimension is at least 1; an empty field is left out"
        raise refuse(f"{_name(message, field)} has shape {shape}", why)
    if kind == pb.DTYPE_UINT12:
        return _unpacked(tensor, refuse)
    dtype = _NUMPY[kind]
    expected = math.prod(shape) * dtype.itemsize  # Python integers: no shape is too absurd for this product
    if len(data) != expected:
        form_sent = f"dtype {_dtype_name(kind)} and shape {shape}"
        carried = f"{_name(message, field)} of {form_sent} carries {len(data)} bytes"
        raise refuse(carried, f"allowed: {expected}")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _name(message: Message, field: str) -> str:
    """What a refusal calls a field; made for none that is right."""
    return f"{message.DESCRIPTOR.name}.{field}"


def _unpacked(tensor: pb.Tensor, refuse: Refusal) -> NDArray[Any]:
    try:
        return np.array(unpacked(tensor.data, tensor.shape[0], _UINT12), dtype=np.int32)
    except InvalidRequest as error:
        raise refuse(error.what, "elements of 12 bits") from None


def _decode_ids(message: Message, field: str, form: _Form, refuse: Refusal) -> NDArray[np.int32]:
    ids = _decode(message, field, form, refuse).astype(np.int32)
    if ids.min() < 0:
        _require(ids >= 0, ids, _name(message, field), "ids of at least 0", refuse)
    return ids


def _require_places(index: NDArray[np.uint16], tokens: int, refuse: Refusal) -> None:
    """Strictly ascending places below `tokens`."""
    allowed = index < tokens
    allowed[1:] &= index[1:] > index[:-1]
    _require(allowed, index, "Features.index", f"strictly ascending places below {tokens}", refuse)


def _require(allowed: NDArray[np.bool_], values: NDArray[Any], name: str, rule: str, refuse: Refusal) -> None:
    if not allowed.all():
        place = np.unravel_index(int(allowed.argmin()), allowed.shape)
        raise refuse(f"{name} holds {values[place]} at {tuple(map(int, place))}", f"allowed: {rule}")


def _dtype_name(dtype: int) -> str:
    return pb.Dtype.Name(pb.Dtype.ValueType(dtype)) if dtype in pb.Dtype.values() else str(dtype)
