"""The values that travel between device and cloud, as frozen dataclasses. Knows nothing of protobuf or gRPC.

Positions count image tokens from 0. `T` is the number of image tokens, `V` the codebook size, `d_f` the
feature width. Token arrays are int32 NumPy vectors; arrays are compared by identity, so these values are not
hashable by content.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from shared.continuous import Continuous, Kept, Masking, Values
from shared.decoding.acceptance import Relaxation
from shared.decoding.warp import Warp

Tokens = NDArray[np.int32]
Marks = NDArray[np.bool_]
Latent = NDArray[np.float16] | NDArray[np.float32]  # of a model by steps; its dtype is that of the order
MAX_FORWARDS = 8  # runs of the cloud model that one draft may cost
ALONE = ("", "jacobi", "sjd", "rows")  # how the cloud draws by itself; "": one token a run


def no_tokens() -> Tokens:
    """An empty token vector."""
    return np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, eq=False)
class Features:
    """Interval features (SPEC eq. 5) of some of the tokens they travel with: value = codes * scale.

    index  uint16 [n]       places in the accompanying token vector, strictly ascending
    codes  int8   [n, d_f]
    scale  float16 [n]      one scale per feature
    """

    index: NDArray[np.uint16]
    codes: NDArray[np.int8]
    scale: NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Proposal:
    """The sparse warped q each span token was sampled from; only `rejection` acceptance needs it.

    ids            int32   [K, k]   codebook ids, distinct within a row
    probabilities  float16 [K, k]   each row sums to one within rounding
    """

    ids: NDArray[np.int32]
    probabilities: NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Patch:
    """Tokens that stand instead of a scale's own: int32 [n] each, places in the span ascending."""

    places: Tokens
    tokens: Tokens


@dataclass(frozen=True)
class Sampling:
    """How an image of a model by steps is denoised.

    sampler     a name in shared.decoding.denoising.SAMPLERS
    spacing     which of the original steps are kept, as shared.decoding.diffusion.spaced takes it
    precision   "fp16" or "fp32": of every latent that travels; both sides go on from the rounded values
    projection  digest of the device's projection of the cloud's hidden state; "": outputs without features
    """

    sampler: str
    spacing: str
    precision: str
    projection: str = ""


@dataclass(frozen=True, eq=False)
class Steps:
    """What a draft asks of a model by steps: so many steps from its base on, where the latent
    [C, H, W] is `state`.

    known  the cloud's own latent is that very state: it need not travel
    """

    count: int
    state: Latent | None
    known: bool = False


@dataclass(frozen=True, eq=False)
class Output:
    """What a model by steps said at the last of some steps: the guided noise [C, H, W] and, where they were
    asked for, the place of the variance [C, H, W], features fp16 [N, d_f], and the latent it looked at."""

    noise: Latent
    spread: Latent | None = None
    features: NDArray[np.float16] | None = None
    state: Latent | None = None


@dataclass(frozen=True, eq=False)
class Open:
    """Device -> cloud: begin (or resume) one image.

    With `resume` empty the cloud draws `prefix_tokens` tokens itself (prefix injection) and returns them in
    Opened. With `resume` set the device already owns that many tokens; the cloud draws only what is missing
    of the prefix. `max_forwards` is how often the cloud may run for one draft (0, 1: once): after a rejection
    it then judges its own guesses.
    """

    model: str
    cloud_digest: str  # digest of the cloud weights this device was trained for
    codebook_size: int  # V
    prompt: str
    seed: int  # 0 <= seed < 2**64
    warp: Warp
    prefix_tokens: int  # m = floor(rho * T)
    acceptance: str  # a name in shared.decoding.acceptance.RULES
    resume: Tokens = field(default_factory=no_tokens)
    resume_features: Features | None = None
    guesses: bool = False  # verdicts shall carry them
    max_forwards: int = 1  # 0 .. MAX_FORWARDS
    relaxation: Relaxation | None = None  # of `relaxed` acceptance; None for any other
    alone: str = ""  # one of ALONE: how the cloud draws the prefix
    window: int = 0  # of `alone`: tokens per run, or columns a row is behind the one above it
    sampling: Sampling | None = None  # of a model by steps; None for any other
    masking: Masking | None = None  # of a model of continuous tokens; None for any other
    resume_values: Values | None = None  # its `resume`

    @property
    def owned(self) -> int:
        """Tokens that the device has already."""
        return len(self.resume) if self.resume_values is None else len(self.resume_values)


@dataclass(frozen=True, eq=False)
class Opened:
    """Cloud -> device: the session exists; `prefix` holds the tokens drawn by the cloud after `resume`."""

    session: str
    image_tokens: int  # T
    prefix: Tokens
    cloud_forwards: int  # spent on the prefix
    cloud_s: float  # seconds of model time spent on the prefix
    by_scale: bool = False  # the model draws scale by scale: tokens may travel packed
    output: Output | None = None  # of a model by steps: at the last step of the prefix
    values: Values | None = None  # of a model of continuous tokens: what `prefix` is to others


