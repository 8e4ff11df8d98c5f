"""What Open says about how tokens are drawn and judged <-> protobuf: Warp and Relaxation.

Ranges are checked by the values themselves.
"""

from __future__ import annotations

from shared.decoding.acceptance import Relaxation
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest
from shared.wire.pb import ciar_pb2 as pb


def encode_warp(warp: Warp) -> pb.Warp:
    """The warp of an image."""
    return pb.Warp(guidance=warp.guidance, temperature=warp.temperature, top_k=warp.top_k, top_p=warp.top_p)


def decode_warp(message: pb.Open) -> Warp:
    """The warp of an Open. Raises InvalidRequest where it is missing or out of range."""
    if not message.HasField("warp"):
        raise InvalidRequest("the warp is missing", "Open needs guidance, temperature, top_k and top_p")
    warp = message.warp
    return Warp(guidance=warp.guidance, temperature=warp.temperature, top_k=warp.top_k, top_p=warp.top_p)


def encode_relaxation(bounds: Relaxation | None) -> pb.Relaxation | None:
    """None (an absent field) unless acceptance is relaxed."""
    return None if bounds is None else pb.Relaxation(k=bounds.k, delta=bounds.delta, multiple=bounds.multiple)


def decode_relaxation(message: pb.Open) -> Relaxation | None:
    """The bounds of an Open; None if absent. Raises InvalidRequest where one is out of range."""
    if not message.HasField("relaxation"):
        return None
    sent = message.relaxation
    return Relaxation(sent.k, sent.delta, sent.multiple)
