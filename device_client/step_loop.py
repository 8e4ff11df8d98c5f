"""The algorithm for models by steps: the cloud begins, the device goes on from what it said, asks in time.

`denoise` yields a Denoised per decision. The first step is the cloud's: what it says there, and wherever it
is asked again, is what the device predicts the change of. A guess that would take the risks owed above the
threshold is dropped and the cloud asked in its place. Knows no gRPC, no pictures.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from device_client.cloud import Cloud
from device_client.ledger import Ledger
from device_client.progress import Progress, Source, Trip
from device_client.step_drafter import StepDrafter, StepRequest, tensor
from device_client.step_policy import StepPolicy
from shared.decoding.denoising import JUDGEMENT, Guess, carried, risk
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest, ModelMismatch
from shared.messages import Draft, Latent, Open, Opened, Output, Sampling, Steps, Verdict, no_tokens
from shared.models.by_step import StepPackage


@dataclass(frozen=True, eq=False)
class Denoised:
    """The image so far: its latent [1, C, H, W], and a Progress whose tokens are the original steps taken and
    whose scores are the risks owed."""

    latent: Tensor
    progress: Progress


async def denoise(
    package: StepPackage, request: StepRequest, policy: StepPolicy, cloud: Cloud | None
) -> AsyncGenerator[Denoised, None]:
    """Predict a step; take it, or have the cloud look; go on.

    The session ends with the iteration, early or not. Raises InvalidPrompt, InvalidRequest, ModelMismatch,
    and whatever `cloud` raises.
    """
    image = StepImage(package, request, policy, cloud)
    try:
        if image.cloud is not None:
            image.begin(await image.waiting(image.cloud.open(image.order())))
            yield image.denoised()
        while not image.done:
            guess = await image.guess()
            if image.cloud is not None and image.asks(guess):
                draft = image.draft()
                await image.waiting(image.cloud.send(draft))
                image.settle(draft, guess, await image.waiting(image.cloud.receive()))
            else:
                image.keep(guess)
            yield image.denoised()
    finally:
        await image.close()


class StepImage(Ledger):
    """One image: its latent, whose every step was, what is owed, what it has cost."""

    def __init__(
        self, package: StepPackage, request: StepRequest, policy: StepPolicy, cloud: Cloud | None
    ) -> None:
        if policy.use_cloud and cloud is None:
            raise InvalidRequest(f"mode {policy.mode!r} needs a cloud", "only device-only works without one")
        self._drafter = StepDrafter(package, request, policy)
        self._process = self._drafter.process
        if policy.prefix > len(self._process):
            raise InvalidRequest(f"prefix of {policy.prefix} steps", f"allowed: up to {len(self._process)}")
        super().__init__(len(self._process), cloud if policy.use_cloud else None)
        self._package, self._request, self._policy = package, request, policy
        self._state = self._process.start(request.seed, package.shape)
        self._rounds, self._last, self._owed = 0, 0, 0.0  # drafts; the cloud's last step; risks since
        self._together = True  # the cloud stands where we do

    def order(self) -> Open:
        """What opens the session."""
        package, request, policy = self._package, self._request, self._policy
        return Open(
            model=package.name,
            cloud_digest=package.cloud_digest,
            codebook_size=0,
            prompt=request.prompt,
            seed=request.seed,
            warp=Warp(guidance=request.guidance),
            prefix_tokens=policy.opening,
            acceptance=JUDGEMENT,
            sampling=Sampling(request.sampler, request.spacing, policy.precision, self._drafter.projection),
        )

    def denoised(self) -> Denoised:
        """A snapshot."""
        return Denoised(self._state, self.progress())

    def begin(self, opened: Opened) -> None:
        """Take over the first steps. Raises ModelMismatch where the cloud took others."""
        if opened.image_tokens != self.size or opened.output is None:
            raise ModelMismatch(f"the cloud counts {opened.image_tokens} steps", f"expected {self.size}")
        for step in range(self._policy.opening - 1):
            self._enter([self._process.original(step)], Source.PREFIX)
        self._take(opened.output, Source.PREFIX)
        self._count(cloud_forwards=opened.cloud_forwards, cloud_s=opened.cloud_s)

    async def guess(self) -> Guess | None:
        """What the device makes of the latent; None where every step is the cloud's."""
        await asyncio.sleep(0)  # other images on this event loop move as well
        if not self._policy.guesses:
            return None
        with self._timed("device_s"):
            return self._drafter.guess(len(self.tokens), self._state)

    def asks(self, guess: Guess | None) -> bool:
        """Whether the cloud shall look at the latent."""
        step, gap = len(self.tokens), len(self.tokens) - self._last
        return self._policy.asks(step, self.size, gap, self._debt(guess))

    def draft(self) -> Draft:
        """One round to send: the latent, unless the cloud has it; then both go on from what arrives."""
        self._rounds += 1
        self._sent_s = self._now_s()
        steps = Steps(1, self._travelling(), known=self._together)
        return Draft(self._rounds, len(self.tokens), no_tokens(), steps=steps)

    def keep(self, guess: Guess | None) -> None:
        """Nobody is asked about this step."""
        assert guess is not None, "who never asks guesses"
        self._owed = self._debt(guess)
        self._together = False
        self._count(kept=1)
        self._step(guess.eps, guess.spread if self._process.random else None, Source.KEPT)

    def settle(self, draft: Draft, guess: Guess | None, verdict: Verdict) -> None:
        """Take the step as the cloud saw it. A guess was right if the cloud's noise lies in its interval."""
        assert verdict.output is not None, "the link checks"
        held = guess is not None and guess.holds(tensor(verdict.output.noise))
        self._take(verdict.output, Source.VERIFIED if held else Source.CORRECTED)
        costs = verdict.cloud_forwards, verdict.cloud_s
        trip = Trip(draft.round, 1, 0.0, self._sent_s, self._now_s(), int(held), int(not held), *costs)
        self._trips.append(trip)
        self._count(rounds=1, judged=int(guess is not None), accepted=int(held))
        self._count(cloud_forwards=verdict.cloud_forwards, cloud_s=verdict.cloud_s)

    def _take(self, output: Output, source: Source) -> None:
        """The step from what the cloud looked at."""
        with self._timed("device_s"):
            eps, spread = self._drafter.hear(len(self.tokens), output)
        looked_at = None if output.state is None else tensor(output.state)
        self._state = carried(self._state, self._policy.precision) if looked_at is None else looked_at
        self._last, self._owed, self._together = len(self.tokens), 0.0, True
        self._step(eps, spread, source)

    def _step(self, eps: Tensor, spread: Tensor | None, source: Source) -> None:
        step = len(self.tokens)
        with self._timed("device_s"), torch.inference_mode():
            self._state = self._process.back(step, self._state, eps, spread, self._request.seed)
        self._enter([self._process.original(step)], source, [self._owed])

    def _debt(self, guess: Guess | None) -> float:
        """What would be owed if the guess stood."""
        if guess is None or not self._policy.use_cloud or self._policy.predictor != "device":
            return 0.0
        step, seed = len(self.tokens), self._request.seed
        return self._owed + risk(self._process, self._policy.gate, guess, seed, step)

    def _travelling(self) -> Latent:
        array = carried(self._state, self._policy.precision)[0].numpy()
        return array.astype(np.float16) if self._policy.precision == "fp16" else array.astype(np.float32)