@dataclass(frozen=True, eq=False)
class Draft:
    """Device -> cloud: one round.

    base      tokens the cloud has committed so far, its own last correction or bonus included
    catch_up  tokens the device kept by itself since `base`
    features  interval features of some catch-up tokens (None: plain embeddings)
    span      K >= 1 drafted tokens to judge, at positions base + len(catch_up) ...
    behind    pipelined: drawn before the verdict on that round was known. catch_up[0], which has no feature,
              stands for the bonus of that round, and `base` is its place
    parents   of a tree: node i of the span hangs from node parents[i] - 1, or from the token before the span
              where that is 0; parents come before children. Empty: the span is a chain
    bad       of a model by scales, whose span is one scale: places the device doubts, [K]; None for any other
    steps     of a model by steps, whose span is empty and whose base counts steps; None for any other
    continuous  of a model of continuous tokens, whose span is empty; None for any other
    """

    round: int
    base: int
    span: Tokens
    catch_up: Tokens = field(default_factory=no_tokens)
    features: Features | None = None
    proposal: Proposal | None = None
    behind: int | None = None
    parents: Tokens = field(default_factory=no_tokens)
    bad: Marks | None = None
    steps: Steps | None = None
    continuous: Continuous | None = None

    @property
    def drafted(self) -> int:
        """Tokens to judge."""
        return len(self.span) if self.continuous is None else len(self.continuous)

    def settled(self) -> Draft:
        """A pipelined draft once its bonus has come as assumed: an ordinary one that begins a token later."""
        features = self.features and replace(self.features, index=self.features.index - np.uint16(1))
        return replace(self, base=self.base + 1, catch_up=self.catch_up[1:], features=features, behind=None)

    def values(self, verdict: Verdict) -> Values:
        """The continuous tokens [n, C] that a verdict on this draft lets stand, the cloud's own included."""
        assert self.continuous is not None and verdict.kept is not None
        if self.continuous.values is None:
            return verdict.kept.values
        out = self.continuous.values.copy()
        if len(verdict.kept.values):
            out[~verdict.kept.stands] = verdict.kept.values
        return out

    def standing(self, verdict: Verdict) -> Tokens:
        """The span tokens that a verdict on this draft lets stand, patched where it says so."""
        if verdict.patch is not None:
            patched = self.span.copy()
            patched[verdict.patch.places] = verdict.patch.tokens
            return patched
        return self.span[verdict.path] if len(self.parents) else self.span[: verdict.accepted]


@dataclass(frozen=True, eq=False)
class Verdict:
    """Cloud -> device: span[:accepted] stands; `token` follows it (correction, or bonus when all was
    accepted), and `more` follows that.

    token    None only when the accepted span ends the image, and where the draft was stale
    more     drawn and verified by the cloud behind its correction, with forwards of its own
    guesses  the cloud's unverified draws for the places behind all that, a rejected token before them
    stale    a pipelined draft whose assumption failed: nothing was judged, nothing was spent
    path     of a tree: its nodes that stand, from the root on; there are `accepted` of them
    patch    of a model by scales: `accepted` counts the span tokens outside of it; None for any other model
    output   of a model by steps: what it said at the last step asked about; None for any other model
    kept     of a model of continuous tokens, where `accepted` counts what stands; None for any other model
    """

    round: int
    accepted: int
    token: int | None
    cloud_s: float  # seconds of model time this round spent
    more: Tokens = field(default_factory=no_tokens)
    guesses: Tokens = field(default_factory=no_tokens)
    cloud_forwards: int = 1
    stale: bool = False
    path: Tokens = field(default_factory=no_tokens)
    patch: Patch | None = None
    output: Output | None = None
    kept: Kept | None = None

    @property
    def drawn(self) -> list[int]:
        """What the cloud itself adds to the image: `token`, if any, and `more`."""
        return [] if self.token is None else [self.token, *self.more.tolist()]


@dataclass(frozen=True)
class Finish:
    """Device -> cloud: the image is complete (or given up); answer with Usage and free the session."""


@dataclass(frozen=True)
class Usage:
    """Cloud -> device: what the session cost, counted by the cloud (SPEC section 8)."""

    cloud_forwards: int
    rounds: int
    judged: int
    accepted: int
    cloud_s: float


@dataclass(frozen=True)
class ModelInfo:
    """One served model, as GetInfo reports it."""

    name: str
    digest: str
    codebook_size: int  # V
    image_tokens: int  # T
    feature_width: int  # d_f
    scales: tuple[int, ...] = ()  # side of each map of a model by scales
    latent: tuple[int, ...] = ()  # C, H, W of a model by steps
    token_width: int = 0  # C of a model of continuous tokens


@dataclass(frozen=True)
class ServerInfo:
    """GetInfo's answer."""

    protocol_version: int
    models: tuple[ModelInfo, ...]
    max_prompt_chars: int
    max_span_tokens: int
    max_sessions: int
    max_message_bytes: int
