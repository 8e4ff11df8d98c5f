"""Shapes of the published models, by their names in the zoo: what can be said of them without their files.

`ciar-eval engine` measures them with random weights; tables of memory are computed from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from shared.config import TransformerConfig

_LLAMAGEN_XL = TransformerConfig(
    dim=1280, n_layer=36, n_head=20, n_kv_head=20, vocab_size=16384, grid=16, prefix_len=120,
    caption_dim=2048, ffn_hidden=3584,
)  # fmt: skip
_ANOLE = TransformerConfig(
    dim=4096, n_layer=32, n_head=32, n_kv_head=32, vocab_size=8192, grid=32, prefix_len=128, caption_dim=0,
    ffn_hidden=11008, token_rows=65536, image_start=4, rope_axes=1, q_norm_rows=1, k_norm_rows=1,
)  # fmt: skip

_JANUS_7B = TransformerConfig(
    dim=4096, n_layer=30, n_head=32, n_kv_head=32, vocab_size=16384, grid=24, prefix_len=128, caption_dim=0,
    ffn_hidden=11008, norm_eps=1e-6, token_rows=102400, rope_axes=1, rope_pairs="halves", code_width=8,
    head_hidden=4096,
)  # fmt: skip
_JANUS_1B = replace(
    _JANUS_7B, dim=2048, n_layer=24, n_head=16, n_kv_head=16, ffn_hidden=5632, head_hidden=2048
)

SHAPES: Mapping[str, TransformerConfig] = MappingProxyType(
    {
        "llamagen-xl-256": _LLAMAGEN_XL,
        "llamagen-xl-512": replace(_LLAMAGEN_XL, grid=32),
        "anole": _ANOLE,
        "janus-pro-1b": _JANUS_1B,
        "janus-pro-7b": _JANUS_7B,
    }
)
