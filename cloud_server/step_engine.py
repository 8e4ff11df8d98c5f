"""DiT at work in the cloud: open an image, say what the model makes of a latent. Synchronous, one thread.

A session is a latent and the step it stands at. The cloud looks at it, rounds what it says to what travels,
and takes the step with that itself; so a device that does the same stands at the very same latent and need
not send it. Knows no queues, event loops or wire. fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cloud_server.pass_engine import PassEngine, PassSession
from shared.decoding.denoising import JUDGEMENT, MAX_PLACES, Denoising, carried, denoising
from shared.decoding.diffusion import STEPS
from shared.errors import InvalidDraft, InvalidRequest, ModelMismatch
from shared.messages import Draft, Latent, ModelInfo, Open, Output, Sampling
from shared.models.by_scale import label_of
from shared.models.by_step import StepCloud, latent_shape

REMEMBERED = 4  # answers of a session, for rounds that come again; devices have one under way


@dataclass(frozen=True, eq=False)
class Look:
    """What the model said of a latent [1, C, H, W], rounded to what travels; features [N, F]."""

    state: Tensor
    eps: Tensor
    spread: Tensor | None
    features: Tensor | None

    def output(self, precision: str, *, with_state: bool) -> Output:
        """As it travels."""
        eps, state = _latent(self.eps, precision), _latent(self.state, precision)
        spread = None if self.spread is None else _latent(self.spread, precision)
        features = None if self.features is None else self.features.numpy().astype(np.float16)
        return Output(eps, spread, features, state if with_state else None)


class StepSession(PassSession):
    """One image on the cloud's side: what was ordered, where it stands, what it has cost."""

    def __init__(self, order: Open, sampling: Sampling, label: int, shape: tuple[int, int, int]) -> None:
        super().__init__(order, REMEMBERED)
        self.sampling = sampling
        self.process: Denoising = denoising(sampling.spacing, sampling.sampler)
        self.label, self.shape = torch.tensor([label]), shape
        self.state, self.step = self.process.start(order.seed, shape), 0

    @property
    def progress(self) -> str:
        """Steps."""
        return f"at step {self.step} of {len(self.process)}"

    def check(self, draft: Draft) -> None:
        """Raise InvalidDraft unless the draft asks for steps that there are, from a latent that is known."""
        if draft.steps is None or len(draft.span):
            raise InvalidDraft("the draft is of another kind of model", "this one takes `steps`")
        extras = (draft.features, draft.proposal, draft.behind, draft.bad)
        if any(extra is not None for extra in extras) or len(draft.parents) or len(draft.catch_up):
            what = "the draft is of another kind of model"
            raise InvalidDraft(what, "steps have a count and a state alone")
        count, left = draft.steps.count, len(self.process) - draft.base
        if not 1 <= count <= left:
            allowed = f"allowed: 1 to {left}" if left > 0 else f"there are {len(self.process)} steps"
            raise InvalidDraft(f"{count} steps from {draft.base} on", allowed)
        state = draft.steps.state
        if state is None and draft.base != self.step:
            why = f"the cloud stands at step {self.step}"
            raise InvalidDraft(f"no state for step {draft.base}", why, "send the state")
        wanted = np.float16 if self.sampling.precision == "fp16" else np.float32
        if state is not None and (state.shape != self.shape or state.dtype != wanted):
            what = f"the state is {state.dtype} of shape {state.shape}"
            raise InvalidDraft(what, f"allowed: {np.dtype(wanted)} of shape {self.shape}")

    def stand(self, draft: Draft) -> None:
        """Go to where a checked draft begins."""
        assert draft.steps is not None
        if draft.steps.state is not None:
            self.state = torch.from_numpy(draft.steps.state.astype(np.float32))[None]
        self.step = draft.base


class StepEngine(PassEngine[StepSession]):
    """One DiT."""

    def __init__(self, cloud: StepCloud, max_sessions: int) -> None:
        super().__init__(max_sessions)
        self._cloud = cloud
        self.shape = latent_shape(cloud.model.config)

    @property
    def info(self) -> ModelInfo:
        """The model as GetInfo reports it."""
        cloud = self._cloud
        features = 0 if cloud.projection is None else cloud.projection.weight_DF.shape[1]
        return ModelInfo(cloud.name, cloud.digest, 0, STEPS, features, latent=self.shape)

    @torch.inference_mode()
    def look(self, session: StepSession) -> Look:
        """One pass: what the model makes of the session's latent. The session takes the step."""
        cloud, process, step = self._cloud, session.process, session.step
        precision, channels = session.sampling.precision, self.shape[0]
        with session.one_pass():
            state = carried(session.state, precision)
            original = torch.tensor([process.original(step)])
            guidance = session.order.warp.guidance
            out, hidden_1TD = cloud.model.denoised(state, original, session.label, guidance)
            eps, spread, features = carried(out[:, :channels], precision), None, None
            if process.random and cloud.model.config.learned_spread:
                spread = carried(out[:, channels:], precision)
            if session.sampling.projection and cloud.projection is not None:
                features = carried(hidden_1TD[0] @ cloud.projection.weight_DF, "fp16")
            session.state = process.back(step, state, eps, spread, session.order.seed)
            session.step += 1
        return Look(state, eps, spread, features)

    def _begun(self, order: Open) -> StepSession:
        sampling = self._sampling(order)
        label = label_of(order.prompt, self._cloud.labels, self._cloud.model.config.classes)
        session = StepSession(order, sampling, label, self.shape)
        if order.prefix_tokens > len(session.process):
            what = f"a prefix of {order.prefix_tokens} steps"
            raise InvalidRequest(what, f"allowed: 0 to {len(session.process)}")
        return session

    def _sampling(self, order: Open) -> Sampling:
        """What a model by steps must be told. Raises InvalidRequest and ModelMismatch."""
        if order.sampling is None or order.acceptance != JUDGEMENT:
            what = f"acceptance {order.acceptance!r}, {'a' if order.sampling else 'no'} sampling"
            raise InvalidRequest(what, f"this model denoises: {JUDGEMENT!r}, and `sampling` says how")
        if order.guesses or order.max_forwards > 1 or order.alone or len(order.resume):
            raise InvalidRequest("the order is for models that draw tokens", "this one draws steps")
        if self.shape[1] * self.shape[2] > MAX_PLACES:
            raise InvalidRequest(f"a latent of shape {self.shape}", f"allowed: {MAX_PLACES} places")
        projection, wanted = self._cloud.projection, order.sampling.projection
        if wanted and (projection is None or projection.digest != wanted):
            here = "none" if projection is None else projection.digest
            next_step = "give the server the device/ folder of this device's model"
            raise ModelMismatch(f"features by projection {wanted}", f"this server has {here}", next_step)
        return order.sampling


def _latent(values: Tensor, precision: str) -> Latent:
    array = values[0].numpy()
    return array.astype(np.float16) if precision == "fp16" else array.astype(np.float32)
