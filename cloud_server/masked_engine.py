"""MAR at work in the cloud: open an image, draw its first windows, judge one span. Synchronous, one thread.

Knows no queues, event loops or wire. fp32: at the head's first step an error is enlarged some 300 times.
"""

from __future__ import annotations

import numpy as np
import torch

from cloud_server.masked_judge import JUDGES, Bench
from cloud_server.pass_engine import PassEngine, PassSession
from shared.continuous import Continuous, Masking, Values
from shared.errors import InvalidDraft, InvalidRequest, ModelMismatch
from shared.messages import Draft, ModelInfo, Open, Verdict
from shared.models.by_mask import MaskedCloud
from shared.models.by_scale import label_of
from shared.models.families.mar_image import MaskedImage, rounded
from shared.models.trajectories import path

MAX_SPAN = 16  # of trajectories, whose states go through both heads at once
EXACT = "trajectory"


class MaskedSession(PassSession):
    """One image on the cloud's side: what was ordered, what is known of it, what it has cost."""

    def __init__(self, order: Open, masking: Masking, image: MaskedImage) -> None:
        super().__init__(order)
        self.masking, self.image = masking, image
        self.fallbacks = 0

    @property
    def progress(self) -> str:
        """Tokens, and those whose law is the cloud's only nearly."""
        fallbacks = f", {self.fallbacks} fallbacks" if self.fallbacks else ""
        return f"{self.image.known} tokens{fallbacks}"

    def check(self, draft: Draft) -> None:
        """Raise InvalidDraft unless the draft begins at what is known and is one window, or of a trajectory
        some tokens."""
        image, span = self.image, draft.continuous
        extras = (draft.features, draft.proposal, draft.behind, draft.bad)
        foreign = any(extra is not None for extra in extras)
        if span is None or foreign or len(draft.span) + len(draft.catch_up) + len(draft.parents):
            what = "the draft is of another kind of model"
            raise InvalidDraft(what, "this one draws continuous tokens, and judges them alone")
        if draft.base != image.known:
            why = f"allowed: {image.known}"
            raise InvalidDraft(f"base {draft.base} does not fit", why, "open again and resume")
        left = image.offsets[-1] - image.known
        if self.order.acceptance == EXACT:
            allowed = range(1, min(MAX_SPAN, left) + 1)
        else:
            allowed = range(len(image.window), len(image.window) + 1) if left else range(0)
        if len(span) not in allowed:
            what = f"a span of {len(span)} tokens at {draft.base}"
            raise InvalidDraft(what, f"allowed: {list(allowed)}; windows begin at {image.offsets}")


