"""The rounds of one image as a list: when each was answered, what was sent, what stood. Values only.

Read off successive snapshots of the counters, so it holds for whatever the loop does between two of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_client.progress import Counters


@dataclass(frozen=True)
class Round:
    """One answer of the cloud, or several where a snapshot saw them together.

    number    of the last answer in it, from 1; 0 is the opening, which brings the prefix
    at_s      when the answer was there, seconds after the start
    wait_s    how long it was waited for, of which
    cloud_s   the cloud's model worked
    kept      tokens the device kept since the last round
    judged    tokens sent for judgement, of which
    accepted  were accepted
    """

    number: int
    at_s: float
    wait_s: float
    cloud_s: float
    kept: int
    judged: int
    accepted: int


class Timeline:
    """Grows with every snapshot of one image."""

    def __init__(self) -> None:
        self.rounds: list[Round] = []
        self._last: Counters | None = None

    def add(self, now: Counters) -> None:
        """Take in the next snapshot; without a new answer nothing changes."""
        before = self._last or Counters(now.image_tokens)
        if now.cloud_forwards == before.cloud_forwards and now.rounds == before.rounds:
            return
        self._last = now
        self.rounds.append(
            Round(
                number=now.rounds,
                at_s=round(now.total_s, 4),
                wait_s=round(now.wait_s - before.wait_s, 4),
                cloud_s=round(now.cloud_s - before.cloud_s, 4),
                kept=now.kept - before.kept,
                judged=now.judged - before.judged,
                accepted=now.accepted - before.accepted,
            )
        )
