"""What a server says of itself before an image begins. Knows nothing of streams."""

from __future__ import annotations

from shared.messages import ModelInfo, ServerInfo
from shared.wire.pb import ciar_pb2 as pb


def encode_info(info: ServerInfo) -> pb.GetInfoResponse:
    """GetInfo's answer."""
    return pb.GetInfoResponse(
        protocol_version=info.protocol_version,
        models=[
            pb.ModelInfo(
                name=model.name,
                digest=model.digest,
                codebook_size=model.codebook_size,
                image_tokens=model.image_tokens,
                feature_width=model.feature_width,
                scales=model.scales,
                latent=model.latent,
                token_width=model.token_width,
            )
            for model in info.models
        ],
        max_prompt_chars=info.max_prompt_chars,
        max_span_tokens=info.max_span_tokens,
        max_sessions=info.max_sessions,
        max_message_bytes=info.max_message_bytes,
    )


def decode_info(info: pb.GetInfoResponse) -> ServerInfo:
    """The inverse of `encode_info`. Whether the version is spoken here is the caller's question."""
    return ServerInfo(
        protocol_version=info.protocol_version,
        models=tuple(
            ModelInfo(
                name=model.name,
                digest=model.digest,
                codebook_size=model.codebook_size,
                image_tokens=model.image_tokens,
                feature_width=model.feature_width,
                scales=tuple(model.scales),
                latent=tuple(model.latent),
                token_width=model.token_width,
            )
            for model in info.models
        ),
        max_prompt_chars=info.max_prompt_chars,
        max_span_tokens=info.max_span_tokens,
        max_sessions=info.max_sessions,
        max_message_bytes=info.max_message_bytes,
    )
