"""The model at work: open a session, and judge a batch of jobs in ONE forward. Synchronous, one thread.

Knows nothing of queues, event loops or the wire. Probabilities are fp32, whatever the weights are. Shapes: B
cache rows, T new positions, G guidance rows of a session, n prompt words, D width, K span, V codebook.
"""

from __future__ import annotations

import heapq
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cloud_server import alone
from cloud_server.checks import Limits, check_features, check_ids, check_model
from cloud_server.forward import Compiled, Eager, Forward, Rows
from cloud_server.session import Job, Session
from shared.decoding.acceptance import Judged, Judgement, rule
from shared.decoding.noise import check_seed
from shared.decoding.warp import log_probs
from shared.errors import InvalidRequest, Overloaded
from shared.messages import MAX_FORWARDS, Features, ModelInfo, Open
from shared.models.kv_cache import KVCache
from shared.models.woven import Weave
from shared.models.zoo import CloudModel

MAX_SPAN = 64
# A job with more new positions than this runs alone, behind the shorter ones: they need not wait for it.
LONG_JOB = 32
ROWS = 2  # cache rows per session: the prompt's and the unguided one


class Answer(NamedTuple):
    """What became of a job, and the wall seconds of the forward it was part of."""

    judgement: Judgement
    cloud_s: float


@dataclass(frozen=True, eq=False)
class _Feed:
    """The input of one job: x_GTD at `positions`; the last `rows` positions are judged."""

    positions: list[int]
    x_GTD: Tensor
    rows: int
    weave: Weave | None = None