class MaskedEngine(PassEngine[MaskedSession]):
    """One MAR."""

    def __init__(self, cloud: MaskedCloud, max_sessions: int) -> None:
        super().__init__(max_sessions)
        self._cloud = cloud

    @property
    def info(self) -> ModelInfo:
        """The model as GetInfo reports it."""
        config, named = self._cloud.model.config, (self._cloud.name, self._cloud.digest)
        return ModelInfo(*named, 0, config.tokens, 0, token_width=config.token_dim)

    @torch.inference_mode()
    def draw(self, session: MaskedSession) -> Values:
        """Draw and know the next window; its tokens."""
        image = session.image
        with session.one_pass():
            ranks = image.window
            cond = image.condition(ranks)
            if session.order.acceptance == EXACT:  # its law adds noise at the last step as well
                head = self._cloud.model.diffloss
                values = rounded(path(head, image.schedule, cond, image.noise(ranks))[:, -1])
            else:
                values = image.draw(ranks, cond)
            image.push(values)
        return values

    @torch.inference_mode()
    def judge(self, session: MaskedSession, draft: Draft) -> Verdict:
        """The verdict on a checked draft: what stands of it is known from now on."""
        before_s = session.cloud_s
        assert draft.continuous is not None, "checked by the session"
        self._check_span(session, draft.continuous)
        bench = Bench(session.image, self._cloud.proposer, session.masking)
        with session.one_pass():
            judged = JUDGES[session.order.acceptance](bench, draft.continuous)
            session.image.push(judged.standing)
        session.fallbacks += judged.fallbacks
        accepted, cloud_s = int(judged.kept.stands.sum()), session.cloud_s - before_s
        return session.record(draft, Verdict(draft.round, accepted, None, cloud_s, kept=judged.kept))

    def _begun(self, order: Open) -> MaskedSession:
        masking = self._checked(order)
        model = self._cloud.model
        label = label_of(order.prompt, self._cloud.labels, model.config.classes)
        image = MaskedImage(model, label, order.seed, masking, order.warp)
        for count, name in ((order.prefix_tokens, "prefix_tokens"), (order.owned, "resume_values")):
            if count not in image.offsets:
                why = f"allowed: whole windows, {', '.join(map(str, image.offsets))}"
                raise InvalidRequest(f"{name} of {count} tokens", why)
        if order.resume_values is not None:
            _check_width(order.resume_values, model.config.token_dim, "resume_values")
            image.push(order.resume_values)
        return MaskedSession(order, masking, image)

    def _check_span(self, session: MaskedSession, span: Continuous) -> None:
        """Raise InvalidDraft unless the parts of a span are those of the acceptance, of the right widths."""
        rule = session.order.acceptance
        if (span.conditions is None) == (rule == EXACT) or (span.log_std is None) == (rule == "published"):
            why = "trajectory: conditions; published: values and log_std; aligned: values"
            raise InvalidDraft(f"the span has other parts than {rule!r} takes", why)
        if span.values is not None:
            _check_width(span.values, self._cloud.model.config.token_dim, "a span", InvalidDraft)
        if span.conditions is not None and self._cloud.proposer is not None:
            width = self._cloud.proposer.net.cond_embed.in_features
            shape = (2 if session.order.warp.guidance != 1.0 else 1, width)
            if span.conditions.shape[1:] != shape:
                what = f"conditions of shape {span.conditions.shape}"
                raise InvalidDraft(what, f"allowed: [K, {shape[0]}, {shape[1]}]")

    def _checked(self, order: Open) -> Masking:
        """The order's masking. Raises InvalidRequest, and ModelMismatch without a device's head."""
        masking, tokens, rule = order.masking, self._cloud.model.config.tokens, order.acceptance
        if rule not in JUDGES:
            what = f"{rule!r} judges no continuous tokens"
            raise InvalidRequest(what, f"allowed for this model: {', '.join(JUDGES)}")
        if masking is None:
            raise InvalidRequest("the order has no masking", "models of continuous tokens need it")
        alien = order.guesses or order.max_forwards > 1 or order.alone or len(order.resume)
        if alien or order.resume_features is not None:
            what = "the order is for models that draw token after token"
            raise InvalidRequest(what, "this one draws continuous tokens")
        if rule == EXACT and masking.steps != tokens:
            raise InvalidRequest(f"{masking.steps} steps of a trajectory", f"allowed: {tokens}")
        if rule == EXACT and self._cloud.proposer is None:
            what = "there is no device head here to judge trajectories of"
            raise ModelMismatch(what, "", "serve a model folder that has device/")
        warp = order.warp
        if warp.top_k or warp.top_p != 1.0 or (rule != "aligned" and warp.temperature != 1.0):
            what = f"top_k {warp.top_k}, top_p {warp.top_p}, temperature {warp.temperature}"
            raise InvalidRequest(what, "allowed: 0, 1, and 1 but for 'aligned'")
        return masking


def _check_width(
    values: Values, width: int, name: str, refuse: type[InvalidRequest] = InvalidRequest
) -> None:
    if values.shape[1] != width or not np.isfinite(values).all():
        raise refuse(f"{name} of tokens of {values.shape[1]} numbers", f"allowed: {width}, finite")
