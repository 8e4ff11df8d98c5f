"""The small model at work on one image: prompt, cache and noise; start, step, rewind.

Knows nothing of clouds. Shapes: R guidance rows (1 or 2), T new tokens, D width, V codebook, k proposal ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.decoding import gates
from shared.decoding.acceptance import rule, sample_sparse, sparsify
from shared.decoding.noise import check_seed, gumbel
from shared.decoding.place import SCORES, Place, draw, interval
from shared.decoding.warp import Warp, warp_logits
from shared.models.inter_head import quantise_features
from shared.models.kv_cache import KVCache, cache_window
from shared.models.lean import Floats, LeanRadius, LeanRow
from shared.models.woven import Weave, weave
from shared.models.zoo import DevicePackage

PROPOSAL_IDS = 64  # k: ids of the sparse q that `rejection` samples from and sends
_NOISE_AHEAD = 32  # places whose noise is drawn at once: few enough to stay in a core's own cache
_FED_SINGLY = 4  # tokens that are fed one at a time; more of them share a forward of torch

SparseQ = tuple[NDArray[np.int32], NDArray[np.float16]]  # ids [k], probabilities [k]


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """The device's draft for one position, and what its feature would be made of.

    token     codebook id
    score     of the chosen gate
    doubt     score of the calibration's default gate, whatever the chosen one: adaptive spans go by it
    proposal  the sparse q the token was sampled from; None unless `rejection` will judge it
    hidden_1D, centre_1V, log_q_1V  of the conditional row, guided, and warped without its filters
    """

    token: int
    score: float
    doubt: float
    proposal: SparseQ | None
    hidden_1D: Tensor
    centre_1V: Tensor
    log_q_1V: Tensor


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a draft tree that is to be drawn behind.

    depth   places behind the first of the tree
    column  where the cache keeps it, counted from there too
    unseen  earlier columns of nodes that are no ancestors
    """

    token: int
    depth: int
    column: int
    unseen: tuple[int, ...]