class Engine:
    """One cloud model and its cache slots. Not thread-safe: exactly one thread may call it.

    With `fold_prefix` a prompt is one cache entry once it was read: exact, up to rounding, for models whose
    prefix keys vanish. Raises InvalidRequest for others. With `compiled`, forwards run as compiled code:
    `warm` first. The cache has the dtype of the weights and lies where they do.
    """

    def __init__(
        self,
        cloud: CloudModel,
        max_sessions: int,
        max_span: int = MAX_SPAN,
        *,
        fold_prefix: bool = False,
        compiled: bool = False,
    ) -> None:
        self._cloud, self._gpt, self.max_sessions = cloud, cloud.model.gpt, max_sessions
        config = cloud.model.config
        self.limits = Limits(config.vocab_size, config.image_tokens, cloud.bridge_DF.shape[1], max_span)
        slots = ROWS * max_sessions
        self._cache = KVCache(config, slots, self._gpt.dtype, self._gpt.device)
        self._folds = fold_prefix
        self._compiled = Compiled(self._gpt, self._cache, slots, folds=fold_prefix) if compiled else None
        self._model: Forward = self._compiled or Eager(self._gpt, self._cache)
        if fold_prefix and config.rope_axes != 2:
            what = f"the prompts of family {cloud.model.family!r} cannot be folded"
            raise InvalidRequest(what, "their keys do not vanish")
        self._free = list(range(max_sessions))  # a heap: neighbours in the cache are read without a copy
        self._places: dict[str, int] = {}

    @property
    def info(self) -> ModelInfo:
        """The model as GetInfo reports it."""
        limits = self.limits
        sizes = limits.codebook_size, limits.image_tokens, limits.feature_width
        return ModelInfo(self._cloud.name, self._cloud.digest, *sizes)

    @torch.inference_mode()
    def warm(self) -> int:
        """Compile what is to be compiled; how many shapes. Raises CiarError where that is impossible."""
        return self._compiled.warm() if self._compiled else 0

    @torch.inference_mode()
    def open(self, order: Open) -> Session:
        """Take a cache slot for one image; nothing is fed yet.

        Raises ModelUnavailable, ModelMismatch, InvalidPrompt, InvalidRequest for what cannot be ordered, and
        Overloaded when no slot is free.
        """
        self._check(order)
        if not self._free:  # before the prompt is read, which may take a while
            why = f"all {self.max_sessions} sessions of this server are in use"
            raise Overloaded(
                "the server has no free session", why, "try again shortly, or use another server"
            )
        prompt_2ND = self._cloud.model.prompt_rows(order.prompt)
        place = heapq.heappop(self._free)
        guided = 1 if order.warp.guidance == 1 else ROWS
        starts = self._cloud.model.starts(prompt_2ND.shape[1])[:guided]
        session = Session(
            name=secrets.token_hex(4),
            order=order,
            slots=tuple(range(ROWS * place, ROWS * place + guided)),
            prompt_GND=prompt_2ND[:guided],
            limits=self.limits,
            starts=starts,
            tokens=order.resume.tolist(),
            fed=starts[0],
        )
        self._places[session.name] = place
        return session

    def close(self, session: Session) -> None:
        """Wipe and free the session's slot; closing twice changes nothing."""
        place = self._places.pop(session.name, None)
        if place is not None:
            for slot in session.slots:
                self._cache.clear(slot)
            heapq.heappush(self._free, place)

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> list[Answer]:
        """Judge jobs of different sessions in one forward and commit what stands; answers in their order."""
        began = time.perf_counter()
        feeds = [self._feed(job) for job in jobs]
        hidden = self._forward(jobs, feeds)
        if self._folds:
            for job in jobs:
                self._fold(job.session)
        judgements = self._judge(jobs, feeds, hidden)
        cloud_s = time.perf_counter() - began
        for job, judgement in zip(jobs, judgements, strict=True):
            _commit(job, judgement, cloud_s)
        return [Answer(judgement, cloud_s) for judgement in judgements]

    def _check(self, order: Open) -> None:
        limits = self.limits
        check_model(order, self.info)
        check_seed(order.seed)
        rule(order.acceptance)
        alone.check(order)
        if not 0 <= order.max_forwards <= MAX_FORWARDS:
            raise InvalidRequest(f"max_forwards is {order.max_forwards}", f"allowed: 0 to {MAX_FORWARDS}")
        self._check_relaxation(order)
        for count, name in (
            (order.prefix_tokens, "prefix_tokens"),
            (len(order.resume), "the length of resume"),
        ):
            if not 0 <= count <= limits.image_tokens:
                raise InvalidRequest(f"{name} is {count}", f"allowed: 0 to T = {limits.image_tokens}")
        check_ids(order.resume, limits, "resume", InvalidRequest)
        check_features(order.resume_features, len(order.resume), limits, InvalidRequest)

    def _check_relaxation(self, order: Open) -> None:
        needed = order.acceptance == "relaxed"
        if needed != (order.relaxation is not None):
            found = "comes without its bounds" if needed else "takes no relaxation"
            raise InvalidRequest(f"{order.acceptance!r} acceptance {found}", "relaxed alone has k and delta")
        if needed and self._cloud.neighbours_VN is None:
            raise InvalidRequest("this cloud cannot judge by 'relaxed'", "it was loaded without its codebook")

    def _feed(self, job: Job) -> _Feed:
        """Everything the session's cache lacks, up to the last position that is judged."""
        session = job.session
        first = max(session.fed - session.prefix_rows, 0)  # image place of the first token to feed
        layout, rows = job.layout(), session.prefix_rows
        ids_T, places_T = (torch.tensor(row, dtype=torch.int64) for row in (layout.tokens, layout.places))
        x_TD = self._gpt.embed_tokens(ids_T, places_T)
        self._add_features(x_TD, session.order.resume_features, -first)
        self._add_features(x_TD, job.features, len(session.tokens) - first)
        prompt_GND = session.prompt_GND[:, session.fed - session.start :]
        x_GTD = torch.cat([prompt_GND, x_TD.expand(len(session.slots), -1, -1)], dim=1)
        prompt = prompt_GND.shape[1]
        positions = [*range(rows - prompt, rows), *(rows + column for column in layout.columns)]
        return _Feed(positions, x_GTD, job.rows, layout.woven(prompt, rows))

    def _add_features(self, x_TD: Tensor, features: Features | None, offset: int) -> None:
        """Add W f (eq. 6) where a feature came and its token is fed now; `offset` turns places into rows."""
        if features is None:
            return
        f_NF = torch.from_numpy(features.codes.astype("float32") * features.scale.astype("float32")[:, None])
        rows_N = torch.from_numpy(features.index.astype("int64")) + offset
        fed_now = rows_N >= 0
        added_ND = f_NF[fed_now].to(self._gpt.device) @ self._cloud.bridge_DF.T
        x_TD.index_add_(0, rows_N[fed_now].to(self._gpt.device), added_ND.to(x_TD.dtype))

    def _forward(self, jobs: Sequence[Job], feeds: Sequence[_Feed]) -> list[Tensor]:
        """Hidden states [G, T, D] of each job, in one forward."""
        rows = [_rows(job.session, feed) for job, feed in zip(jobs, feeds, strict=True)]
        return self._model([feed.x_GTD for feed in feeds], rows)

    def _fold(self, session: Session) -> None:
        """Keep of the prefix what image tokens can see of it: one entry per layer."""
        if session.folded == 1:
            for slot, start in zip(session.slots, session.starts, strict=True):
                self._cache.fold(slot, start, session.prefix_rows)
            session.folded = session.prefix_rows - session.start

    def _judge(
        self, jobs: Sequence[Job], feeds: Sequence[_Feed], hidden: Sequence[Tensor]
    ) -> list[Judgement]:
        judged = zip(hidden, feeds, strict=True)
        chunks = [row_TD for own_GTD, feed in judged for row_TD in own_GTD[:, -feed.rows :].unbind(0)]
        logits_NV = self._gpt.logits(torch.cat(chunks))
        logits = iter(torch.split_with_sizes(logits_NV, [len(chunk) for chunk in chunks]))
        neighbours_VN = self._cloud.neighbours_VN
        return [_judge_one(job, [next(logits) for _ in job.session.slots], neighbours_VN) for job in jobs]


