"""The algorithm for models by scales: the cloud begins, the device draws a whole scale, and asks if unsure.

`decode_scales` yields a Progress per scale, as `device_client.loop.decode` does per decision; CoDe is the
policy that never asks, cloud-only the one whose prefix is the image. Knows no gRPC, no pictures.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import numpy as np

from device_client.cloud import Cloud, Request
from device_client.ledger import Ledger
from device_client.progress import Progress, Source, Trip
from device_client.scale_drafter import ScaleDrafter, ScaleStep, bad_places
from device_client.scale_policy import ScalePolicy
from shared.errors import InvalidRequest, ModelMismatch
from shared.messages import Draft, Marks, Open, Opened, Verdict
from shared.models.by_scale import ScalePackage


async def decode_scales(
    package: ScalePackage, request: Request, policy: ScalePolicy, cloud: Cloud | None
) -> AsyncGenerator[Progress, None]:
    """Draw a scale; keep it, or have it verified with all that was kept since the last one; go on.

    The session ends with the iteration, early or not, and as soon as no scale can be asked about any more.
    Raises InvalidPrompt, InvalidRequest, ModelMismatch, and whatever `cloud` raises.
    """
    image = ScaleImage(package, request, policy, cloud)
    try:
        if image.cloud is not None:
            image.begin(await image.waiting(image.cloud.open(image.order())))
            await image.part_early()
            yield image.progress()
        while not image.done:
            step = await image.draw()
            marks = image.doubts(step)
            if image.cloud is not None and image.asks(marks):
                draft = image.draft(step, marks)
                await image.waiting(image.cloud.send(draft))
                image.settle(draft, step, await image.waiting(image.cloud.receive()))
                await image.part_early()
            else:
                image.keep(step, marks)
            yield image.progress()
    finally:
        await image.close()


class ScaleImage(Ledger):
    """One image: what is decided, what is owed since the last request, what it has cost."""

    def __init__(
        self, package: ScalePackage, request: Request, policy: ScalePolicy, cloud: Cloud | None
    ) -> None:
        if policy.use_cloud and cloud is None:
            raise InvalidRequest(f"mode {policy.mode!r} needs a cloud", "only device-only works without one")
        if policy.prefix > len(package.config.scales):
            why = f"allowed: 0 to {len(package.config.scales)}"
            raise InvalidRequest(f"prefix of {policy.prefix} scales", why)
        super().__init__(package.config.tokens, cloud if policy.use_cloud else None)
        self._package, self._request, self._policy = package, request, policy
        self._rounds = 0
        self._base = 0  # tokens that the cloud has
        self._debt = 0.0
        with self._timed("device_s"):
            self._drafter = ScaleDrafter(package, request, policy.gate)

    def order(self) -> Open:
        """What opens the session."""
        package, request, policy = self._package, self._request, self._policy
        return Open(
            model=package.name,
            cloud_digest=package.cloud_digest,
            codebook_size=package.config.vocab_size,
            prompt=request.prompt,
            seed=request.seed,
            warp=request.warp,
            prefix_tokens=package.config.offsets[policy.prefix],
            acceptance=policy.verdict,
        )

    def begin(self, opened: Opened) -> None:
        """Take over the first scales. Raises ModelMismatch where the cloud draws others."""
        expected = self._package.config.offsets[self._policy.prefix]
        if (opened.image_tokens, len(opened.prefix)) != (self.size, expected):
            what = f"the cloud drew {len(opened.prefix)} of {opened.image_tokens} tokens"
            raise ModelMismatch(what, f"this device expects {expected} of {self.size}")
        with self._timed("device_s"):
            for scale in range(self._policy.prefix):
                self._decide(opened.prefix[slice(*self._package.config.offsets[scale : scale + 2])].tolist())
        self._enter(opened.prefix.tolist(), Source.PREFIX)
        self._base = len(self.tokens)
        self._count(cloud_forwards=opened.cloud_forwards, cloud_s=opened.cloud_s)

    async def part_early(self) -> None:
        """End the session where nothing will be asked any more: the cloud's memory is free for others."""
        rule = self._policy.ask
        hopeless = self._policy.gate == "never" or self._drafter.scale >= rule.until
        if self.cloud is not None and (self.done or hopeless):
            await self.close()
            self.cloud = None

    async def draw(self) -> ScaleStep:
        """The device's draft of the next scale."""
        await asyncio.sleep(0)  # other images on this event loop move as well
        with self._timed("device_s"):
            return self._drafter.step()

    def doubts(self, step: ScaleStep) -> Marks:
        """The places of a draft that the gate calls bad."""
        policy = self._policy
        return bad_places(self._package, policy.gate, self._drafter.scale, policy.bad, step)

    def asks(self, marks: Marks) -> bool:
        """Whether to have the scale verified."""
        if self._policy.gate in ("never", "always"):
            return self._policy.gate == "always"
        return self._policy.ask.asks(self._debt, self._drafter.scale, float(marks.mean()))

    def draft(self, step: ScaleStep, marks: Marks) -> Draft:
        """One round to send: the scales kept since the last one, and this scale."""
        self._rounds += 1
        catch_up = np.array(self.tokens[self._base :], dtype=np.int32)
        self._count(tokens_up=len(catch_up) + len(step.tokens))
        self._sent_s = self._now_s()
        return Draft(self._rounds, self._base, step.tokens, catch_up, bad=marks)

    def keep(self, step: ScaleStep, marks: Marks) -> None:
        """Nobody is asked about this scale."""
        self._debt = self._policy.ask.owed(self._debt, self._drafter.scale, float(marks.mean()))
        self._count(kept=len(step.tokens))
        self._settle(step.tokens.tolist(), [Source.KEPT] * len(step.tokens), step)

    def settle(self, draft: Draft, step: ScaleStep, verdict: Verdict) -> None:
        """Decide the scale as the cloud judged it."""
        tokens = draft.standing(verdict)
        sources = [Source.VERIFIED if same else Source.CORRECTED for same in tokens == step.tokens]
        self._settle(tokens.tolist(), sources, step)
        self._base, self._debt = len(self.tokens), 0.0
        self._trips.append(self._trip(draft, verdict))
        self._count(rounds=1, judged=len(step.tokens), accepted=verdict.accepted)
        self._count(cloud_forwards=verdict.cloud_forwards, cloud_s=verdict.cloud_s)

    def _trip(self, draft: Draft, verdict: Verdict) -> Trip:
        costs = verdict.cloud_forwards, verdict.cloud_s
        drawn, sent_s = len(draft.span) - verdict.accepted, self._sent_s
        return Trip(draft.round, len(draft.span), 0.0, sent_s, self._now_s(), verdict.accepted, drawn, *costs)

    def _settle(self, tokens: list[int], sources: list[Source], step: ScaleStep) -> None:
        with self._timed("device_s"):
            self._decide(tokens)
        for token, source, score in zip(tokens, sources, step.scores.tolist(), strict=True):
            self._enter([token], source, [score])

    def _decide(self, tokens: list[int]) -> None:
        if self._drafter.scale < len(self._package.config.scales):
            self._drafter.push(tokens)
