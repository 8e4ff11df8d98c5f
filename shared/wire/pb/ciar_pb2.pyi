from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_CODE_UNSPECIFIED: _ClassVar[ErrorCode]
    ERROR_CODE_INTERNAL: _ClassVar[ErrorCode]
    ERROR_CODE_INVALID_REQUEST: _ClassVar[ErrorCode]
    ERROR_CODE_INVALID_PROMPT: _ClassVar[ErrorCode]
    ERROR_CODE_INVALID_DRAFT: _ClassVar[ErrorCode]
    ERROR_CODE_MODEL_UNAVAILABLE: _ClassVar[ErrorCode]
    ERROR_CODE_MODEL_MISMATCH: _ClassVar[ErrorCode]
    ERROR_CODE_OVERLOADED: _ClassVar[ErrorCode]
    ERROR_CODE_SESSION_LOST: _ClassVar[ErrorCode]
    ERROR_CODE_CLOUD_UNREACHABLE: _ClassVar[ErrorCode]

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_UINT16: _ClassVar[Dtype]
    DTYPE_INT32: _ClassVar[Dtype]
    DTYPE_INT8: _ClassVar[Dtype]
    DTYPE_FLOAT16: _ClassVar[Dtype]
    DTYPE_UINT12: _ClassVar[Dtype]
    DTYPE_FLOAT32: _ClassVar[Dtype]
ERROR_CODE_UNSPECIFIED: ErrorCode
ERROR_CODE_INTERNAL: ErrorCode
ERROR_CODE_INVALID_REQUEST: ErrorCode
ERROR_CODE_INVALID_PROMPT: ErrorCode
ERROR_CODE_INVALID_DRAFT: ErrorCode
ERROR_CODE_MODEL_UNAVAILABLE: ErrorCode
ERROR_CODE_MODEL_MISMATCH: ErrorCode
ERROR_CODE_OVERLOADED: ErrorCode
ERROR_CODE_SESSION_LOST: ErrorCode
ERROR_CODE_CLOUD_UNREACHABLE: ErrorCode
DTYPE_UNSPECIFIED: Dtype
DTYPE_UINT16: Dtype
DTYPE_INT32: Dtype
DTYPE_INT8: Dtype
DTYPE_FLOAT16: Dtype
DTYPE_UINT12: Dtype
DTYPE_FLOAT32: Dtype

