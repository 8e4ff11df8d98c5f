"""What the algorithm asks of the other side: one image to draw, one cloud to ask. Knows no gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shared.decoding.warp import Warp
from shared.messages import Draft, Open, Opened, Usage, Verdict


@dataclass(frozen=True)
class Request:
    """What to draw: one image per (prompt, seed, warp)."""

    prompt: str
    seed: int  # 0 <= seed < 2**64
    warp: Warp


class Cloud(Protocol):
    """The other side of one image. Every method may raise CiarError; lost connections are its own affair."""

    @property
    def bytes_up(self) -> int:
        """Bytes sent since it exists."""

    @property
    def bytes_down(self) -> int:
        """Bytes received since it exists."""

    @property
    def resumes(self) -> int:
        """Sessions rebuilt after a loss since it exists."""

    @property
    def answered(self) -> bool:
        """Whether `receive` would return at once."""

    async def open(self, order: Open) -> Opened:
        """Begin one image."""

    async def send(self, draft: Draft) -> None:
        """Send one round; pipelined ones may follow before its verdict."""

    async def receive(self) -> Verdict:
        """The verdict on the oldest round under way; drafts it makes void are forgotten on both sides."""

    async def finish(self) -> Usage:
        """End the image, complete or not."""
