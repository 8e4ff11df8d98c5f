"""Decoding by scales, as in VAR and CoDe: guidance that grows with the scale, the draw of a whole scale, and
CIAR's question of when to have a scale verified.

Knows no model. Shapes: B images, T tokens of one scale, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.decoding.noise import gumbel
from shared.decoding.warp import Warp, warp_logits
from shared.errors import InvalidRequest

MAX_PLACES = 2**16  # of one scale: more would share noise with the next one
# What a small model at one scale of ten costs in FID (CoDe, table 4): what a bad token there weighs.
HARM = (0.28, 0.28, 0.40, 0.32, 0.22, 0.14, 0.14, 0.13, 0.07, 0.04)
VERDICTS = ("all", "bad")


def guidance_at(scale: int, scales: int, strength: float) -> float:
    """t of `guide_scale`: 0 at the first scale, the full strength at the last."""
    return strength * scale / max(scales - 1, 1)


def guide_scale(cond_BTV: Tensor, uncond_BTV: Tensor, t: float) -> Tensor:
    """(1 + t) conditional - t unconditional: guidance weight 1 + t."""
    return (1 + t) * cond_BTV - t * uncond_BTV


def truncated(logits_BTV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Log-probabilities after top-k, then top-p (0 and 0 are off): -inf where nothing is drawn."""
    return warp_logits(logits_BTV, Warp(top_k=top_k, top_p=top_p or 1.0))


def draw(log_p_BTV: Tensor, noise_BTV: Tensor, temperature: float = 1.0) -> Tensor:
    """argmax(log p / temperature + Gumbel noise): a sample for each place, [B, T].

    The temperature comes after the truncation, as in CoDe: it does not change which codes are kept.
    """
    return (log_p_BTV / temperature + noise_BTV).argmax(-1)


def drawn(logits_BTV: Tensor, warp: Warp, noise_BTV: Tensor) -> Tensor:
    """Tokens [B, T] of a scale from guided logits, as `warp` says; temperature 0 is greedy."""
    log_p_BTV = truncated(logits_BTV, warp.top_k, warp.top_p)
    return draw(log_p_BTV, noise_BTV, warp.temperature) if warp.temperature else log_p_BTV.argmax(-1)


def smoothed(log_p_BTV: Tensor, noise_BTV: Tensor, progress: float) -> Tensor:
    """Weights [B, T, V] of VAR's smooth pictures: a softmax in place of the argmax, sharper with `progress`
    from 0 to 1. The map is then no map of tokens, so nothing drawn this way can be verified."""
    sharpness = max(0.27 * (1 - 0.95 * progress), 0.005)
    return ((log_p_BTV * (1 + progress) + noise_BTV) / sharpness).softmax(-1)


def scale_noise(seeds: Sequence[int], scale: int, places: int, size: int) -> Tensor:
    """Gumbel noise [B, T, V] of a scale, keyed by (seed, scale, place): one seed an image, so no image
    depends on those beside it. Raises InvalidRequest for a seed out of range or more than MAX_PLACES."""
    if places > MAX_PLACES:
        raise InvalidRequest(f"a scale of {places} places", f"allowed: up to {MAX_PLACES}")
    keys = [scale * MAX_PLACES + place for place in range(places)]
    return torch.stack([gumbel(seed, keys, size) for seed in seeds])


@dataclass(frozen=True)
class AskRule:
    """When a device has a scale verified. Raises InvalidRequest unless 0 <= share.

    share  ask where more than this share of a scale's places is bad
    debt   or where the shares since the last request, weighted with HARM, exceed this
    until  scales from here on are never asked: they cost the cloud most and harm least
    """

    share: float = 0.25
    debt: float = 0.1
    until: int = 8

    def __post_init__(self) -> None:
        if not (self.share >= 0 and self.debt >= 0):
            raise InvalidRequest(f"share {self.share}, debt {self.debt}", "allowed: 0 and above")

    def owed(self, debt: float, scale: int, bad: float) -> float:
        """The debt after a scale of which that share is bad."""
        return debt + HARM[min(scale, len(HARM) - 1)] * bad

    def asks(self, debt: float, scale: int, bad: float) -> bool:
        """Whether to have this scale verified, with `debt` as before it."""
        return scale < self.until and (bad > self.share or self.owed(debt, scale, bad) > self.debt)


def settled(device_BT: Tensor, cloud_BT: Tensor, bad_BT: Tensor, verdict: str = "all") -> Tensor:
    """The tokens that stand: the cloud's everywhere, which makes the scale exact at no extra cost, or only
    where the device called its own bad. Raises InvalidRequest for another verdict."""
    if verdict not in VERDICTS:
        raise InvalidRequest(f"no verdict {verdict!r}", f"allowed: {', '.join(VERDICTS)}")
    return cloud_BT if verdict == "all" else torch.where(bad_BT, cloud_BT, device_BT)


def packed(tokens: Sequence[int], vocab_size: int) -> bytes:
    """Tokens in as few bits as the codes need, the highest bit first: what CoDe's hand-over and every scale
    is on the wire. All maps follow from the tokens. Raises InvalidRequest for a token that is no code."""
    ids = np.asarray(tokens, dtype=np.int64)
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise InvalidRequest(f"tokens {ids.min()} to {ids.max()}", f"allowed: 0 to {vocab_size - 1}")
    bits = _bits(vocab_size)
    return np.packbits((ids[:, None] >> np.arange(bits)[::-1]) & 1).tobytes()


def unpacked(data: bytes, count: int, vocab_size: int) -> list[int]:
    """`packed` undone. Raises InvalidRequest unless `data` is `count` codes and nothing else."""
    bits = _bits(vocab_size)
    if len(data) != -(-count * bits // 8):
        what = f"{len(data)} bytes for {count} tokens of {bits} bits"
        raise InvalidRequest(what, "a message of another model?")
    found = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    rows = found[: count * bits].reshape(count, bits).astype(np.int64)
    ids: list[int] = (rows << np.arange(bits)[::-1]).sum(1).tolist()
    if found[count * bits :].any() or any(token >= vocab_size for token in ids):
        raise InvalidRequest("these bytes are no tokens", f"allowed: codes 0 to {vocab_size - 1}, then zeros")
    return ids


def _bits(vocab_size: int) -> int:
    return max(vocab_size - 1, 1).bit_length()