class GenerateRequest(_message.Message):
    __slots__ = ("open", "draft", "finish")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    open: Open
    draft: Draft
    finish: Finish
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., draft: _Optional[_Union[Draft, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("opened", "verdict", "usage", "error")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    verdict: Verdict
    usage: Usage
    error: Error
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("model", "cloud_digest", "codebook_size", "prompt", "seed", "warp", "prefix_tokens", "acceptance", "resume", "resume_features", "guesses", "echoes", "max_forwards", "alone", "window", "relaxation", "sampling", "masking", "resume_values")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CLOUD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CODEBOOK_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    WARP_FIELD_NUMBER: _ClassVar[int]
    PREFIX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    RESUME_FEATURES_FIELD_NUMBER: _ClassVar[int]
    GUESSES_FIELD_NUMBER: _ClassVar[int]
    ECHOES_FIELD_NUMBER: _ClassVar[int]
    MAX_FORWARDS_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    RELAXATION_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MASKING_FIELD_NUMBER: _ClassVar[int]
    RESUME_VALUES_FIELD_NUMBER: _ClassVar[int]
    model: str
    cloud_digest: str
    codebook_size: int
    prompt: str
    seed: int
    warp: Warp
    prefix_tokens: int
    acceptance: str
    resume: Tensor
    resume_features: Features
    guesses: bool
    echoes: bool
    max_forwards: int
    alone: str
    window: int
    relaxation: Relaxation
    sampling: Sampling
    masking: Masking
    resume_values: Tensor
    def __init__(self, model: _Optional[str] = ..., cloud_digest: _Optional[str] = ..., codebook_size: _Optional[int] = ..., prompt: _Optional[str] = ..., seed: _Optional[int] = ..., warp: _Optional[_Union[Warp, _Mapping]] = ..., prefix_tokens: _Optional[int] = ..., acceptance: _Optional[str] = ..., resume: _Optional[_Union[Tensor, _Mapping]] = ..., resume_features: _Optional[_Union[Features, _Mapping]] = ..., guesses: _Optional[bool] = ..., echoes: _Optional[bool] = ..., max_forwards: _Optional[int] = ..., alone: _Optional[str] = ..., window: _Optional[int] = ..., relaxation: _Optional[_Union[Relaxation, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., masking: _Optional[_Union[Masking, _Mapping]] = ..., resume_values: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("sampler", "spacing", "dtype", "projection")
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    SPACING_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    sampler: str
    spacing: str
    dtype: Dtype
    projection: str
    def __init__(self, sampler: _Optional[str] = ..., spacing: _Optional[str] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., projection: _Optional[str] = ...) -> None: ...

class Masking(_message.Message):
    __slots__ = ("steps", "head_steps", "schedule", "tolerance", "clip")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    HEAD_STEPS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    steps: int
    head_steps: int
    schedule: str
    tolerance: float
    clip: float
    def __init__(self, steps: _Optional[int] = ..., head_steps: _Optional[int] = ..., schedule: _Optional[str] = ..., tolerance: _Optional[float] = ..., clip: _Optional[float] = ...) -> None: ...

class Relaxation(_message.Message):
    __slots__ = ("k", "delta", "multiple")
    K_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    k: int
    delta: float
    multiple: float
    def __init__(self, k: _Optional[int] = ..., delta: _Optional[float] = ..., multiple: _Optional[float] = ...) -> None: ...

class Warp(_message.Message):
    __slots__ = ("guidance", "temperature", "top_k", "top_p")
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    guidance: float
    temperature: float
    top_k: int
    top_p: float
    def __init__(self, guidance: _Optional[float] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ...) -> None: ...

class Draft(_message.Message):
    __slots__ = ("round", "base", "span", "catch_up", "features", "proposal", "behind", "echoes", "parents", "bad", "steps", "continuous")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    SPAN_FIELD_NUMBER: _ClassVar[int]
    CATCH_UP_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    ECHOES_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    BAD_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CONTINUOUS_FIELD_NUMBER: _ClassVar[int]
    round: int
    base: int
    span: Tensor
    catch_up: Tensor
    features: Features
    proposal: Proposal
    behind: int
    echoes: bytes
    parents: Tensor
    bad: bytes
    steps: Steps
    continuous: Continuous
    def __init__(self, round: _Optional[int] = ..., base: _Optional[int] = ..., span: _Optional[_Union[Tensor, _Mapping]] = ..., catch_up: _Optional[_Union[Tensor, _Mapping]] = ..., features: _Optional[_Union[Features, _Mapping]] = ..., proposal: _Optional[_Union[Proposal, _Mapping]] = ..., behind: _Optional[int] = ..., echoes: _Optional[bytes] = ..., parents: _Optional[_Union[Tensor, _Mapping]] = ..., bad: _Optional[bytes] = ..., steps: _Optional[_Union[Steps, _Mapping]] = ..., continuous: _Optional[_Union[Continuous, _Mapping]] = ...) -> None: ...

class Steps(_message.Message):
    __slots__ = ("count", "state")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    count: int
    state: Tensor
    def __init__(self, count: _Optional[int] = ..., state: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Continuous(_message.Message):
    __slots__ = ("values", "conditions", "log_std", "log_std_before")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    LOG_STD_FIELD_NUMBER: _ClassVar[int]
    LOG_STD_BEFORE_FIELD_NUMBER: _ClassVar[int]
    values: Tensor
    conditions: Tensor
    log_std: Tensor
    log_std_before: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Union[Tensor, _Mapping]] = ..., conditions: _Optional[_Union[Tensor, _Mapping]] = ..., log_std: _Optional[_Union[Tensor, _Mapping]] = ..., log_std_before: _Optional[_Iterable[float]] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Opened(_message.Message):
    __slots__ = ("session", "image_tokens", "prefix", "cloud_forwards", "cloud_us", "echoes", "output", "values")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    CLOUD_FORWARDS_FIELD_NUMBER: _ClassVar[int]
    CLOUD_US_FIELD_NUMBER: _ClassVar[int]
    ECHOES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    session: str
    image_tokens: int
    prefix: Tensor
    cloud_forwards: int
    cloud_us: int
    echoes: bool
    output: Output
    values: Tensor
    def __init__(self, session: _Optional[str] = ..., image_tokens: _Optional[int] = ..., prefix: _Optional[_Union[Tensor, _Mapping]] = ..., cloud_forwards: _Optional[int] = ..., cloud_us: _Optional[int] = ..., echoes: _Optional[bool] = ..., output: _Optional[_Union[Output, _Mapping]] = ..., values: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("noise", "spread", "features", "state")
    NOISE_FIELD_NUMBER: _ClassVar[int]
    SPREAD_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    noise: Tensor
    spread: Tensor
    features: Tensor
    state: Tensor
    def __init__(self, noise: _Optional[_Union[Tensor, _Mapping]] = ..., spread: _Optional[_Union[Tensor, _Mapping]] = ..., features: _Optional[_Union[Tensor, _Mapping]] = ..., state: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("round", "accepted", "token", "cloud_us", "more", "guesses", "cloud_forwards", "echoes", "stale", "path", "patch", "output", "kept")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CLOUD_US_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    GUESSES_FIELD_NUMBER: _ClassVar[int]
    CLOUD_FORWARDS_FIELD_NUMBER: _ClassVar[int]
    ECHOES_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PATCH_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    round: int
    accepted: int
    token: int
    cloud_us: int
    more: Tensor
    guesses: Tensor
    cloud_forwards: int
    echoes: bytes
    stale: bool
    path: Tensor
    patch: Patch
    output: Output
    kept: Kept
    def __init__(self, round: _Optional[int] = ..., accepted: _Optional[int] = ..., token: _Optional[int] = ..., cloud_us: _Optional[int] = ..., more: _Optional[_Union[Tensor, _Mapping]] = ..., guesses: _Optional[_Union[Tensor, _Mapping]] = ..., cloud_forwards: _Optional[int] = ..., echoes: _Optional[bytes] = ..., stale: _Optional[bool] = ..., path: _Optional[_Union[Tensor, _Mapping]] = ..., patch: _Optional[_Union[Patch, _Mapping]] = ..., output: _Optional[_Union[Output, _Mapping]] = ..., kept: _Optional[_Union[Kept, _Mapping]] = ...) -> None: ...

class Kept(_message.Message):
    __slots__ = ("stands", "values", "judged")
    STANDS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    JUDGED_FIELD_NUMBER: _ClassVar[int]
    stands: bytes
    values: Tensor
    judged: int
    def __init__(self, stands: _Optional[bytes] = ..., values: _Optional[_Union[Tensor, _Mapping]] = ..., judged: _Optional[int] = ...) -> None: ...

class Patch(_message.Message):
    __slots__ = ("places", "tokens")
    PLACES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    places: Tensor
    tokens: Tensor
    def __init__(self, places: _Optional[_Union[Tensor, _Mapping]] = ..., tokens: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("cloud_forwards", "rounds", "judged", "accepted", "cloud_us")
    CLOUD_FORWARDS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    JUDGED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    CLOUD_US_FIELD_NUMBER: _ClassVar[int]
    cloud_forwards: int
    rounds: int
    judged: int
    accepted: int
    cloud_us: int
    def __init__(self, cloud_forwards: _Optional[int] = ..., rounds: _Optional[int] = ..., judged: _Optional[int] = ..., accepted: _Optional[int] = ..., cloud_us: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "what", "why", "next_step", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: ErrorCode
    what: str
    why: str
    next_step: str
    retry_after_ms: int
    def __init__(self, code: _Optional[_Union[ErrorCode, str]] = ..., what: _Optional[str] = ..., why: _Optional[str] = ..., next_step: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: Dtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[_Union[Dtype, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Features(_message.Message):
    __slots__ = ("index", "codes", "scale")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    index: Tensor
    codes: Tensor
    scale: Tensor
    def __init__(self, index: _Optional[_Union[Tensor, _Mapping]] = ..., codes: _Optional[_Union[Tensor, _Mapping]] = ..., scale: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("ids", "probabilities")
    IDS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    ids: Tensor
    probabilities: Tensor
    def __init__(self, ids: _Optional[_Union[Tensor, _Mapping]] = ..., probabilities: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetInfoResponse(_message.Message):
    __slots__ = ("protocol_version", "models", "max_prompt_chars", "max_span_tokens", "max_sessions", "max_message_bytes")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_CHARS_FIELD_NUMBER: _ClassVar[int]
    MAX_SPAN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    max_prompt_chars: int
    max_span_tokens: int
    max_sessions: int
    max_message_bytes: int
    def __init__(self, protocol_version: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ..., max_prompt_chars: _Optional[int] = ..., max_span_tokens: _Optional[int] = ..., max_sessions: _Optional[int] = ..., max_message_bytes: _Optional[int] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "digest", "codebook_size", "image_tokens", "feature_width", "scales", "latent", "token_width")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CODEBOOK_SIZE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FEATURE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_WIDTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    codebook_size: int
    image_tokens: int
    feature_width: int
    scales: _containers.RepeatedScalarFieldContainer[int]
    latent: _containers.RepeatedScalarFieldContainer[int]
    token_width: int
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., codebook_size: _Optional[int] = ..., image_tokens: _Optional[int] = ..., feature_width: _Optional[int] = ..., scales: _Optional[_Iterable[int]] = ..., latent: _Optional[_Iterable[int]] = ..., token_width: _Optional[int] = ...) -> None: ...
