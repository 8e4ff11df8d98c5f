"""Messages <-> the protobuf frames of proto/ciar/v1/ciar.proto. Knows nothing of gRPC, models or sessions.

This folder alone knows the protobuf layout. Whatever arrives is checked for
form here; what depends on a model (id < V, positions, span limits) is checked by the session.
Malformed requests raise InvalidDraft or InvalidRequest, malformed responses raise CiarError.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from shared.decoding.scales import VERDICTS
from shared.errors import CiarError, InvalidDraft, InvalidPrompt, InvalidRequest
from shared.messages import Draft, Finish, Open, Opened, Usage, Verdict
from shared.wire import continuous, failures, latents, settings, tensors
from shared.wire.pb import ciar_pb2 as pb

PROTOCOL_VERSION = 1
UnreadableFrame = DecodeError  # what parsing raises for bytes that are no frame; callers know no protobuf

# ---- requests: device -> cloud


def encode_open(message: Open) -> pb.GenerateRequest:
    """The first frame of a stream; InvalidRequest or InvalidPrompt for what no frame can carry."""
    if not 0 <= message.seed < 2**64:
        raise InvalidRequest(f"seed {message.seed} is not allowed", "a seed is 0 .. 2**64 - 1")
    if any("\ud800" <= char <= "\udfff" for char in message.prompt):
        raise InvalidPrompt(f"the prompt {message.prompt!r} is not Unicode text", "it holds a lone surrogate")
    return pb.GenerateRequest(
        open=pb.Open(
            model=message.model,
            cloud_digest=message.cloud_digest,
            codebook_size=message.codebook_size,
            prompt=message.prompt,
            seed=message.seed,
            warp=settings.encode_warp(message.warp),
            prefix_tokens=message.prefix_tokens,
            acceptance=message.acceptance,
            resume=tensors.encode_tokens(message.resume, by_scale=message.acceptance in VERDICTS),
            resume_features=tensors.encode_features(message.resume_features),
            guesses=message.guesses,
            max_forwards=message.max_forwards,
            relaxation=settings.encode_relaxation(message.relaxation),
            alone=message.alone,
            window=message.window,
            sampling=latents.encode_sampling(message.sampling),
            masking=continuous.encode_masking(message.masking),
            resume_values=tensors.encode_matrix(message.resume_values),
        )
    )


def encode_draft(message: Draft) -> pb.GenerateRequest:
    """One round."""
    by_scale = message.bad is not None
    return pb.GenerateRequest(
        draft=pb.Draft(
            round=message.round,
            base=message.base,
            span=tensors.encode_tokens(message.span, by_scale=by_scale),
            catch_up=tensors.encode_tokens(message.catch_up, by_scale=by_scale),
            features=tensors.encode_features(message.features),
            proposal=tensors.encode_proposal(message.proposal),
            behind=message.behind,
            parents=tensors.encode_tokens(message.parents),
            bad=tensors.encode_bad(message.bad),
            steps=latents.encode_steps(message.steps),
            continuous=continuous.encode_span(message.continuous),
        )
    )


def encode_finish(_: Finish) -> pb.GenerateRequest:
    """The last frame of a stream."""
    return pb.GenerateRequest(finish=pb.Finish())


def decode_request(frame: pb.GenerateRequest) -> Open | Draft | Finish:
    """The message in a frame. Raises InvalidDraft for a malformed Draft, InvalidRequest for any other."""
    match frame.WhichOneof("frame"):
        case "open":
            return _decode_open(frame.open)
        case "draft":
            return _decode_draft(frame.draft)
        case "finish":
            return Finish()
        case _:
            raise InvalidRequest("the frame is empty or unknown", "a frame is one of open, draft, finish")


def _decode_open(message: pb.Open) -> Open:
    resume = tensors.decode_tokens(message, "resume", InvalidRequest)
    return Open(
        model=message.model,
        cloud_digest=message.cloud_digest,
        codebook_size=message.codebook_size,
        prompt=message.prompt,
        seed=message.seed,
        warp=settings.decode_warp(message),
        prefix_tokens=message.prefix_tokens,
        acceptance=message.acceptance,
        resume=resume,
        resume_features=tensors.decode_features(message, "resume_features", len(resume), InvalidRequest),
        guesses=message.guesses,
        max_forwards=message.max_forwards,
        relaxation=settings.decode_relaxation(message),
        alone=message.alone,
        window=message.window,
        sampling=latents.decode_sampling(message),
        masking=continuous.decode_masking(message),
        resume_values=continuous.decode_values(message, "resume_values", InvalidRequest),
    )


def _decode_draft(message: pb.Draft) -> Draft:
    span = tensors.decode_tokens(message, "span", InvalidDraft)
    steps, drafted = latents.decode_steps(message), continuous.decode_span(message)
    if not len(span) and steps is None and drafted is None:
        raise InvalidDraft("the span has 0 tokens", "a draft needs at least 1")
    catch_up = tensors.decode_tokens(message, "catch_up", InvalidDraft)
    return Draft(
        round=message.round,
        base=message.base,
        span=span,
        catch_up=catch_up,
        features=tensors.decode_features(message, "features", len(catch_up), InvalidDraft),
        proposal=tensors.decode_proposal(message, len(span)),
        behind=message.behind if message.HasField("behind") else None,
        parents=tensors.decode_tokens(message, "parents", InvalidDraft),
        bad=tensors.decode_bad(message, len(span)) if message.bad else None,
        steps=steps,
        continuous=drafted,
    )


# ---- responses: cloud -> device


def encode_response(message: Opened | Verdict | Usage | CiarError) -> pb.GenerateResponse:
    """The frame of a message or an error; an error class without a code travels as its nearest base."""
    match message:
        case Opened():
            return pb.GenerateResponse(opened=_encode_opened(message))
        case Verdict():
            return pb.GenerateResponse(verdict=_encode_verdict(message))
        case Usage():
            return pb.GenerateResponse(usage=_encode_usage(message))
        case CiarError():
            return pb.GenerateResponse(error=failures.encode_error(message))


def read_response(data: bytes) -> Opened | Verdict | Usage:
    """The message in the bytes of a frame. Raises like `decode_response`, and CiarError for no frame."""
    try:
        return decode_response(pb.GenerateResponse.FromString(data))
    except DecodeError:
        raise CiarError("the bytes from the cloud are no frame") from None


def decode_response(frame: pb.GenerateResponse) -> Opened | Verdict | Usage:
    """The message in a frame. Raises the error an Error frame names, and CiarError for a malformed frame."""
    match frame.WhichOneof("frame"):
        case "opened":
            return _decode_opened(frame.opened)
        case "verdict":
            return _decode_verdict(frame.verdict)
        case "usage":
            return _decode_usage(frame.usage)
        case "error":
            raise failures.decode_error(frame.error)
        case _:
            raise CiarError(
                "the frame from the cloud is empty or unknown",
                "a frame is one of opened, verdict, usage, error",
                f"check that the server speaks protocol version {PROTOCOL_VERSION}",
            )


def _encode_opened(message: Opened) -> pb.Opened:
    return pb.Opened(
        session=message.session,
        image_tokens=message.image_tokens,
        prefix=tensors.encode_tokens(message.prefix, by_scale=message.by_scale),
        cloud_forwards=message.cloud_forwards,
        cloud_us=_microseconds(message.cloud_s),
        output=latents.encode_output(message.output),
        values=tensors.encode_matrix(message.values),
    )


def _decode_opened(message: pb.Opened) -> Opened:
    return Opened(
        session=message.session,
        image_tokens=message.image_tokens,
        prefix=tensors.decode_tokens(message, "prefix", CiarError),
        cloud_forwards=message.cloud_forwards,
        cloud_s=message.cloud_us / 1e6,
        output=latents.decode_output(message),
        values=continuous.decode_values(message, "values", CiarError),
    )


def _encode_verdict(message: Verdict) -> pb.Verdict:
    return pb.Verdict(
        round=message.round,
        accepted=message.accepted,
        token=message.token,
        cloud_us=_microseconds(message.cloud_s),
        more=tensors.encode_tokens(message.more),
        guesses=tensors.encode_tokens(message.guesses),
        cloud_forwards=None if message.cloud_forwards == 1 else message.cloud_forwards,
        stale=message.stale,
        path=tensors.encode_tokens(message.path),
        patch=tensors.encode_patch(message.patch),
        output=latents.encode_output(message.output),
        kept=continuous.encode_kept(message.kept),
    )


def _decode_verdict(message: pb.Verdict) -> Verdict:
    return Verdict(
        round=message.round,
        accepted=message.accepted,
        token=message.token if message.HasField("token") else None,
        cloud_s=message.cloud_us / 1e6,
        more=tensors.decode_tokens(message, "more", CiarError),
        guesses=tensors.decode_tokens(message, "guesses", CiarError),
        cloud_forwards=message.cloud_forwards if message.HasField("cloud_forwards") else 1,
        stale=message.stale,
        path=tensors.decode_tokens(message, "path", CiarError),
        patch=tensors.decode_patch(message),
        output=latents.decode_output(message),
        kept=continuous.decode_kept(message),
    )


def _encode_usage(message: Usage) -> pb.Usage:
    return pb.Usage(
        cloud_forwards=message.cloud_forwards,
        rounds=message.rounds,
        judged=message.judged,
        accepted=message.accepted,
        cloud_us=_microseconds(message.cloud_s),
    )


def _decode_usage(message: pb.Usage) -> Usage:
    return Usage(
        cloud_forwards=message.cloud_forwards,
        rounds=message.rounds,
        judged=message.judged,
        accepted=message.accepted,
        cloud_s=message.cloud_us / 1e6,
    )


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


# ---- GetInfo
