"""The core against upstream's numbers, and its cache against recomputation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from shared.config import TransformerConfig
from shared.models.kv_cache import KVCache, cache_window, plain_window
from shared.models.rope import rope_2d
from shared.models.transformer import Transformer

GOLDEN = load_file(Path(__file__).parent / "golden_llamagen.safetensors")
UPSTREAM = TransformerConfig(
    dim=32, n_layer=2, n_head=2, vocab_size=64, grid=4, prefix_len=120, caption_dim=24, ffn_hidden=256
)
SMALL = TransformerConfig(
    dim=32, n_layer=2, n_head=4, n_kv_head=2, vocab_size=40, grid=4, prefix_len=5, caption_dim=8,
    ffn_hidden=64, learned_positions=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def upstream() -> Transformer:
    """Upstream's tiny text-to-image model with its own weights, loaded strictly under upstream names."""
    model = Transformer(UPSTREAM)
    model.load_state_dict(
        {
            name.removeprefix("weight."): value.float()
            for name, value in GOLDEN.items()
            if "weight." in name[:7]
        }
    )
    return model.eval()


def _small() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(SMALL)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.3)
    return model.eval()


@torch.no_grad()
def _prompt(model: Transformer, guided: bool, row: int) -> Tensor:
    """Only the valid rows: padded ones may be dropped without changing an image logit."""
    length = int(GOLDEN["in.emb_masks"][row].sum())
    if not guided:
        return model.embed_nothing(length)
    return model.embed_caption(GOLDEN["in.cond"][row : row + 1, -length:])[0]


@torch.no_grad()
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("row", range(3))
def test_teacher_forced_logits_equal_upstream(upstream: Transformer, guided: bool, row: int) -> None:
    prompt = _prompt(upstream, guided, row)
    tokens = GOLDEN["in.tokens"][row : row + 1].long()
    x = torch.cat([prompt[None], upstream.embed_tokens(tokens[:, :-1], torch.arange(15)[None])], dim=1)
    start = 120 - len(prompt)
    positions = torch.arange(start, 135)[None]
    hidden = upstream(x, plain_window(positions, torch.tensor([start])))
    expected = GOLDEN["tf.logits_cond" if guided else "tf.logits_uncond"][row]
    torch.testing.assert_close(upstream.logits(hidden)[0, len(prompt) - 1 :], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_verifying_a_chunk_equals_upstream(upstream: Transformer) -> None:
    """Four tokens in one cached forward, after stale entries beyond them: 3 prompts x 2 guidance rows."""
    tokens, cache = GOLDEN["in.tokens"].long(), KVCache(UPSTREAM, 6)
    for slot in range(6):
        row, prompt = slot % 3, _prompt(upstream, slot < 3, slot % 3)
        start, places = 120 - len(prompt), torch.arange(16)[None]
        stale = upstream.embed_tokens(torch.full((1, 16), 7), places)
        known = upstream.embed_tokens(tokens[row : row + 1], places)
        x = torch.cat([prompt[None], known[:, :3], stale[:, 3:]], dim=1)
        upstream(x, cache_window([slot], [range(start, 136)], [start]), cache)
        window = cache_window([slot], [range(123, 127)], [start])
        logits = upstream.logits(upstream(known[:, 3:7], window, cache))[0]
        torch.testing.assert_close(logits, GOLDEN["verify.chunk_logits"][slot], atol=1e-5, rtol=0)


def test_rotary_prefix_rows_are_zero_and_image_rows_are_rotations() -> None:
    table = rope_2d(3, 4, 16, 10000.0)
    assert table.shape == (19, 8, 2) and not table[:3].any()
    torch.testing.assert_close(table[3:].square().sum(-1), torch.ones(16, 8))
    # Row 2, column 1: the first pairs turn by the row, the last by the column, slowest last.
    frequency = 10000.0 ** (-torch.arange(4) * 2 / 8)
    torch.testing.assert_close(table[3 + 2 * 4 + 1, :4, 1], (2 * frequency).sin())
    torch.testing.assert_close(table[3 + 2 * 4 + 1, 4:, 1], (1 * frequency).sin())


@torch.no_grad()
def _full(model: Transformer, prompt: Tensor, tokens: Tensor) -> Tensor:
    x = torch.cat([prompt, model.embed_tokens(tokens, torch.arange(len(tokens)))])[None]
    start = SMALL.prefix_len - len(prompt)
    positions = torch.arange(start, SMALL.prefix_len + len(tokens))[None]
    return model(x, plain_window(positions, torch.tensor([start])))[0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 5), st.integers(0, 2**16))
