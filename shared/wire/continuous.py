"""What models of continuous tokens add to the frames: Masking, Continuous, Kept. Knows nothing of models.

Tokens are fp16, and finite whoever sent them. Ranges that depend on a model are checked by the session.
"""

from __future__ import annotations

import math

import numpy as np
from google.protobuf.message import Message

from shared.continuous import Continuous, Kept, Masking, Values
from shared.errors import CiarError, InvalidDraft
from shared.wire import tensors
from shared.wire.pb import ciar_pb2 as pb


def encode_masking(masking: Masking | None) -> pb.Masking | None:
    """None (an absent field) for other models."""
    if masking is None:
        return None
    return pb.Masking(
        steps=masking.steps,
        head_steps=masking.head_steps,
        schedule=masking.schedule,
        tolerance=masking.tolerance,
        clip=masking.clip,
    )


def decode_masking(order: pb.Open) -> Masking | None:
    """The Masking of an order; None if absent."""
    if not order.HasField("masking"):
        return None
    sent = order.masking
    return Masking(sent.steps, sent.head_steps, sent.schedule, sent.tolerance, sent.clip)


def decode_values(message: Message, field: str, refuse: tensors.Refusal) -> Values | None:
    """Tokens [n, C] from a Tensor field of `message`; None if absent."""
    return tensors.decode_matrix(message, field, refuse) if message.HasField(field) else None


def encode_span(span: Continuous | None) -> pb.Continuous | None:
    """None (an absent field) for other models."""
    if span is None:
        return None
    return pb.Continuous(
        values=tensors.encode_matrix(span.values),
        conditions=tensors.encode_matrix(span.conditions),
        log_std=tensors.encode_matrix(span.log_std),
        log_std_before=span.log_std_before,
    )


def decode_span(draft: pb.Draft) -> Continuous | None:
    """The span of a draft; None if absent. Raises InvalidDraft for parts of different length."""
    if not draft.HasField("continuous"):
        return None
    sent = draft.continuous
    conditions = None
    if sent.HasField("conditions"):
        conditions = tensors.decode_matrix(sent, "conditions", InvalidDraft, rank=3)
    values, log_std = (decode_values(sent, field, InvalidDraft) for field in ("values", "log_std"))
    if (values is None) == (conditions is None):
        raise InvalidDraft("a draft needs tokens or conditions", "exactly one of both")
    found = Continuous(values, conditions, log_std, tuple(sent.log_std_before))
    if (log_std is None) != (not found.log_std_before):
        raise InvalidDraft("log_std and log_std_before", "allowed: both or none")
    if log_std is not None and not (
        values is not None and log_std.shape == values.shape and len(found.log_std_before) == len(values)
    ):
        raise InvalidDraft(f"log_std of shape {log_std.shape}", "a row for each token, and a sum")
    if not all(map(math.isfinite, found.log_std_before)):
        raise InvalidDraft(f"log_std_before {found.log_std_before[:8]}", "allowed: finite values")
    return found


def encode_kept(kept: Kept | None) -> pb.Kept | None:
    """None (an absent field) for other models."""
    if kept is None:
        return None
    stands, values = np.packbits(kept.stands).tobytes(), tensors.encode_matrix(kept.values)
    return pb.Kept(stands=stands, values=values, judged=len(kept.stands))


def decode_kept(verdict: pb.Verdict) -> Kept | None:
    """The Kept of a verdict; None if absent. Raises CiarError."""
    if not verdict.HasField("kept"):
        return None
    sent = verdict.kept
    if len(sent.stands) != -(-sent.judged // 8):
        raise CiarError(f"{len(sent.stands)} bytes of marks for {sent.judged} tokens", "a bit each")
    bits = np.unpackbits(np.frombuffer(sent.stands, dtype=np.uint8))[: sent.judged]
    values = decode_values(sent, "values", CiarError)
    return Kept(bits.astype(np.bool_), np.zeros((0, 0), np.float16) if values is None else values)
