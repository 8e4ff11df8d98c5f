"""An image in the making, seen from outside: its tokens, who decided each, what it cost. Values only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import IntEnum


class Source(IntEnum):
    """Who decided a token."""

    PREFIX = 0  # drawn by the cloud before the first draft
    KEPT = 1  # drawn by the device, never judged
    VERIFIED = 2  # drafted by the device, accepted by the cloud
    CORRECTED = 3  # drawn by the cloud in place of a rejected draft
    BONUS = 4  # drawn by the cloud behind a span accepted whole, or further behind its correction


@dataclass(frozen=True)
class Counters:
    """The counters of SPEC section 8 for one image so far; durations in seconds, sizes in bytes on the wire.

    `cloud_forwards` are those of the prefix and of the answered rounds. Rounds that became void under way are
    in `tokens_up`, in the bytes and in `device_s` alone. Counting ends with the last token: the frames that
    close the session are not in it. What a replay costs the cloud, `resumes` alone tells.
    """

    image_tokens: int  # T
    cloud_forwards: int = 0
    rounds: int = 0
    tokens_up: int = 0  # catch-up and span tokens sent in drafts
    bytes_up: int = 0
    bytes_down: int = 0
    kept: int = 0
    judged: int = 0
    accepted: int = 0
    resumes: int = 0
    device_s: float = 0.0  # computing on the device
    cloud_s: float = 0.0  # model time, as the cloud reports it
    wait_s: float = 0.0  # from asking to having the answer
    total_s: float = 0.0

    @property
    def call_rate(self) -> float:
        """Cloud forwards per token of the whole image."""
        return self.cloud_forwards / self.image_tokens

    @property
    def steps(self) -> float:
        """Tokens per cloud forward; 0 where there was none."""
        return self.image_tokens / self.cloud_forwards if self.cloud_forwards else 0.0

    @property
    def local_rate(self) -> float:
        """Share of tokens the device kept unjudged."""
        return self.kept / self.image_tokens

    @property
    def acceptance_rate(self) -> float:
        """Accepted per judged token; 0 where none was judged."""
        return self.accepted / self.judged if self.judged else 0.0

    @property
    def comm_share(self) -> float:
        """Share of the time spent waiting for anything but the cloud's model; 0 where pipelining hid that."""
        return max(self.wait_s - self.cloud_s, 0.0) / self.total_s if self.total_s else 0.0

    def as_dict(self) -> dict[str, float]:
        """All raw and derived counters by name."""
        derived = ("call_rate", "steps", "local_rate", "acceptance_rate", "comm_share")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


@dataclass(frozen=True)
class Trip:
    """One round's way through time, for a waterfall: seconds since the image began, or spent.

    `arrived_s` is None for a round that became void under way; nobody judged it. Else the cloud accepted
    `accepted` of the `drafted` span tokens and added `drawn` of its own.
    """

    round: int
    drafted: int
    device_s: float  # spent drawing it
    sent_s: float
    arrived_s: float | None
    accepted: int = 0
    drawn: int = 0
    cloud_forwards: int = 0
    cloud_s: float = 0.0  # spent judging it


@dataclass(frozen=True)
class Progress:
    """The image so far; tokens, sources and scores are equally long, T at the end.

    `scores` holds the gate's score where the device scored the position, None elsewhere and where no finite
    score exists (gates "always" and "never", a single id left by the warp). `done`: this is the last one.
    """

    tokens: tuple[int, ...]
    sources: tuple[Source, ...]
    scores: tuple[float | None, ...]
    counters: Counters
    done: bool
    trips: tuple[Trip, ...] = ()  # the rounds that are over, void ones behind the one that ended them
