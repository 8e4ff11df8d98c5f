"""One token in one row in NumPy against the transformer it stands in for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from shared.config import TransformerConfig
from shared.models.kv_cache import KVCache, cache_window
from shared.models.lean import LeanRow, lean
from shared.models.transformer import Transformer

GROUPED = TransformerConfig(
    dim=32, n_layer=2, n_head=4, n_kv_head=2, vocab_size=40, grid=4, prefix_len=5, caption_dim=8,
    ffn_hidden=64, learned_positions=True,
)  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "as many": {"n_kv_head": None, "n_layer": 1},
    "shared table": {"learned_positions": False, "token_rows": 90, "image_start": 50},
    "one axis": {"rope_axes": 1, "norm_eps": 1e-3},
}


def transformer(**changes: object) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(replace(GROUPED, **changes))  # type: ignore[arg-type]
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.4)
    return model.eval()


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_a_token_leaves_the_same_state_and_the_same_cache(changes: dict[str, Any]) -> None:
    gpt = transformer(**changes)
    small, start = lean(gpt), 2
    assert small is not None
    cache, other = KVCache(gpt.config, 1), KVCache(gpt.config, 1)
    prompt = torch.randn(1, 3, 32)
    for each in (cache, other):
        gpt(prompt, cache_window([0], [[2, 3, 4]], [start]), each)
    row = LeanRow(small, other, 0, start)
    for place, token in enumerate([7, 0, 39, 7, 12, 1, 30]):
        x_1TD = gpt.embed_tokens(torch.tensor([[token]]), torch.tensor([[place]]))
        hidden_D = gpt(x_1TD, cache_window([0], [[5 + place]], [start]), cache)[0, -1]
        found_D = row.feed(token, place)
        torch.testing.assert_close(torch.from_numpy(found_D), hidden_D, rtol=1e-5, atol=1e-5)
        logits_V = torch.from_numpy(row.logits(found_D))
        torch.testing.assert_close(logits_V, gpt.logits(hidden_D), rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(other.layers, cache.layers, strict=True):
        torch.testing.assert_close(mine.keys, theirs.keys, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine.values, theirs.values, rtol=1e-4, atol=1e-5)


OTHER: list[dict[str, object]] = [
    {"rope_pairs": "halves"},
    {"swin_norm": True},
    {"q_norm_rows": 1, "k_norm_rows": 1},
    {"code_width": 8},
    {"head_hidden": 16},
]


@pytest.mark.parametrize("changes", OTHER)
def test_parts_that_are_not_written_are_not_guessed(changes: dict[str, object]) -> None:
    assert lean(transformer(**changes)) is None


def test_other_widths_than_fp32_are_left_to_torch() -> None:
    assert lean(transformer().bfloat16()) is None


def test_weights_are_read_where_they_are() -> None:
    """All but the gates of the feed-forward, which are laid beside each other."""
    gpt = transformer()
    small = lean(gpt)
    assert small is not None
    gpt.output.weight.data[3, 4] = 17.0
    assert small.head_VD[3, 4] == 17.0
