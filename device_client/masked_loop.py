"""Continuous speculative decoding: the cloud begins, the device drafts a window, the cloud says what stands.

`decode_masked` yields a Progress per window, as `device_client.loop.decode` does per decision. Knows no gRPC
and no pictures.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import numpy as np

from device_client.cloud import Cloud, Request
from device_client.ledger import Ledger
from device_client.masked_drafter import MaskedDrafter
from device_client.masked_policy import MaskedPolicy
from device_client.progress import Progress, Source, Trip
from shared.continuous import Continuous, Values
from shared.errors import InvalidRequest, ModelMismatch
from shared.messages import Draft, Open, Opened, Verdict
from shared.models.by_mask import MaskedPackage


@dataclass(frozen=True)
class MaskedProgress(Progress):
    """The image so far. `tokens` are its places, by row and column, in the order in which they were decided;
    `values` fp16 [n, C] what stands there."""

    values: Values | None = None


async def decode_masked(
    package: MaskedPackage, request: Request, policy: MaskedPolicy, cloud: Cloud | None
) -> AsyncGenerator[MaskedProgress, None]:
    """Draft a window; have it judged, or keep it; go on.

    The session ends with the iteration, early or not, and as soon as nothing will be judged any more. Raises
    InvalidPrompt, InvalidRequest, ModelMismatch, and whatever `cloud` raises.
    """
    image = MaskedDrawing(package, request, policy, cloud)
    try:
        if image.cloud is not None:
            image.begin(await image.waiting(image.cloud.open(image.order())))
            await image.part_early()
            yield image.shown()
        while not image.done:
            span, values = await image.draw()
            if image.cloud is not None:
                draft = image.draft(span)
                await image.waiting(image.cloud.send(draft))
                image.settle(draft, await image.waiting(image.cloud.receive()))
                await image.part_early()
            else:
                image.keep(values)
            yield image.shown()
    finally:
        await image.close()


class MaskedDrawing(Ledger):
    """One image: what is decided, what it has cost."""

    def __init__(
        self, package: MaskedPackage, request: Request, policy: MaskedPolicy, cloud: Cloud | None
    ) -> None:
        if policy.use_cloud and cloud is None:
            raise InvalidRequest(f"mode {policy.mode!r} needs a cloud", "only device-only works without one")
        super().__init__(package.model.config.tokens, cloud if policy.use_cloud else None)
        self._package, self._request, self._policy = package, request, policy
        self._rounds = 0
        self._values: list[Values] = []
        with self._timed("device_s"):
            self._drafter = MaskedDrafter(package, request, policy)
        self._offsets = self._drafter.image.offsets
        if policy.prefix >= len(self._offsets):
            why = f"allowed: 0 to {len(self._offsets) - 1}"
            raise InvalidRequest(f"prefix of {policy.prefix} windows", why)

    def order(self) -> Open:
        """What opens the session."""
        package, request, policy = self._package, self._request, self._policy
        return Open(
            model=package.name,
            cloud_digest=package.cloud_digest,
            codebook_size=0,
            prompt=request.prompt,
            seed=request.seed,
            warp=request.warp,
            prefix_tokens=self._offsets[policy.prefix],
            acceptance=policy.acceptance,
            masking=policy.masking,
        )

    def begin(self, opened: Opened) -> None:
        """Take over the first windows. Raises ModelMismatch where the cloud draws others."""
        expected, width = self._offsets[self._policy.prefix], self._package.model.config.token_dim
        none = np.zeros((0, width), np.float16)
        values = none if opened.values is None else opened.values
        if (opened.image_tokens, values.shape) != (self.size, (expected, width)):
            what = f"the cloud drew values of shape {values.shape} of {opened.image_tokens} tokens"
            raise ModelMismatch(what, f"this device expects {(expected, width)} of {self.size}")
        self._decide(values, [Source.PREFIX] * expected)
        self._count(cloud_forwards=opened.cloud_forwards, cloud_s=opened.cloud_s)

    async def part_early(self) -> None:
        """End the session where nothing will be judged any more: the cloud's memory is free for others."""
        if self.cloud is not None and (self.done or not self._policy.judged):
            await self.close()
            self.cloud = None

    async def draw(self) -> tuple[Continuous, Values]:
        """The device's draft of the next window."""
        await asyncio.sleep(0)  # other images on this event loop move as well
        with self._timed("device_s"):
            return self._drafter.span()

    def draft(self, span: Continuous) -> Draft:
        """One round to send."""
        self._rounds += 1
        self._count(tokens_up=len(span))
        self._sent_s = self._now_s()
        none = np.zeros(0, np.int32)
        return Draft(self._rounds, len(self.tokens), none, continuous=span)

    def keep(self, values: Values) -> None:
        """Nobody is asked about this window."""
        self._count(kept=len(values))
        self._decide(values, [Source.KEPT] * len(values))

    def settle(self, draft: Draft, verdict: Verdict) -> None:
        """Decide the window as the cloud judged it."""
        assert verdict.kept is not None, "the link checks what arrives"
        values, stands = draft.values(verdict), verdict.kept.stands
        sources = [Source.VERIFIED if stands_here else Source.CORRECTED for stands_here in stands]
        sources.append(Source.BONUS)  # a trajectory ends early, or has one token more
        self._decide(values, sources[: len(values)])
        self._trips.append(self._trip(draft, verdict))
        self._count(rounds=1, judged=draft.drafted, accepted=verdict.accepted)
        self._count(cloud_forwards=verdict.cloud_forwards, cloud_s=verdict.cloud_s)

    def shown(self) -> MaskedProgress:
        """A snapshot with the values."""
        values = np.concatenate(self._values) if self._values else None
        return MaskedProgress(**vars(self.progress()), values=values)

    def _trip(self, draft: Draft, verdict: Verdict) -> Trip:
        costs = verdict.cloud_forwards, verdict.cloud_s
        drafted = draft.drafted
        drawn = 0 if verdict.kept is None else len(draft.values(verdict)) - verdict.accepted
        return Trip(
            draft.round, drafted, 0.0, self._sent_s, self._now_s(), verdict.accepted, drawn, *costs
        )

    def _decide(self, values: Values, sources: list[Source]) -> None:
        """The next tokens of the image, each with who decided it."""
        places = self._drafter.image.place_L[len(self.tokens) : len(self.tokens) + len(values)].tolist()
        with self._timed("device_s"):
            self._drafter.push(values)
        for place, source in zip(places, sources, strict=True):
            self._enter([place], source)
        if len(values):
            self._values.append(values)
