"""Runs one plan to its picture: a link to the cloud, the loop, the VQ decoder.

The command line and the REST gateway are consumers of `steps`. Knows nothing of terminals or HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import Any

from device_client.identity import Identity
from device_client.link import NOBODY, CloudLink
from device_client.loop import Progress, decode
from device_client.render import png_bytes, to_image
from device_client.wish import Plan
from shared.errors import InvalidRequest
from shared.models.zoo import DevicePackage


@dataclass(frozen=True)
class Upstream:
    """Where the cloud is, how long to wait for it, and who we are to it. Without a target only device-only
    mode works."""

    target: str | None
    connect_s: float = 5.0
    deadline_s: float = 60.0
    retry_s: float = 30.0
    identity: Identity = NOBODY

    def link(self, plan: Plan) -> AbstractAsyncContextManager[CloudLink | None]:
        """A new link, or none where the plan needs none. Raises InvalidRequest without a target."""
        if not plan.policy.use_cloud:
            return nullcontext()
        if self.target is None:
            raise InvalidRequest(
                f"mode {plan.policy.mode!r} needs a cloud server",
                "none was named",
                "start with --server host:50051, or ask for mode device-only",
            )
        return CloudLink(
            self.target,
            connect_s=self.connect_s,
            deadline_s=self.deadline_s,
            retry_s=self.retry_s,
            identity=self.identity,
            request_id=plan.request_id,
        )


async def steps(package: DevicePackage, plan: Plan, upstream: Upstream) -> AsyncGenerator[Progress, None]:
    """The loop over a link of its own. Closing it early frees the cloud's session at once."""
    async with (
        upstream.link(plan) as cloud,
        aclosing(decode(package, plan.request, plan.policy, cloud)) as progress,
    ):
        async for step in progress:
            yield step


def record(plan: Plan, progress: Progress) -> dict[str, Any]:
    """What a picture says about itself: its settings and its counters."""
    return {**plan.settings, "counters": progress.counters.as_dict()}


def finish(package: DevicePackage, plan: Plan, progress: Progress) -> bytes:
    """The finished picture as PNG with its record inside. Takes a while: keep it off an event loop."""
    return png_bytes(to_image(package.vq, progress.tokens), record(plan, progress))
