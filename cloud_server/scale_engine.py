"""VAR at work in the cloud: open an image, draw its first scales, judge one scale. Synchronous, one thread.

A scale is judged by one block-causal pass over it and all scales that the device kept since the last one; a
scale that is never asked about costs nothing until then. Knows no queues, event loops or wire. fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cloud_server.checks import Limits, check_ids
from cloud_server.pass_engine import PassEngine, PassSession
from shared.decoding.scales import VERDICTS, drawn, scale_noise, settled
from shared.errors import InvalidDraft, InvalidRequest
from shared.messages import Draft, ModelInfo, Open, Patch, Verdict
from shared.models.by_scale import ScaleCloud, label_of
from shared.models.families.var import VARConfig
from shared.models.families.var_run import ScaleRun


class ScaleSession(PassSession):
    """One image on the cloud's side: what was ordered, what is committed, what it has cost.

    The transformer's cache may lag behind `tokens`: what it lacks is part of the next pass.
    """

    def __init__(self, order: Open, run: ScaleRun) -> None:
        super().__init__(order)
        self.run = run
        self.tokens: list[int] = []

    @property
    def progress(self) -> str:
        """Tokens."""
        return f"{len(self.tokens)} tokens"

    @property
    def config(self) -> VARConfig:
        """The shape of the model."""
        return self.run.model.config

    def push(self, tokens: Sequence[int]) -> None:
        """Commit whole scales."""
        offsets, begin = self.config.offsets, len(self.tokens)
        self.tokens += tokens
        while self.run.scale < len(self.config.scales) and len(self.tokens) >= offsets[self.run.scale + 1]:
            first, last = offsets[self.run.scale] - begin, offsets[self.run.scale + 1] - begin
            self.run.push(torch.tensor([tokens[first:last]]))

    def draw(self, scale_tokens: int) -> Tensor:
        """The cloud's own draw of the next scale, [T], by one pass over all scales not seen yet."""
        order = self.order
        noise = scale_noise([order.seed], self.run.scale, scale_tokens, self.config.vocab_size)
        return drawn(self.run.logits(), order.warp, noise)[0]

    def check(self, draft: Draft) -> None:
        """Raise InvalidDraft unless the draft is one scale behind whole scales that the device kept."""
        config, committed = self.config, len(self.tokens)
        if draft.base != committed:
            raise InvalidDraft(
                f"base {draft.base} does not fit", f"allowed: {committed}", "open again and resume"
            )
        begin, end = committed + len(draft.catch_up), committed + len(draft.catch_up) + len(draft.span)
        if (begin, end) not in zip(config.offsets, config.offsets[1:], strict=False):
            what = f"the span goes from {begin} to {end}"
            raise InvalidDraft(what, f"allowed: one whole scale; they begin at {config.offsets}")
        extras = (draft.features, draft.proposal, draft.behind, draft.steps)
        if any(extra is not None for extra in extras) or len(draft.parents):
            raise InvalidDraft("the draft is of another kind of model", "a scale has tokens and marks alone")


class ScaleEngine(PassEngine[ScaleSession]):
    """One VAR."""

    def __init__(self, cloud: ScaleCloud, max_sessions: int) -> None:
        super().__init__(max_sessions)
        self._cloud = cloud
        config = cloud.model.config
        self.limits = Limits(config.vocab_size, config.tokens, 0, max(config.scales) ** 2)

    @property
    def info(self) -> ModelInfo:
        """The model as GetInfo reports it."""
        config, named = self._cloud.model.config, (self._cloud.name, self._cloud.digest)
        return ModelInfo(*named, config.vocab_size, config.tokens, 0, config.scales)

    @torch.inference_mode()
    def draw(self, session: ScaleSession) -> None:
        """Draw the next scale of the prefix."""
        with session.one_pass():
            side = session.config.scales[session.run.scale]
            session.push(session.draw(side * side).tolist())

    @torch.inference_mode()
    def judge(self, session: ScaleSession, draft: Draft) -> Verdict:
        """The verdict on a checked draft: what stands of its scale is committed."""
        before_s = session.cloud_s
        with session.one_pass():
            session.push(draft.catch_up.tolist())
            cloud_T, device_T = session.draw(len(draft.span)), torch.from_numpy(draft.span.astype(np.int64))
            bad = np.zeros(len(draft.span), dtype=np.bool_) if draft.bad is None else draft.bad
            out = settled(device_T, cloud_T, torch.from_numpy(bad), session.order.acceptance).numpy()
            session.push(out.tolist())
        places = np.flatnonzero(out != draft.span).astype(np.int32)
        patch = Patch(places, out[places].astype(np.int32))
        accepted, cloud_s = len(draft.span) - len(places), session.cloud_s - before_s
        return session.record(draft, Verdict(draft.round, accepted, None, cloud_s, patch=patch))

    def _begun(self, order: Open) -> ScaleSession:
        self._check(order)
        model, labels = self._cloud.model, self._cloud.labels
        label = torch.tensor([label_of(order.prompt, labels, model.config.classes)])
        run = ScaleRun(model, self._cloud.quantizer, label, order.warp.guidance - 1)
        session = ScaleSession(order, run)
        session.push(order.resume.tolist())
        return session

    def _check(self, order: Open) -> None:
        config, limits = self._cloud.model.config, self.limits
        if order.acceptance not in VERDICTS:
            what = f"{order.acceptance!r} judges no scales"
            raise InvalidRequest(what, f"allowed for this model: {', '.join(VERDICTS)}")
        if order.guesses or order.max_forwards > 1 or order.alone or order.resume_features is not None:
            raise InvalidRequest(
                "the order is for models that draw token after token", "this one draws scales"
            )
        for count, name in ((order.prefix_tokens, "prefix_tokens"), (len(order.resume), "resume")):
            if count not in config.offsets:
                why = f"allowed: whole scales, {', '.join(map(str, config.offsets))}"
                raise InvalidRequest(f"{name} of {count} tokens", why)
        check_ids(order.resume, limits, "resume", InvalidRequest)