def test_cached_chunks_equal_one_forward(chunks: list[int], length: int, seed: int) -> None:
    """Any partition, with a wrong guess fed and rolled back before every chunk, gives the same hidden
    states."""
    model, generator = _small(), torch.Generator().manual_seed(seed)
    count = min(sum(chunks), SMALL.image_tokens)
    prompt = torch.randn(length, SMALL.dim, generator=generator)
    tokens = torch.randint(0, SMALL.vocab_size, (count,), generator=generator)
    wrong = torch.randint(0, SMALL.vocab_size, (1, 1), generator=generator)
    start, cache = SMALL.prefix_len - length, KVCache(SMALL, 3)
    with torch.no_grad():
        rows = [model(prompt[None], cache_window([1], [range(start, SMALL.prefix_len)], [start]), cache)[0]]
        place = 0
        for chunk in chunks:
            size = min(chunk, count - place)
            if size == 0:
                break
            at = SMALL.prefix_len + place
            model(
                model.embed_tokens(wrong, torch.tensor([[place]])), cache_window([1], [[at]], [start]), cache
            )
            x = model.embed_tokens(
                tokens[None, place : place + size], torch.arange(place, place + size)[None]
            )
            rows.append(model(x, cache_window([1], [range(at, at + size)], [start]), cache)[0])
            place += size
    torch.testing.assert_close(torch.cat(rows), _full(model, prompt, tokens), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_a_ragged_batch_equals_single_rows() -> None:
    """Short rows repeat their last token at its own position; unequal prompts and scattered slots do not
    matter."""
    model = _small()
    prompts = [torch.randn(n, SMALL.dim) for n in (2, 5)]
    tokens = [torch.tensor([3, 1, 4]), torch.tensor([1])]
    starts, cache = [3, 0], KVCache(SMALL, 4)
    for slot, prompt, start in zip((3, 0), prompts, starts, strict=True):
        model(prompt[None], cache_window([slot], [range(start, 5)], [start]), cache)
    ids = torch.tensor([[3, 1, 4], [1, 1, 1]])
    places = torch.tensor([[0, 1, 2], [0, 0, 0]])
    window = cache_window([3, 0], (places + 5).tolist(), starts)
    hidden = model(model.embed_tokens(ids, places), window, cache)
    for row, (prompt, known) in enumerate(zip(prompts, tokens, strict=True)):
        expected = _full(model, prompt, known)[len(prompt) :]
        torch.testing.assert_close(hidden[row, : len(known)], expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("config", [UPSTREAM, SMALL])
def test_a_folded_prefix_changes_nothing(config: TransformerConfig) -> None:
    """One entry of weight n for n caption rows, in a ragged batch with a row that is not folded."""
    torch.manual_seed(0)
    model, end = Transformer(config).eval(), config.prefix_len
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.3)
    lengths = (end, 2, 1, 4)
    plain, folded = KVCache(config, 4), KVCache(config, 4)
    for cache in (plain, folded):
        for slot, length in enumerate(lengths):
            rows = torch.randn(1, length, config.dim, generator=torch.Generator().manual_seed(slot))
            model(rows, cache_window([slot], [range(end - length, end)], [end - length]), cache)
    for slot in range(3):
        folded.fold(slot, end - lengths[slot], end)
    starts, weights = [end - 1] * 3 + [end - 4], [*lengths[:3], 1]
    slots, places = list(range(4)), torch.tensor([[0, 1, 2], [0, 0, 0], [0, 1, 1], [0, 1, 2]])
    x = model.embed_tokens(places + 3, places)
    positions = (places + end).tolist()
    expected = model(x, cache_window(slots, positions, [end - length for length in lengths]), plain)
    found = model(x, cache_window(slots, positions, starts, weights), folded)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    first = cache_window(slots[:2], [[end]] * 2, starts[:2], weights[:2]).first
    assert first == end - 1


def test_a_cleared_slot_is_zero_and_others_are_not() -> None:
    cache = KVCache(SMALL, 2)
    for layer in cache.layers:
        layer.keys.fill_(1)
        layer.values.fill_(1)
    cache.clear(0)
    for store in (store for layer in cache.layers for store in (layer.keys, layer.values)):
        assert not store[0].any() and store[1].all()