def batches(jobs: Iterable[Job]) -> list[list[Job]]:
    """Jobs grouped into forwards: the short ones together, in cache order, then each long one alone."""
    ordered = sorted(jobs, key=lambda job: job.session.slots)
    short = [job for job in ordered if job.inputs <= LONG_JOB]
    return [*([short] if short else []), *([job] for job in ordered if job.inputs > LONG_JOB)]


def _rows(session: Session, feed: _Feed) -> Rows:
    slots = session.slots
    weights = [session.folded] * len(slots)
    return Rows(slots, [feed.positions] * len(slots), session.visible, weights, feed.weave)


def _judge_one(job: Job, logits_GTV: Sequence[Tensor], neighbours_VN: Tensor | None) -> Judgement:
    order, proposal = job.session.order, job.proposal
    uncond_TV = logits_GTV[1] if len(logits_GTV) > 1 else None
    device = logits_GTV[0].device
    judged = Judged(
        log_p_TV=log_probs(logits_GTV[0], uncond_TV, order.warp),
        span_K=torch.from_numpy(job.span.astype("int64")).to(device),
        seed=order.seed,
        position=job.base,
        proposal_ids_KJ=None
        if proposal is None
        else torch.from_numpy(proposal.ids.astype("int64")).to(device),
        proposal_probs_KJ=None
        if proposal is None
        else torch.from_numpy(proposal.probabilities.astype("float32")).to(device),
        neighbours_VN=neighbours_VN,
        relaxation=order.relaxation,
    )
    return job.judge(rule(order.acceptance), judged)


def _commit(job: Job, judgement: Judgement, cloud_s: float) -> None:
    """Keep what stands, and count the forward."""
    job.commit(judgement)
    job.session.forwards += 1
    job.session.cloud_s += cloud_s
