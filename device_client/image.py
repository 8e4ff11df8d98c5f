"""An image on the device: what is decided, what is drawn ahead of it, and what it has cost. Knows no gRPC.

The loop says what happens next; here is what it does to the image.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from device_client.cloud import Cloud, Request
from device_client.drafter import Drafter, Step
from device_client.ledger import Ledger
from device_client.pacing import Situation, pace, pacing_for
from device_client.policy import Policy
from device_client.progress import Source
from device_client.rounds import Round, weigh
from shared.errors import CloudUnreachable, InvalidRequest, ModelMismatch, Overloaded, Refused
from shared.messages import Draft, Open, Opened, Verdict
from shared.models.zoo import DevicePackage

log = logging.getLogger(__name__)


class Image(Ledger):
    """One image. `tokens` are decided; behind them stand rounds under way and the one being drawn."""

    def __init__(self, package: DevicePackage, request: Request, policy: Policy, cloud: Cloud | None) -> None:
        if policy.use_cloud and cloud is None:
            raise InvalidRequest(f"mode {policy.mode!r} needs a cloud", "only device-only works without one")
        super().__init__(package.model.base.config.image_tokens, cloud if policy.use_cloud else None)
        self.package, self.request, self.policy = package, request, policy
        self._flight: deque[Round] = deque()  # sent and not judged yet, oldest first
        self._round = Round()  # being drawn, behind those
        self._ahead: list[int] = []  # what both hold behind `tokens`
        self._guesses: dict[int, int] = {}  # place -> what the cloud guessed there
        self._sent = 0
        self._pace = pace(policy.pacing)
        self._pacing = pacing_for(policy.threshold, policy.budget, policy.gate, package.calibration)
        self._opened_s = 0.0  # of `wait_s`
        with self._timed("device_s"):
            given = package, request.prompt, request.seed, request.warp
            self._drafter = Drafter(*given, gate=policy.gate, acceptance=policy.acceptance)

    @property
    def must_listen(self) -> bool:
        """Whether an answer is here, or there is nothing to do before one comes."""
        if self.cloud is None or not self._flight:
            return False
        no_more = len(self._flight) >= self.policy.in_flight or self._end >= self.size
        return no_more or self.cloud.answered

    @property
    def owes_bonus(self) -> bool:
        """Whether the next token stands behind a span under way: the cloud draws its own there."""
        return bool(self._flight) and self._round.untouched

    @property
    def in_span(self) -> bool:
        """Whether a span is begun and not yet sent."""
        return bool(self._round.span)

    def order(self) -> Open:
        """What opens the session."""
        package, request, policy = self.package, self.request, self.policy
        return Open(
            model=package.name,
            cloud_digest=package.cloud_digest,
            codebook_size=package.model.base.config.vocab_size,
            prompt=request.prompt,
            seed=request.seed,
            warp=request.warp,
            prefix_tokens=policy.prefix_tokens(self.size),
            acceptance=policy.acceptance,
            guesses=policy.guesses,
            max_forwards=policy.max_forwards,
            relaxation=policy.relaxation,
            alone=policy.alone,
            window=policy.window,
        )

    def begin(self, opened: Opened) -> None:
        """Take over the prefix. Raises ModelMismatch where the cloud draws images of another size."""
        if opened.image_tokens != self.size:
            raise ModelMismatch(
                f"the cloud draws images of {opened.image_tokens} tokens", f"this device draws {self.size}"
            )
        self._decide(opened.prefix.tolist(), Source.PREFIX)
        self._count(cloud_forwards=opened.cloud_forwards, cloud_s=opened.cloud_s)
        self._opened_s = self._counters.wait_s

    async def draw(self) -> Step:
        """The device's draft behind everything drawn so far."""
        await asyncio.sleep(0)  # answers arrive here, and other images on this event loop move as well
        before_s = self._counters.device_s
        with self._timed("device_s"):
            step = self._drafter.step([*self.tokens, *self._ahead])
        self._round.device_s += self._counters.device_s - before_s
        return step

    def asks(self, step: Step) -> bool:
        """Whether the gate's score is above the threshold of this moment."""
        now = Situation(len(self.tokens), self._counters, self._opened_s)
        return step.score > self._pace(self._pacing, now)

    def assume(self, step: Step) -> None:
        """Go on as if the span under way were accepted whole and this were its bonus."""
        token, _ = self._weighed(step, self._end)
        self._round.assumed = replace(step, token=token)
        self._ahead.append(token)

    def keep(self, step: Step) -> None:
        """Nobody is asked about this token. It is decided unless it stands behind a span under way."""
        self._round.kept.append(step)
        if self._flight:
            self._ahead.append(step.token)
        else:
            self._decide_kept([step])

    def extend_span(self, step: Step) -> bool:
        """Add a token to the span, or what the cloud guessed there; whether the span ends with it.

        It has at most policy.span tokens and never crosses T. Adaptive spans end with the token that makes
        "all of it is accepted" less likely than the floor.
        """
        if self.policy.tree is not None:
            with self._timed("device_s"):
                self._round.grow(self._drafter, step, self._end, self.size, self.policy.tree)
            self._ahead += [node.token for node in self._round.span]  # one column each, not one place
            return True
        current, place, floor = self._round, self._end, self.policy.adaptive_floor
        token, chance = self._weighed(step, place)
        current.span.append(replace(step, token=token))
        current.chance *= chance
        self._ahead.append(token)
        full = len(current.span) == self.policy.span or self._end == self.size
        return full or (floor is not None and current.chance < floor)

    def draft(self) -> Draft:
        """One round to send: what was kept since the last one, with its features, and the span."""
        with self._timed("device_s"):
            drafter = self._drafter if self.policy.features else None
            behind = self._flight[-1].number if self._flight else None
            draft = self._round.draft(self._sent + 1, self._end, behind, drafter)
        self._sent = self._round.number = draft.round
        self._round.sent_s = self._now_s()
        self._flight.append(self._round)
        self._round = Round()
        self._count(tokens_up=len(draft.catch_up) + len(draft.span))
        return draft

    def settle(self, verdict: Verdict) -> None:
        """Decide what the cloud accepted and drew. What was drawn behind stands if it assumed just that."""
        judged = self._flight.popleft()
        accepted, standing, refused = verdict.accepted, judged.standing(verdict), judged.refused(verdict)
        whole = not refused
        self._decide([step.token for step in standing], Source.VERIFIED, standing)
        if whole:
            self._decide(verdict.drawn, Source.BONUS)
        else:
            self._decide(verdict.drawn[:1], Source.CORRECTED, refused)
            self._decide(verdict.drawn[1:], Source.BONUS)
            self._guesses = dict(enumerate(verdict.guesses.tolist(), len(self.tokens)))
        self._trips.append(judged.trip(self._now_s(), verdict))
        self._count(rounds=1, judged=len(judged.span), accepted=accepted)
        self._count(cloud_forwards=verdict.cloud_forwards, cloud_s=verdict.cloud_s)
        following = self._flight[0] if self._flight else self._round
        if whole and following.assumed is not None and following.assumed.token == verdict.token:
            del self._ahead[: len(judged.span) + 1 + len(following.kept)]
            following.assumed = None
            self._decide_kept(following.kept)
        else:
            self._rewind()

    @contextmanager
    def or_alone(self) -> Iterator[None]:
        """An act of the cloud; if none can be had and the policy says so, the image goes on without one.

        What is decided stands, kept tokens among it; whatever was under way is drawn again and not judged.
        """
        try:
            yield
        except (CloudUnreachable, Overloaded) as error:
            if self.policy.offline != "finish" or isinstance(error, Refused):
                raise
            log.warning("%s; the device draws the other %d tokens alone", error, self.size - len(self.tokens))
            self._rewind()
            self.cloud = None

    @property
    def _end(self) -> int:
        """The place behind everything drawn so far."""
        return len(self.tokens) + len(self._ahead)

    def _weighed(self, step: Step, place: int) -> tuple[int, float]:
        """The token to send for a place, and how likely the cloud draws it, where anybody reads that."""
        if self.policy.adaptive_floor is None and place not in self._guesses:
            return step.token, 1.0
        calibration = self.package.calibration
        chance = calibration.table(calibration.default_gate).agreement(step.doubt)
        return weigh(step.token, chance, self._guesses.get(place), place - min(self._guesses, default=place))

    def _rewind(self) -> None:
        """Forget all that was drawn ahead; the cloud's own token was never fed."""
        self._trips += [void.trip(None, None) for void in self._flight]
        self._flight.clear()
        self._ahead.clear()
        self._round = Round()
        self._drafter.rewind(len(self.tokens) - 1)

    def _decide_kept(self, steps: Sequence[Step]) -> None:
        alone = self.cloud is not self._asked
        self._decide([step.token for step in steps], Source.OFFLINE if alone else Source.KEPT, steps)
        self._count(**{"offline" if alone else "kept": len(steps)})

    def _decide(self, tokens: Sequence[int], source: Source, steps: Sequence[Step] = ()) -> None:
        """Append tokens to the image, with the scores of the steps that drafted for these places."""
        self._enter(tokens, source, [step.score for step in steps])
