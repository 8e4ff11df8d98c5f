"""Errors <-> pb.Error: which class has which code. Knows nothing of streams, models or sessions."""

from __future__ import annotations

import math

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
from shared.wire.pb import ciar_pb2 as pb

_CODES: dict[type[CiarError], pb.ErrorCode] = {
    CiarError: pb.ERROR_CODE_INTERNAL,
    InvalidRequest: pb.ERROR_CODE_INVALID_REQUEST,
    InvalidPrompt: pb.ERROR_CODE_INVALID_PROMPT,
    InvalidDraft: pb.ERROR_CODE_INVALID_DRAFT,
    ModelUnavailable: pb.ERROR_CODE_MODEL_UNAVAILABLE,
    ModelMismatch: pb.ERROR_CODE_MODEL_MISMATCH,
    Overloaded: pb.ERROR_CODE_OVERLOADED,
    SessionLost: pb.ERROR_CODE_SESSION_LOST,
    CloudUnreachable: pb.ERROR_CODE_CLOUD_UNREACHABLE,
}
_ERRORS = {code: kind for kind, code in _CODES.items()}


def encode_error(error: CiarError) -> pb.Error:
    """The message of an error; a class without a code travels as its nearest base."""
    kind = next(kind for kind in type(error).__mro__ if kind in _CODES)
    wait_ms = math.ceil(error.retry_after_s * 1000) if isinstance(error, Overloaded) else None
    code = _CODES[kind]
    return pb.Error(
        code=code, what=error.what, why=error.why, next_step=error.next_step, retry_after_ms=wait_ms
    )


def decode_error(error: pb.Error) -> CiarError:
    """The error a message names; an unknown code is a CiarError."""
    kind = _ERRORS.get(error.code, CiarError)
    if kind is Overloaded and error.HasField("retry_after_ms"):
        return Overloaded(error.what, error.why, error.next_step, error.retry_after_ms / 1000)
    return kind(error.what, error.why, error.next_step)
