"""The keyed noise g(seed, t) that both sides compute and nobody sends (SPEC section 3).

Knows nothing of models. Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011)
with key = (low, high 32 bits of the seed) and counter = (block, position, stream, 0); word j of block b is
element 4b + j of the row.
Uniforms are equal to the bit on NumPy, torch CPU and CUDA. Gumbel noise is equal within one fp32 ulp,
because `log` differs in its last fp64 bit between libraries (where |g| < 1e-8: within 1e-15 instead).
Every function that takes a seed raises InvalidRequest unless 0 <= seed < 2**64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import InvalidRequest

SEED_LIMIT = 2**64

Positions = Sequence[int] | NDArray[np.int64]  # image positions, counted from 0

# Streams: independent noise for independent purposes at one (seed, position).
DRAW = 0  # the Gumbel noise shared by device and cloud
ACCEPT = 1  # the uniform of rejection acceptance
RESIDUAL = 2  # the Gumbel noise of the residual draw
GATE = 3  # the uniform of the random gate
START = 4  # the Gaussian noise a continuous token begins with
STEP = 5  # that of its denoising steps
ORDER = 6  # the order in which places are revealed
VECTORS = 7  # the uniforms of the discrete gate
PATHS = 8  # the Gaussian noise of what replaces a refused continuous token
PICK = 9  # the uniforms that choose among such replacements

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF
_LOW = np.uint64(_MASK)
_WORDS = 4


def check_seed(seed: int) -> int:
    """Return `seed` unchanged, or raise InvalidRequest unless 0 <= seed < 2**64."""
    if not 0 <= seed < SEED_LIMIT:
        raise InvalidRequest(f"seed {seed} is out of range", f"allowed: integers from 0 to {SEED_LIMIT - 1}")
    return seed


def philox4x32(key: tuple[int, int], counter_N4: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Philox4x32-10 of N counters under one key: uint32 [N, 4] -> uint32 [N, 4]."""
    # Each word of all counters lies in memory of its own: strided words would take eight times as long.
    a_N, b_N, c_N, d_N = (np.ascontiguousarray(word_N, dtype=np.uint64) for word_N in counter_N4.T)
    first, second = map(np.uint64, _MULTIPLIERS)
    for low, high in _round_keys(key):
        a_N *= first
        c_N *= second
        new_a_N, new_c_N = c_N >> np.uint64(32), a_N >> np.uint64(32)
        new_a_N ^= b_N
        new_c_N ^= d_N
        new_a_N ^= np.uint64(low)
        new_c_N ^= np.uint64(high)
        b_N, d_N = np.bitwise_and(c_N, _LOW, out=c_N), np.bitwise_and(a_N, _LOW, out=a_N)
        a_N, c_N = new_a_N, new_c_N
    words_N4 = np.empty(counter_N4.shape, dtype=np.uint32)
    for column, word_N in enumerate((a_N, b_N, c_N, d_N)):
        words_N4[:, column] = word_N
    return words_N4


def philox4x32_torch(key: tuple[int, int], counter_N4: Tensor) -> Tensor:
    """`philox4x32` on any device: int64 [N, 4] -> int64 [N, 4], every word in 0 .. 2**32 - 1."""
    even_2N, odd_2N = counter_N4.T[0::2], counter_N4.T[1::2]
    multipliers_21 = torch.tensor(_MULTIPLIERS, device=counter_N4.device).unsqueeze(1)
    for round_key in _round_keys(key):
        # The product wraps in two's complement: its 64 bits are the unsigned ones, masks restore both halves.
        product_2N = (even_2N * multipliers_21).flip(0)
        key_21 = torch.tensor(round_key, device=counter_N4.device).unsqueeze(1)
        even_2N, odd_2N = ((product_2N >> 32) & _MASK) ^ odd_2N ^ key_21, product_2N & _MASK
    return torch.stack((even_2N.T, odd_2N.T), dim=-1).reshape(-1, _WORDS)


