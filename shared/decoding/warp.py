"""The warp: guidance, temperature, top-k, top-p, in this order, for device and cloud alike.

Knows nothing of models. Everywhere else in this project `p` and `q` are distributions *after* this warp
(SPEC section 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shared.errors import InvalidRequest

MAX_GUIDANCE = 100.0
MAX_TEMPERATURE = 100.0
MIN_TEMPERATURE = 1e-5  # temperature 0 means "almost greedy", as in LlamaGen: divide by this instead
_LIKELIEST = 64  # tokens among which top-p is looked for before everything is sorted


@dataclass(frozen=True)
class Warp:
    """How logits become the distribution that is drawn from. Raises InvalidRequest on a value out of range.

    guidance     s in z = z_u + s (z_c - z_u), 0 .. 100; 1 is plain conditional sampling
    temperature  0 .. 100; 0 is greedy
    top_k        keep the k largest logits, ties with the k-th included; 0 is off
    top_p        keep the smallest set whose mass exceeds p, 0 < p <= 1; 1 is off
    """

    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        # Written so that NaN fails every test.
        _require(0.0 <= self.guidance <= MAX_GUIDANCE, "guidance", self.guidance, f"0 to {MAX_GUIDANCE:g}")
        in_range = 0.0 <= self.temperature <= MAX_TEMPERATURE
        _require(in_range, "temperature", self.temperature, f"0 to {MAX_TEMPERATURE:g}")
        whole = self.top_k >= 0 and self.top_k % 1 == 0
        _require(whole, "top_k", self.top_k, "0, 1, 2, ... (0 is off)")
        _require(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0, up to 1 (1 is off)")

    @property
    def unfiltered(self) -> Warp:
        """The same warp without top-k and top-p: what a gate reads, since a filter that leaves one id of
        several would make it certain."""
        return replace(self, top_k=0, top_p=1.0)


def guide(cond_TV: Tensor, uncond_TV: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance z = z_u + s (z_c - z_u): fp32 [T, V]."""
    uncond_TV = uncond_TV.float()
    return uncond_TV + scale * (cond_TV.float() - uncond_TV)


def warp_logits(logits_TV: Tensor, warp: Warp) -> Tensor:
    """Temperature, top-k, top-p, then log-softmax of guided logits: fp32 [T, V], filtered ids are -inf."""
    logits_TV = logits_TV.float() / max(warp.temperature, MIN_TEMPERATURE)
    if 0 < warp.top_k < logits_TV.shape[-1]:
        logits_TV = _keep_top_k(logits_TV, warp.top_k)
    if warp.top_p < 1.0:
        logits_TV = _keep_top_p(logits_TV, warp.top_p)
    return logits_TV.log_softmax(-1)


def log_probs(cond_TV: Tensor, uncond_TV: Tensor | None, warp: Warp) -> Tensor:
    """The whole warp: fp32 [T, V] log-probabilities.

    `uncond_TV` is None where there is no unconditional row (guidance 1, or distilled into the model); then
    `warp.guidance` is not applied.
    """
    logits_TV = cond_TV if uncond_TV is None else guide(cond_TV, uncond_TV, warp.guidance)
    return warp_logits(logits_TV, warp)


def _keep_top_k(logits_TV: Tensor, k: int) -> Tensor:
    kth_T1 = logits_TV.topk(k, dim=-1).values[..., -1:]
    return logits_TV.masked_fill(logits_TV < kth_T1, -torch.inf)


def _keep_top_p(logits_TV: Tensor, p: float) -> Tensor:
    # A token goes when the mass *before* it already exceeds p: the token that crosses the line is kept.
    probs_TV = logits_TV.softmax(-1)
    if logits_TV.shape[-1] > _LIKELIEST:
        top_TK, order_TK = logits_TV.topk(_LIKELIEST, dim=-1)
        crossing_T1 = (probs_TV.gather(-1, order_TK).cumsum(-1) <= p).sum(-1, keepdim=True)
        if bool((crossing_T1 < _LIKELIEST).all()):
            kept_TV = logits_TV >= top_TK.gather(-1, crossing_T1)
            if bool((kept_TV.sum(-1, keepdim=True) == crossing_T1 + 1).all()):  # no equal logit at the line
                return logits_TV.masked_fill(~kept_TV, -torch.inf)
    return _keep_top_p_sorted(logits_TV, probs_TV, p)


def _keep_top_p_sorted(logits_TV: Tensor, probs_TV: Tensor, p: float) -> Tensor:
    """The same by sorting everything, which takes several times as long."""
    # Stable, so that equal logits at the boundary are kept in the same order on every machine.
    order_TV = logits_TV.sort(dim=-1, descending=True, stable=True).indices
    crossed_TV = probs_TV.gather(-1, order_TV).cumsum(-1) > p
    dropped_TV = torch.zeros_like(crossed_TV)
    dropped_TV[..., 1:] = crossed_TV[..., :-1]
    return logits_TV.masked_fill(dropped_TV.scatter(-1, order_TV, dropped_TV), -torch.inf)


def _require(holds: bool, name: str, value: float, allowed: str) -> None:
    if not holds:
        raise InvalidRequest(f"{name} {value} is out of range", f"allowed: {allowed}")
