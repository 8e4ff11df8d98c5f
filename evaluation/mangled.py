"""Links that send what no honest device sends: every round twice, or one without its last byte."""

from __future__ import annotations

from typing import Any

from device_client.link import CloudLink
from evaluation.stages import ROUND
from shared.errors import CiarError
from shared.messages import Verdict


class Doubling(CloudLink):
    """Every draft is written twice; its verdict must come twice and be the same."""

    async def _write(self, frame: Any, deadline_s: float) -> None:  # noqa: ANN401 - protobuf stays the link's
        for _ in range(2 if frame.HasField("draft") else 1):
            await super()._write(frame, deadline_s)

    async def _next_verdict(self) -> Verdict:
        first, second = await super()._next_verdict(), await super()._next_verdict()
        if said(first) != said(second):
            raise CiarError(f"round {first.round} has two verdicts", f"{said(first)} and {said(second)}")
        return first


class Clipping(CloudLink):
    """The span of one draft lacks its last byte."""

    async def _write(self, frame: Any, deadline_s: float) -> None:  # noqa: ANN401 - protobuf stays the link's
        if frame.HasField("draft") and frame.draft.round == ROUND:
            frame.draft.span.data = frame.draft.span.data[:-1]
        await super()._write(frame, deadline_s)


def said(verdict: Verdict) -> tuple[int, int, tuple[int, ...]]:
    """What of a verdict goes into the image."""
    return verdict.round, verdict.accepted, tuple(verdict.drawn)