class Drafter:
    """One image on the device. Its cache remembers what it was fed, so every step feeds only what is new.

    There is one guidance row where guidance is distilled into the model or is 1, two otherwise; then the
    centre of an interval is the guided logit, radius and hidden state are the conditional row's (SPEC section
    2). With one row, steps take the lean path through the model where there is one (`plain` says no): the
    same numbers up to rounding. Raises InvalidPrompt; InvalidRequest for an unknown gate or rule, and for an
    impossible seed.
    """

    def __init__(  # noqa: PLR0913 - one image, and what says how it is drawn
        self,
        package: DevicePackage,
        prompt: str,
        seed: int,
        warp: Warp,
        *,
        gate: str | None = None,
        acceptance: str = "coupled",
        plain: bool = False,
    ) -> None:
        self._model, self._config = package.model, package.model.base.config
        self._seed, self._warp = check_seed(seed), warp
        usual = package.calibration.default_gate
        self._gate, self._default_gate = gate or usual, usual
        self._gates = {name: gates.gate(name) for name in (self._gate, usual)}
        self._reads_radii = any(map(gates.reads_radii, self._gates))
        self._learned = package.learned
        rule(acceptance)
        self._acceptance = acceptance
        one_row = self._model.config.distilled_guidance is not None or warp.guidance == 1.0
        self._rows = 1 if one_row else 2
        with torch.inference_mode():
            self._prompt_RND = self._model.base.prompt_rows(prompt)[: self._rows]
        self._starts = self._model.base.starts(self._prompt_RND.shape[1])[: self._rows]
        self._places_T = torch.arange(self._config.image_tokens)
        self._cache = KVCache(self._config, self._rows)
        self._fed = 0  # inputs in the cache: the prompt counts one, every token one
        self._ahead: dict[int, Floats] = {}  # noise of _NOISE_AHEAD places, by block
        lean = None if plain or not one_row or acceptance == "rejection" else package.lean
        self._lean = None if lean is None else LeanRow(lean, self._cache, 0, self._starts[0])

    def step(self, tokens: Sequence[int]) -> Step:
        """The draft for position len(tokens) < T: argmax(log q + g), or for `rejection` from the sparse q.

        `tokens` must begin with what earlier steps were given, up to the last `rewind`. ONE forward feeds
        whatever of prompt + tokens the cache lacks, so a prefill after a prefix is nothing special.
        """
        if self._lean is not None and self._fed and 1 <= len(tokens) - self._first(tokens) <= _FED_SINGLY:
            return self._lean_step(self._lean, tokens)
        return self._plain_step(tokens)

    @torch.inference_mode()
    def _plain_step(self, tokens: Sequence[int]) -> Step:
        position = len(tokens)
        hidden_RD = self._forward(tokens)
        centre_1V = self._centre(hidden_RD)
        log_q_1V = warp_logits(centre_1V, self._warp)
        doubt_1V = warp_logits(centre_1V, self._warp.unfiltered)
        evidence = self._evidence(position, hidden_RD[:1], centre_1V, doubt_1V)
        doubt = float(self._gates[self._default_gate](evidence))
        score = doubt if self._gate == self._default_gate else float(self._gates[self._gate](evidence))
        token, proposal = self._draw(log_q_1V, evidence.noise_TV)
        return Step(token, score, doubt, proposal, hidden_RD[:1], centre_1V, doubt_1V)

    def _lean_step(self, row: LeanRow, tokens: Sequence[int]) -> Step:
        """The same in NumPy. Tokens are fed one at a time; only the last one needs the head."""
        position = len(tokens)
        for place in range(self._first(tokens), position):
            hidden_D = row.feed(tokens[place], place)
        self._fed = 1 + position
        centre_V = row.logits(hidden_D) if self._model.config.heads == 1 else self._combined(hidden_D)
        seen = Place.of(centre_V, self._warp.temperature, self._noise(position))
        tensors = tuple(torch.from_numpy(value[None]) for value in (hidden_D, centre_V, seen.log_q_V))
        doubt = self._lean_score(self._default_gate, seen, position, tensors)
        own = self._gate != self._default_gate
        score = self._lean_score(self._gate, seen, position, tensors) if own else doubt
        return Step(draw(seen, self._warp), score, doubt, None, *tensors)

    def _lean_score(self, name: str, seen: Place, position: int, tensors: Sequence[Tensor]) -> float:
        if name in SCORES and (self._learned is not None or name not in gates.NEED_FIT):
            return SCORES[name](seen, self._learned)
        if name == "interval" and self._model.config.heads == 1:
            hidden_1D, centre_1V, _ = tensors
            return interval(centre_1V[0].numpy(), self._lean_radius(hidden_1D[0].numpy()))
        with torch.inference_mode():
            return float(self._gates[name](self._evidence(position, *tensors)))

    @cached_property
    def _lean_radius(self) -> LeanRadius:
        return LeanRadius(self._model.inter_head)

    def _combined(self, hidden_D: Floats) -> Floats:
        """The centre of several heads."""
        with torch.inference_mode():
            centre_V: Floats = self._centre(torch.from_numpy(hidden_D[None]))[0].numpy()
        return centre_V

    @torch.inference_mode()
    def branch(self, length: int, nodes: Sequence[Node]) -> Tensor:
        """log q [N, V] behind each of N nodes, warped without its filters, where `length` tokens are fed.

        Their ancestors were given before. The next `step` forgets them all.
        """
        gpt, base = self._model.base.gpt, self._config.prefix_len + length
        ids_N, places_N = (
            torch.tensor(row) for row in zip(*((n.token, length + n.depth) for n in nodes), strict=True)
        )
        x_RND = gpt.embed_tokens(ids_N, places_N).expand(self._rows, -1, -1)
        columns = [[base + node.column for node in nodes]] * self._rows
        hidden = [[base + column for column in node.unseen] for node in nodes]
        woven = Weave([base + node.depth for node in nodes], hidden)
        window = weave(cache_window(range(self._rows), columns, self._starts), [woven] * self._rows)
        centre_NV = self._model.centre(gpt(x_RND, window, self._cache), self._warp.guidance)
        return warp_logits(centre_NV, self._warp.unfiltered)

    def rewind(self, length: int) -> None:
        """Forget everything behind the first `length` tokens; the prompt stays."""
        self._fed = min(self._fed, 1 + length)

    @torch.inference_mode()
    def features(self, steps: Sequence[Step]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
        """Interval features of n >= 1 steps (eq. 5), quantised: codes int8 [n, d_f], scale float16 [n]."""
        hidden_TD, centre_TV, log_q_TV = (
            torch.cat(rows)
            for rows in zip(*((step.hidden_1D, step.centre_1V, step.log_q_1V) for step in steps), strict=True)
        )
        radius_TV = self._model.radius(hidden_TD)
        codes, scale = quantise_features(self._model.feature(hidden_TD, centre_TV, radius_TV, log_q_TV))
        return codes.numpy(), scale.numpy()

    def _first(self, tokens: Sequence[int]) -> int:
        """The first token to feed: the last one is fed again where the cache holds all of them."""
        return max(min(self._fed, len(tokens)) - 1, 0)

    def _noise(self, place: int) -> Floats:
        """The noise [V] of a place; `greedy` is drawing with none."""
        block, row = divmod(place, _NOISE_AHEAD)
        if block not in self._ahead:
            first, size = block * _NOISE_AHEAD, self._config.vocab_size
            places = range(first, min(first + _NOISE_AHEAD, self._config.image_tokens))
            drawn = gumbel(self._seed, places, size).numpy()
            self._ahead[block] = np.zeros_like(drawn) if self._acceptance == "greedy" else drawn
        noise_V: Floats = self._ahead[block][row]
        return noise_V

    def _forward(self, tokens: Sequence[int]) -> Tensor:
        """Feed what the cache lacks, and at least the last input again; its hidden states [R, D]."""
        gpt = self._model.base.gpt
        first = self._first(tokens)
        parts = [] if min(self._fed, len(tokens)) else [self._prompt_RND]
        if tokens[first:]:
            ids_RT = torch.tensor([list(tokens[first:])] * self._rows)
            parts.append(gpt.embed_tokens(ids_RT, self._places_T[first : len(tokens)]))
        x_RTD = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        end = self._config.prefix_len + len(tokens)
        positions = list(range(end - x_RTD.shape[1], end))
        window = cache_window(range(self._rows), [positions] * self._rows, self._starts)
        hidden_RTD: Tensor = gpt(x_RTD, window, self._cache)
        self._fed = 1 + len(tokens)
        return hidden_RTD[:, -1]

    def _centre(self, hidden_RD: Tensor) -> Tensor:
        """Guided logits of all heads, combined: fp32 [1, V]."""
        return self._model.centre(hidden_RD[:, None], self._warp.guidance)

    def _evidence(
        self, position: int, hidden_1D: Tensor, centre_1V: Tensor, log_q_1V: Tensor
    ) -> gates.Evidence:
        """What the gates may read; the radii only where one of them does."""
        place_1, noise_1V = (
            self._places_T[position : position + 1],
            torch.from_numpy(self._noise(position)[None]),
        )
        radius_1V = self._model.radius(hidden_1D) if self._reads_radii else torch.zeros_like(centre_1V)
        return gates.Evidence(self._seed, place_1, log_q_1V, noise_1V, centre_1V, radius_1V, self._learned)

    def _draw(self, log_q_1V: Tensor, noise_1V: Tensor) -> tuple[int, SparseQ | None]:
        if self._acceptance != "rejection":
            return int((log_q_1V + noise_1V).argmax()), None
        ids_J, probs_J = sparsify(log_q_1V[0], PROPOSAL_IDS)
        return sample_sparse(ids_J, probs_J, noise_1V[0]), (ids_J, probs_J)
