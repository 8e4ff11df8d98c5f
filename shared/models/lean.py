"""One new token in one row through the transformer, in NumPy: what a device does most, at a fraction of what
torch takes to start as many small operations.

It reads the very weights and writes the very cache that `Transformer.forward` has; the numbers are its own up
to rounding. Knows no gates and no noise. Shapes: S visible positions, D width, H heads, K heads of keys and
values, F hidden width, V codebook.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.models.inter_head import InterHead
from shared.models.kv_cache import KVCache
from shared.models.transformer import Block, Transformer

Floats = NDArray[np.float32]
_STEEPEST = np.float32(80.0)  # e^80 is finite in fp32, and silu(-80) is 0


@dataclass(frozen=True, eq=False, slots=True)
class _Layer:
    """Weights of a block, all but `gates_FD` shared with it: w1 above w3, so that both are one product."""

    read_D: Floats
    qkv: Floats
    out: Floats
    read_ffn_D: Floats
    gates_FD: Floats
    down: Floats

    @classmethod
    def of(cls, block: Block) -> _Layer:
        """The weights of one block."""
        attention, forward = block.attention, block.feed_forward
        gates = torch.cat([forward.w1.weight, forward.w3.weight])
        norms = block.attention_norm.weight, block.ffn_norm.weight
        rest = attention.wqkv.weight, attention.wo.weight, gates, forward.w2.weight
        read_D, read_ffn_D, qkv, out, gates_FD, down = map(_array, (*norms, *rest))
        return cls(read_D, qkv, out, read_ffn_D, gates_FD, down)


class Lean:
    """A transformer for one row and one token at a time; `lean` says whether there is one for it."""

    def __init__(self, gpt: Transformer) -> None:
        config = self.config = gpt.config
        self.tokens = _array(gpt.tok_embeddings.weight)[config.image_start :]
        self.places = _array(gpt.pos_embeddings.weight) if config.learned_positions else None
        self.layers = [_Layer.of(block) for block in gpt.layers if isinstance(block, Block)]
        self.norm_D, self.eps = _array(gpt.norm.weight), gpt.norm.eps
        assert isinstance(gpt.output, nn.Linear)
        self.head_VD = _array(gpt.output.weight)
        # (cos, sin) as one complex number: a pair of components times it is the pair turned.
        self.turns = _array(gpt.rope).view(np.complex64)[:, :, 0]


class LeanRadius:
    """The radius half of an Inter-Head (eq. 3) for one place; it is read by few gates."""

    def __init__(self, head: InterHead) -> None:
        self.weight_VD, self._most = _array(head.radius.weight), np.float32(head.radius_max)
        self._bias_V = _array(head.radius.bias)

    def __call__(self, hidden_D: Floats) -> Floats:
        """[D] -> radii [V] in [0, r_max]."""
        raw_V = self.weight_VD @ hidden_D
        raw_V += self._bias_V
        # softplus(x) >= r_max from x = r_max on, so nothing larger need be raised to a power.
        radius_V: Floats = np.log1p(np.exp(np.minimum(raw_V, self._most)))
        return np.minimum(radius_V, self._most, out=radius_V)


class LeanRow:
    """One row of a cache at work; what it writes there is what a forward of the transformer would."""

    def __init__(self, lean: Lean, cache: KVCache, slot: int, start: int) -> None:
        self._lean, self._config, self._start = lean, lean.config, start
        self._stores = [(store.keys[slot].numpy(), store.values[slot].numpy()) for store in cache.layers]

    def feed(self, token: int, place: int) -> Floats:
        """An image token at its image place, behind everything before it: its normalised hidden state [D]."""
        lean, position = self._lean, self._config.prefix_len + place
        x_D = lean.tokens[token] if lean.places is None else lean.tokens[token] + lean.places[place]
        for layer, store in zip(lean.layers, self._stores, strict=True):
            x_D = x_D + layer.out @ self._attended(layer, self._normed(x_D, layer.read_D), position, *store)
            x_D = x_D + layer.down @ _swiglu(layer.gates_FD @ self._normed(x_D, layer.read_ffn_D))
        return self._normed(x_D, lean.norm_D)

    def logits(self, hidden_D: Floats) -> Floats:
        """[D] -> [V]."""
        logits_V: Floats = self._lean.head_VD @ hidden_D
        return logits_V

    def _normed(self, x_D: Floats, weight_D: Floats) -> Floats:
        normed_D: Floats = x_D * np.float32(1.0 / math.sqrt(float(x_D @ x_D) / len(x_D) + self._lean.eps))
        normed_D *= weight_D
        return normed_D

    def _attended(self, layer: _Layer, x_D: Floats, position: int, keys: Floats, values: Floats) -> Floats:
        config, turn_P = self._config, self._lean.turns[position]
        heads, kept = config.n_head, config.kv_heads
        qkv_HD = (layer.qkv @ x_D).reshape(heads + 2 * kept, config.head_dim)
        turned_HD = (qkv_HD[: heads + kept].view(np.complex64) * turn_P).view(np.float32)
        keys[position], values[position] = turned_HD[heads:], qkv_HD[heads + kept :]
        keys_KDS = keys[self._start : position + 1].transpose(1, 2, 0)
        values_KSD = values[self._start : position + 1].transpose(1, 0, 2)
        q_KGD = turned_HD[:heads].reshape(kept, heads // kept, config.head_dim)
        weights_KGS = (q_KGD * np.float32(config.head_dim**-0.5)) @ keys_KDS
        weights_KGS -= weights_KGS.max(-1, keepdims=True)
        np.exp(weights_KGS, out=weights_KGS)
        weights_KGS /= weights_KGS.sum(-1, keepdims=True)
        attended: Floats = (weights_KGS @ values_KSD).reshape(-1)
        return attended


def lean(gpt: Transformer) -> Lean | None:
    """The same transformer for one row and token; None where it has parts that are not written here, or is
    not fp32 on a CPU."""
    config = gpt.config
    other = config.swin_norm or config.q_norm_rows or config.code_width or config.head_hidden
    plain = not other and config.rope_pairs == "adjacent" and isinstance(gpt.output, nn.Linear)
    return Lean(gpt) if plain and gpt.dtype == torch.float32 and gpt.device.type == "cpu" else None


def _swiglu(gates_F: Floats) -> Floats:
    """silu(first half) * second half."""
    gate_F, up_F = gates_F.reshape(2, -1)
    divisor_F: Floats = np.exp(np.minimum(-gate_F, _STEEPEST))
    divisor_F += np.float32(1.0)
    gated_F: Floats = gate_F / divisor_F
    gated_F *= up_F
    return gated_F


def _array(weight: Tensor) -> Floats:
    """A view of a weight; a copy only where its memory is not in order."""
    view: Floats = weight.detach().contiguous().numpy()
    return view
