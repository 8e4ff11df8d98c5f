"""VAR at work in the cloud: open an image, draw its first scales, judge one scale. Synchronous, one thread.

A scale is judged by one block-causal pass over it and all scales that the device kept since the last one; a
scale that is never asked about costs nothing until then. Knows no queues, event loops or wire. fp32.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cloud_server.answers import Answers
from cloud_server.checks import Limits, check_ids, check_model
from shared.decoding.noise import check_seed
from shared.decoding.scales import VERDICTS, drawn, scale_noise, settled
from shared.errors import InvalidDraft, InvalidRequest, Overloaded
from shared.messages import Draft, ModelInfo, Open, Patch, Usage, Verdict
from shared.models.by_scale import ScaleCloud, label_of
from shared.models.families.var import VARConfig
from shared.models.families.var_run import ScaleRun


class ScaleSession:
    """One image on the cloud's side: what was ordered, what is committed, what it has cost.

    The transformer's cache may lag behind `tokens`: what it lacks is part of the next pass.
    """

    def __init__(self, order: Open, run: ScaleRun) -> None:
        self.name, self.order, self.run = secrets.token_hex(4), order, run
        self.tokens: list[int] = []
        self.forwards = self.rounds = self.judged = self.accepted = 0
        self.cloud_s = 0.0
        self.answers = Answers()

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
        self.forwards += 1
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

    def record(self, draft: Draft, verdict: Verdict) -> Verdict:
        """Count a judged round and remember its verdict."""
        self.rounds += 1
        self.judged += len(draft.span)
        self.accepted += verdict.accepted
        return self.answers.keep(draft, verdict)

    def usage(self) -> Usage:
        """What it has cost so far (SPEC section 8)."""
        return Usage(self.forwards, self.rounds, self.judged, self.accepted, self.cloud_s)


class ScaleEngine:
    """One VAR, up to `max_sessions` images at a time. Not thread-safe: exactly one thread may call it."""

    def __init__(self, cloud: ScaleCloud, max_sessions: int) -> None:
        self._cloud, self.max_sessions = cloud, max_sessions
        config = cloud.model.config
        self.limits = Limits(config.vocab_size, config.tokens, 0, max(config.scales) ** 2)
        self._open: set[str] = set()

    @property
    def info(self) -> ModelInfo:
        """The model as GetInfo reports it."""
        config, named = self._cloud.model.config, (self._cloud.name, self._cloud.digest)
        return ModelInfo(*named, config.vocab_size, config.tokens, 0, config.scales)

    @torch.inference_mode()
    def open(self, order: Open) -> ScaleSession:
        """Begin an image; nothing is drawn yet. Raises ModelUnavailable, ModelMismatch, InvalidPrompt and
        InvalidRequest for what cannot be ordered, Overloaded when too many are open."""
        check_model(order, self.info)
        self._check(order)
        if len(self._open) >= self.max_sessions:
            why = f"all {self.max_sessions} sessions of this server are in use"
            raise Overloaded("the server has no free session", why, "try again shortly")
        model, labels = self._cloud.model, self._cloud.labels
        label = torch.tensor([label_of(order.prompt, labels, model.config.classes)])
        run = ScaleRun(model, self._cloud.quantizer, label, order.warp.guidance - 1)
        session = ScaleSession(order, run)
        session.push(order.resume.tolist())
        self._open.add(session.name)
        return session

    def close(self, session: ScaleSession) -> None:
        """Forget an image; closing twice changes nothing."""
        self._open.discard(session.name)

    @torch.inference_mode()
    def draw(self, session: ScaleSession) -> None:
        """Draw the next scale of the prefix."""
        began = time.perf_counter()
        side = session.config.scales[session.run.scale]
        session.push(session.draw(side * side).tolist())
        session.cloud_s += time.perf_counter() - began

    @torch.inference_mode()
    def judge(self, session: ScaleSession, draft: Draft) -> Verdict:
        """The verdict on a checked draft: what stands of its scale is committed."""
        began = time.perf_counter()
        session.push(draft.catch_up.tolist())
        cloud_T, device_T = session.draw(len(draft.span)), torch.from_numpy(draft.span.astype(np.int64))
        bad = np.zeros(len(draft.span), dtype=np.bool_) if draft.bad is None else draft.bad
        out = settled(device_T, cloud_T, torch.from_numpy(bad), session.order.acceptance).numpy()
        session.push(out.tolist())
        places = np.flatnonzero(out != draft.span).astype(np.int32)
        patch = Patch(places, out[places].astype(np.int32))
        cloud_s = time.perf_counter() - began
        session.cloud_s += cloud_s
        accepted = len(draft.span) - len(places)
        return session.record(draft, Verdict(draft.round, accepted, None, cloud_s, patch=patch))

    def _check(self, order: Open) -> None:
        config, limits = self._cloud.model.config, self.limits
        check_seed(order.seed)
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
