"""The gated decode rehearsed: what a threshold really costs when kept tokens stand in for the cloud's.

Many images advance place by place, device and cloud side by side. With coupled acceptance a judged token is
the cloud's own draw whatever was drafted, so a span is only a question of who is counted: the images and
forwards are those of the loop over the wire. Knows nothing of the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from shared.decoding import gates
from shared.decoding.agreement import Learned
from shared.decoding.calibration import GateTable
from shared.decoding.noise import gumbel
from shared.decoding.warp import Warp, guide, warp_logits
from shared.models.family import ImageModel
from shared.models.inter_head import DeviceModel, quantise_features
from shared.models.kv_cache import KVCache, cache_window

ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Play:
    """The policy that is rehearsed: spans of `span` tokens at most, ended at `floor` (0: never), behind a
    prefix of floor(prefix_rate * T) tokens."""

    warp: Warp
    span: int
    floor: float
    prefix_rate: float

    def prefix(self, tokens: int) -> int:
        """m."""
        return int(self.prefix_rate * tokens + 1e-9)


@dataclass(frozen=True, eq=False)
class Pair:
    """A finished cloud and its device, and W of eq. 6 [D, d_f] (None: features add nothing)."""

    cloud: ImageModel
    device: DeviceModel
    learned: Learned | None
    bridge_DF: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Ask:
    """One image to rehearse, and the threshold it is drawn with."""

    prompt: str
    seed: int
    tau: float


@dataclass(frozen=True, eq=False)
class Rehearsed:
    """Per image: tokens [N, T]; cloud forwards, kept tokens, and kept tokens unlike the cloud's draw in the
    same context, as shares of T."""

    tokens_NT: NDArray[np.int64]
    calls_N: NDArray[np.float64]
    kept_N: NDArray[np.float64]
    wrong_N: NDArray[np.float64]


@torch.inference_mode()
def rehearse(
    pair: Pair, asks: Sequence[Ask], play: Play, gate: str, doubt: tuple[str, GateTable]
) -> Rehearsed:
    """Draw every image as the loop would.

    gate   its score is held against each image's tau
    doubt  the gate that adaptive spans go by, and its table
    """
    chunks = [asks[start : start + ROWS_AT_ONCE] for start in range(0, len(asks), ROWS_AT_ONCE)]
    parts = [_Rehearsal(pair, chunk, play, gate, doubt).run() for chunk in chunks]
    fields = ("tokens_NT", "calls_N", "kept_N", "wrong_N")
    return Rehearsed(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


class _Rows:
    """One model at work on N images: it is fed one token of each at a time."""

    def __init__(self, model: ImageModel, prompts: Sequence[str], rows: int) -> None:
        self._model, self._rows = model, rows
        prefixes = [model.prompt_rows(prompt)[:rows] for prompt in prompts]
        self._starts = [s for prefix in prefixes for s in model.starts(prefix.shape[1])[:rows]]
        longest = max(prefix.shape[1] for prefix in prefixes)
        self._x = torch.cat([F.pad(prefix, (0, 0, longest - prefix.shape[1], 0)) for prefix in prefixes])
        self._first = model.config.prefix_len - longest
        self._cache = KVCache(model.config, len(self._x))

    def hidden(self) -> Tensor:
        """Hidden states that judge the next place, [N, R, D]."""
        positions = [list(range(self._first, self._first + self._x.shape[1]))] * len(self._x)
        window = cache_window(range(len(self._x)), positions, self._starts)
        hidden: Tensor = self._model.gpt(self._x, window, self._cache)
        self._first += self._x.shape[1]
        return hidden[:, -1].reshape(-1, self._rows, hidden.shape[-1])

    def feed(self, tokens_N: Tensor, place: int, extra_ND: Tensor | None = None) -> None:
        """Give every image its token at `place`; `extra_ND` is added to the embeddings."""
        ids = tokens_N.repeat_interleave(self._rows)[:, None]
        self._x = self._model.gpt.embed_tokens(ids, torch.full_like(ids, place))
        if extra_ND is not None:
            self._x = self._x + extra_ND.repeat_interleave(self._rows, 0)[:, None]


class _Place(NamedTuple):
    """What both sides know of one place: draws and scores [N], and what a kept token adds to the cloud's
    embedding [N, D] (None: nothing)."""

    cloud_N: NDArray[np.int64]
    device_N: NDArray[np.int64]
    score_N: NDArray[np.float32]
    doubt_N: NDArray[np.float32]
    extra_ND: Tensor | None


class _Rehearsal:
    """One chunk of images."""

    def __init__(
        self, pair: Pair, asks: Sequence[Ask], play: Play, gate: str, doubt: tuple[str, GateTable]
    ) -> None:
        self._pair, self._asks, self._play = pair, asks, play
        self._gates, self._table = (gate, doubt[0]), doubt[1]
        prompts, self._config = [ask.prompt for ask in asks], pair.cloud.config
        guided = 1 if play.warp.guidance == 1.0 else 2
        self._cloud = _Rows(pair.cloud, prompts, guided)
        one_row = pair.device.config.distilled_guidance is not None
        self._device = _Rows(pair.device.base, prompts, 1 if one_row else guided)
        places, size = range(self._config.image_tokens), self._config.vocab_size
        self._noise_NTV = torch.stack([gumbel(ask.seed, places, size) for ask in asks])

    def run(self) -> Rehearsed:
        """All places, in order."""
        size, drawn = self._config.image_tokens, []
        prefix, spans = self._play.prefix(size), _Spans(self._play, self._table, len(self._asks))
        counts_3N = np.zeros((3, len(self._asks)))
        tau_N = np.array([ask.tau for ask in self._asks])
        for place in range(size):
            now = self._draw(place)
            if place < prefix:
                asked_N, keep_N = np.ones_like(tau_N, bool), np.zeros_like(tau_N, bool)
            else:
                agree_N = now.cloud_N == now.device_N
                asked_N, keep_N = spans.advance(now.score_N > tau_N, now.doubt_N, agree_N)
            counts_3N += np.stack([asked_N, keep_N, keep_N & (now.cloud_N != now.device_N)])
            drawn.append(np.where(keep_N, now.device_N, now.cloud_N))
            self._feed(drawn[-1], place, keep_N, now.extra_ND)
        return Rehearsed(np.stack(drawn, 1), *counts_3N / size)

    def _feed(
        self, tokens_N: NDArray[np.int64], place: int, keep_N: NDArray[np.bool_], extra_ND: Tensor | None
    ) -> None:
        fed_N, kept_N1 = torch.from_numpy(tokens_N), torch.from_numpy(keep_N)[:, None]
        self._cloud.feed(fed_N, place, None if extra_ND is None else extra_ND * kept_N1)
        self._device.feed(fed_N, place)

    def _draw(self, place: int) -> _Place:
        warp, device, noise_NV = self._play.warp, self._pair.device, self._noise_NTV[:, place]
        cloud_NV = _guided(self._pair.cloud.gpt.logits(self._cloud.hidden()), warp)
        hidden_NRD = self._device.hidden()
        hidden_ND, centre_NV = hidden_NRD[:, 0], device.centre(hidden_NRD.transpose(0, 1), warp.guidance)
        log_q_NV, radius_NV = warp_logits(centre_NV, warp.unfiltered), device.radius(hidden_ND)
        places_N = torch.full((len(noise_NV),), place)
        known = gates.Evidence(0, places_N, log_q_NV, noise_NV, centre_NV, radius_NV, self._pair.learned)
        score_N, doubt_N = (self._scores(name, known) for name in self._gates)
        cloud_N, device_N = (
            (warp_logits(logits_NV, warp) + noise_NV).argmax(-1).numpy()
            for logits_NV in (cloud_NV, centre_NV)
        )
        extra_ND = None
        if self._pair.bridge_DF is not None:
            codes, scale = quantise_features(device.feature(hidden_ND, centre_NV, radius_NV, log_q_NV))
            extra_ND = (codes.float() * scale.float()[:, None]) @ self._pair.bridge_DF.T
        return _Place(cloud_N, device_N, score_N, doubt_N, extra_ND)

    def _scores(self, name: str, known: gates.Evidence) -> NDArray[np.float32]:
        """Scores [N] of one gate; those that read the seed are asked image by image."""
        gate = gates.gate(name)
        if not gates.reads_seed(name):
            scores: NDArray[np.float32] = gate(known).numpy()
            return scores
        return np.concatenate(
            [gate(_of_image(known, n, ask.seed)).numpy() for n, ask in enumerate(self._asks)]
        )


def _of_image(known: gates.Evidence, n: int, seed: int) -> gates.Evidence:
    """The evidence of one image of several."""
    rows = ("position_T", "log_q_TV", "noise_TV", "centre_TV", "radius_TV")
    return replace(known, seed=seed, **{name: getattr(known, name)[n : n + 1] for name in rows})


class _Spans:
    """Who is inside a span, and who has its bonus coming: the bookkeeping of Algorithm 1 for N images."""

    def __init__(self, play: Play, table: GateTable, images: int) -> None:
        self._play, self._scores, self._differ = play, np.array(table.scores), np.array(table.differ)
        self._inside_N, self._bonus_N = np.zeros(images, bool), np.zeros(images, bool)
        self._length_N, self._chance_N = np.zeros(images, np.int64), np.ones(images)

    def advance(
        self, doubtful_N: NDArray[np.bool_], doubt_N: NDArray[np.float32], agree_N: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """One place: (who asks now, who keeps its draft)."""
        begins_N = doubtful_N & ~self._inside_N & ~self._bonus_N
        judged_N = begins_N | self._inside_N
        keep_N = ~judged_N & ~self._bonus_N
        self._length_N = np.where(begins_N, 1, self._length_N + 1)
        place_N = np.searchsorted(self._scores, doubt_N, side="right") - 1
        likely_N = 1 - self._differ[place_N.clip(0, len(self._differ) - 1)]
        self._chance_N = np.where(begins_N, 1.0, self._chance_N) * likely_N
        whole_N = (self._length_N >= self._play.span) | (self._chance_N < self._play.floor)
        self._bonus_N = judged_N & agree_N & whole_N
        self._inside_N = judged_N & agree_N & ~whole_N
        return begins_N, keep_N


def _guided(logits_NRV: Tensor, warp: Warp) -> Tensor:
    """Guided logits [N, V] of one row or two."""
    if logits_NRV.shape[1] == 1:
        return logits_NRV[:, 0]
    return guide(logits_NRV[:, 0], logits_NRV[:, 1], warp.guidance)
