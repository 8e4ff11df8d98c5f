"""The keyed noise: published vectors, equality of both implementations, independence, law."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.decoding import noise
from shared.errors import InvalidRequest

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SEEDS = st.integers(0, noise.SEED_LIMIT - 1)
WORDS = st.integers(0, 2**32 - 1)

# Random123's kat_vectors, "philox4x32 10": key, counter, result.
VECTORS = [
    ("00000000 00000000", "00000000 00000000 00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff", "ffffffff ffffffff ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("a4093822 299f31d0", "243f6a88 85a308d3 13198a2e 03707344", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("key", "counter", "expected"), VECTORS)
def test_philox_gives_the_published_vectors(key: str, counter: str, expected: str) -> None:
    low, high = words(key)
    got = noise.philox4x32((low, high), np.array([words(counter)], dtype=np.uint32))
    assert got.dtype == np.uint32
    assert got[0].tolist() == words(expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("key", "counter", "expected"), VECTORS)
def test_philox_torch_gives_the_published_vectors(key: str, counter: str, expected: str, device: str) -> None:
    low, high = words(key)
    got = noise.philox4x32_torch((low, high), torch.tensor([words(counter)], device=device))
    assert got.tolist() == [words(expected)]


@pytest.mark.parametrize("device", DEVICES)
@given(
    low=WORDS, high=WORDS, counters=st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=1, max_size=20)
)
def test_both_implementations_agree_to_the_bit(
    device: str, low: int, high: int, counters: list[tuple[int, int, int, int]]
) -> None:
    expected = noise.philox4x32((low, high), np.array(counters, dtype=np.uint32))
    got = noise.philox4x32_torch((low, high), torch.tensor(counters, device=device))
    assert got.tolist() == expected.tolist()


def test_philox_leaves_its_counter_alone() -> None:
    counter = np.arange(12, dtype=np.uint32).reshape(3, 4)
    noise.philox4x32((1, 2), counter)
    assert counter.tolist() == np.arange(12).reshape(3, 4).tolist()
    counter_N4 = torch.arange(12).reshape(3, 4)
    noise.philox4x32_torch((1, 2), counter_N4)
    assert counter_N4.tolist() == counter.tolist()


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=50)
@given(seed=SEEDS, first=st.integers(0, 2**20), rows=st.integers(0, 5), size=st.integers(1, 37))
def test_torch_noise_equals_numpy_noise(device: str, seed: int, first: int, rows: int, size: int) -> None:
    positions = np.arange(first, first + rows)
    positions_T = torch.from_numpy(positions)
    u = noise.uniform(seed, positions, size, noise.RESIDUAL)
    u_TV = noise.uniform_torch(seed, positions_T, size, noise.RESIDUAL, device)
    assert (u_TV.cpu().numpy() == u).all()
    g = noise.gumbel(seed, positions, size, noise.RESIDUAL).numpy()
    g_TV = noise.gumbel_torch(seed, positions_T, size, noise.RESIDUAL, device).cpu().numpy()
    assert g.dtype == g_TV.dtype == np.float32
    assert g.shape == g_TV.shape == (rows, size)
    assert (np.abs(g - g_TV) <= np.spacing(np.maximum(np.abs(g), np.abs(g_TV))) + 1e-15).all()


@pytest.mark.parametrize("device", DEVICES)
def test_torch_gumbel_is_within_one_ulp_on_a_whole_image(device: str) -> None:
    g = noise.gumbel(7, range(256), 1024).numpy()
    g_TV = noise.gumbel_torch(7, torch.arange(256), 1024, device=device).cpu().numpy()
    assert (np.abs(g - g_TV) <= np.spacing(np.maximum(np.abs(g), np.abs(g_TV))) + 1e-15).all()


def test_element_layout_is_word_j_of_block_b() -> None:
    seed, position, stream = (5 << 32) | 9, 17, noise.GATE
    counter = np.array([[block, position, stream, 0] for block in range(3)], dtype=np.uint32)
    flat = noise.philox4x32((9, 5), counter).reshape(-1)[:10]
    assert noise.uniform(seed, [position], 10, stream)[0].tolist() == [(int(w) + 0.5) / 2**32 for w in flat]


def test_gumbel_is_minus_log_minus_log_in_fp64() -> None:
    u = noise.uniform(3, [4, 5], 1000, noise.DRAW)
    assert (noise.gumbel(3, [4, 5], 1000).numpy() == (-np.log(-np.log(u))).astype(np.float32)).all()


@settings(max_examples=50)
@given(seed=SEEDS, position=st.integers(0, 2**31), size=st.integers(1, 30), more=st.integers(0, 9))
def test_a_row_depends_only_on_seed_position_and_stream(
    seed: int, position: int, size: int, more: int
) -> None:
    row = noise.gumbel(seed, [position], size)[0]
    among_others = noise.gumbel(seed, [position + 1, position, 3], size + more)[1, :size]
    assert torch.equal(row, among_others)


def test_every_part_of_the_key_matters() -> None:
    def first(seed: int, position: int, stream: int) -> float:
        return float(noise.uniform(seed, [position], 1, stream)[0, 0])

    streams = (noise.DRAW, noise.ACCEPT, noise.RESIDUAL, noise.GATE)
    seeds = (0, 1, 1 << 32, noise.SEED_LIMIT - 1)
    values = {first(seed, position, stream) for seed in seeds for position in range(5) for stream in streams}
    assert len(values) == len(seeds) * 5 * len(streams)


def test_no_word_leaves_the_open_unit_interval() -> None:
    for word in (0, 2**32 - 1):
        u = np.float64(word) + 0.5
        u *= 2.0**-32
        assert 0.0 < u < 1.0
        assert np.isfinite(np.float32(-np.log(-np.log(u))))


def test_uniforms_are_uniform() -> None:
    """Chi-square, 64 cells, 262,144 numbers per stream; false-alarm rate 1e-6 per stream."""
    for stream in (noise.DRAW, noise.ACCEPT, noise.RESIDUAL, noise.GATE):
        u = noise.uniform(2**40 + 1, range(256), 1024, stream)
        counts = torch.from_numpy(np.bincount((u * 64).astype(np.int64).ravel(), minlength=64)).double()
        statistic = ((counts - 4096) ** 2 / 4096).sum()
        assert torch.special.gammaincc(torch.tensor(31.5).double(), statistic / 2) > 1e-6


def test_neighbouring_rows_and_streams_do_not_correlate() -> None:
    """Correlation of 65,536 pairs: standard deviation 1/256, band 5 of them (false alarm 6e-7 per pair)."""
    rows = [
        noise.uniform(seed, [t], 65536, stream)[0] for seed in (0, 1) for t in (0, 1) for stream in (0, 1)
    ]
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlation).max() < 5 / 256


def test_gumbel_has_its_mean_and_variance() -> None:
    """Mean Euler's gamma, variance pi^2/6; bands of 5 standard errors over 262,144 numbers."""
    g = noise.gumbel(11, range(256), 1024).double()
    assert abs(float(g.mean()) - 0.5772157) < 5 * 1.2825 / 512
    assert abs(float(g.var()) - np.pi**2 / 6) < 5 * 3.46 / 512


@pytest.mark.parametrize("seed", [0, 1, noise.SEED_LIMIT - 1])
def test_seeds_in_range_pass(seed: int) -> None:
    assert noise.check_seed(seed) == seed
    assert noise.gumbel(seed, [0], 4).isfinite().all()


@pytest.mark.parametrize("seed", [-1, noise.SEED_LIMIT, 10**30])
def test_seeds_out_of_range_are_named(seed: int) -> None:
    for act in (noise.check_seed, lambda bad: noise.gumbel(bad, [0], 4)):
        with pytest.raises(InvalidRequest, match=str(seed)) as caught:
            act(seed)
        assert str(noise.SEED_LIMIT - 1) in str(caught.value)