def uniform(seed: int, positions: Positions, size: int, stream: int) -> NDArray[np.float64]:
    """fp64 [T, size] uniforms strictly inside (0, 1), one row per position."""
    rows, blocks = len(positions), -(-size // _WORDS)
    block_N, position_N = np.tile(np.arange(blocks), rows), np.repeat(positions, blocks)
    return _uniform_blocks(seed, block_N, position_N, stream).reshape(rows, blocks * _WORDS)[:, :size]


def gumbel(seed: int, positions: Positions, size: int, stream: int = DRAW) -> Tensor:
    """g = -log(-log u) of `uniform`, computed in fp64: fp32 [T, V]."""
    return torch.from_numpy(_to_gumbel(uniform(seed, positions, size, stream)))


def gumbel_where(wanted_TV: NDArray[np.bool_], seed: int, positions: Positions, stream: int = DRAW) -> Tensor:
    """`gumbel` where it is wanted, 0 where nothing near is: fp32 [T, V]. Few wanted ids cost little."""
    rows, size = wanted_TV.shape
    blocks = -(-size // _WORDS)
    wanted_TB4 = np.pad(wanted_TV, ((0, 0), (0, blocks * _WORDS - size))).reshape(rows, blocks, _WORDS)
    row_N, block_N = np.nonzero(wanted_TB4.any(axis=-1))
    g_TB4 = np.zeros(wanted_TB4.shape, dtype=np.float32)
    position_N = np.asarray(positions, dtype=np.int64)[row_N]
    g_TB4[row_N, block_N] = _to_gumbel(_uniform_blocks(seed, block_N, position_N, stream))
    return torch.from_numpy(g_TB4.reshape(rows, -1)[:, :size])


def _uniform_blocks(
    seed: int, block_N: NDArray[np.int64], position_N: NDArray[np.int64], stream: int
) -> NDArray[np.float64]:
    """The four uniforms of each counter: fp64 [N, 4]."""
    counter_N4 = np.zeros((len(block_N), _WORDS), dtype=np.uint32)
    counter_N4[:, 0], counter_N4[:, 1], counter_N4[:, 2] = block_N, position_N, stream
    u_N4 = philox4x32(_key(seed), counter_N4).astype(np.float64)
    u_N4 += 0.5
    u_N4 *= 2.0**-32
    return u_N4


def _to_gumbel(u: NDArray[np.float64]) -> NDArray[np.float32]:
    """In place, then fp32."""
    for _ in range(2):
        np.log(u, out=u)
        np.negative(u, out=u)
    return u.astype(np.float32)


def gumbel_torch(
    seed: int, positions_T: Tensor, size: int, stream: int = DRAW, device: torch.device | str = "cpu"
) -> Tensor:
    """`gumbel` computed wholly on `device`: fp32 [T, V], within one ulp."""
    u_TV = uniform_torch(seed, positions_T, size, stream, device)
    return u_TV.log_().neg_().log_().neg_().float()


def uniform_torch(
    seed: int, positions_T: Tensor, size: int, stream: int, device: torch.device | str = "cpu"
) -> Tensor:
    """`uniform` computed wholly on `device`: fp64 [T, size], equal to the bit."""
    blocks = -(-size // _WORDS)
    counter_TB4 = torch.zeros((len(positions_T), blocks, _WORDS), dtype=torch.int64, device=device)
    counter_TB4[:, :, 0] = torch.arange(blocks, device=device)
    counter_TB4[:, :, 1] = positions_T.to(device).unsqueeze(1)
    counter_TB4[:, :, 2] = stream
    words = philox4x32_torch(_key(seed), counter_TB4.reshape(-1, _WORDS))
    u_TV = words.reshape(len(positions_T), blocks * _WORDS)[:, :size].double()
    return u_TV.add_(0.5).mul_(2.0**-32)


def _key(seed: int) -> tuple[int, int]:
    seed = check_seed(seed)
    return seed & _MASK, seed >> 32


def _round_keys(key: tuple[int, int]) -> Iterator[tuple[int, int]]:
    low, high = key
    for _ in range(_ROUNDS):
        yield low, high
        low, high = (low + _KEY_STEPS[0]) & _MASK, (high + _KEY_STEPS[1]) & _MASK
