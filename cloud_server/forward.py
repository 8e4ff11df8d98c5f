"""One forward over a batch of cache rows: eager, or through compiled code at padded shapes.

Knows nothing of sessions or judgements. Shapes: B cache rows, T new positions, S visible positions, D width.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from shared.errors import CiarError
from shared.models.kv_cache import Apart, KVCache, Window, cache_window, visible
from shared.models.transformer import Transformer
from shared.models.woven import Weave, weave

# Compiled shapes. What lies between two of them is padded to the larger one.
LENGTH_STEP = 64  # visible positions
ROW_STEPS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
TOKEN_STEPS = (1, 2, 3, 5, 9, 17, 33)  # a span of 2^n and the token before it
_MOST_KINDS = 64  # kinds of code that one process may compile before it gives up
_REHEARSALS = 2  # runs before a recording: the first compiles, the second finds everything allocated


class Rows(NamedTuple):
    """The cache rows of a forward, one entry each: slot, positions of its new tokens (equally many in every
    row), first visible position, and how often the entry there counts; and what restricts them all."""

    slots: Sequence[int]
    positions: Sequence[Sequence[int]]
    starts: Sequence[int]
    weights: Sequence[int]
    weave: Weave | None = None

    @property
    def width(self) -> int:
        """T."""
        return len(self.positions[0])

    def padded(self, rows: int, tokens: int) -> Rows:
        """The last row and the last token of each row repeated: they rewrite entries with the same values."""
        extra = rows - len(self.slots)
        own = [[*row, *[row[-1]] * (tokens - len(row))] for row in self.positions]
        columns = (self.slots, own, self.starts, self.weights)
        return Rows._make([*([*column, *[column[-1]] * extra] for column in columns), None])


class Forward(Protocol):
    """Runs the transformer over one x_BTD per entry of `rows`, extends the cache, and returns as many hidden
    states [B, T, D]."""

    def __call__(self, x: Sequence[Tensor], rows: Sequence[Rows]) -> list[Tensor]: ...


@dataclass(frozen=True, eq=False)
class Eager:
    """A Forward without compilation, of any shape.

    On a CPU products dominate, so no token is computed twice and each entry attends by itself. A GPU would
    rather compute some tokens twice than start a kernel per entry: there all entries are padded to one shape.
    """

    gpt: Transformer
    cache: KVCache

    def __call__(self, x: Sequence[Tensor], rows: Sequence[Rows]) -> list[Tensor]:
        """As Forward."""
        if len(rows) == 1:
            return [self.gpt(x[0], self._window(rows[0], [rows[0].weave] * len(rows[0].slots)), self.cache)]
        if self.gpt.device.type != "cpu":
            weaves = [own.weave for own in rows for _ in own.slots]
            hidden_BTD = self.gpt(pad(x), self._window(join(rows), weaves), self.cache)
            return apart(hidden_BTD, rows)
        windows = [self._window(own, [own.weave] * len(own.slots)) for own in rows]
        x_1ND = torch.cat([own.flatten(0, 1) for own in x])[None]
        hidden_1ND = self.gpt(x_1ND, Apart.of(windows), self.cache)
        parts = torch.split_with_sizes(hidden_1ND[0], [len(own.slots) * own.width for own in rows])
        return [part.view(-1, own.width, part.shape[-1]) for part, own in zip(parts, rows, strict=True)]

    def _window(self, rows: Rows, weaves: Sequence[Weave | None]) -> Window:
        columns = (rows.slots, rows.positions, rows.starts, rows.weights)
        return weave(cache_window(*columns, device=self.gpt.device), weaves)


def pad(x: Sequence[Tensor]) -> Tensor:
    """One x_BTD of several, the last token of the shorter ones repeated."""
    longest = max(own.shape[1] for own in x)
    return torch.cat([own[:, _repeat(own.shape[1], longest)] for own in x])


def join(rows: Sequence[Rows]) -> Rows:
    """All of them as one entry, padded like `pad`; without what restricts them."""
    longest = max(own.width for own in rows)
    wide = [own.padded(len(own.slots), longest) for own in rows]
    *columns, _ = zip(*wide, strict=True)
    return Rows._make([*([*chain.from_iterable(column)] for column in columns), None])


def apart(hidden_BTD: Tensor, rows: Sequence[Rows]) -> list[Tensor]:
    """What belongs to each entry of what was joined."""
    parts = torch.split_with_sizes(hidden_BTD, [len(own.slots) for own in rows])
    return [part[:, : own.width] for part, own in zip(parts, rows, strict=True)]


class Inputs(NamedTuple):
    """What a compiled forward reads, tensors alone, so that a recording can be replayed on new values."""

    x_BTD: Tensor
    positions_BT: Tensor
    starts_B: Tensor
    log_weights_B: Tensor
    slots_B: Tensor


# (inputs, visible length S, whether the rows are the slots 0 .. B - 1, which are read without a copy)
Decode = Callable[[Inputs, int, bool], Tensor]


class Compiled:
    """A Forward through torch.compile, and on CUDA through one recorded graph per (rows, tokens, length).

    Forwards of more than `TOKEN_STEPS[-1]` tokens, and restricted ones, run eagerly. `folds` says whether
    entries may count several times. `warm` has to run once, under the same inference mode as every call.
    """

    def __init__(self, gpt: Transformer, cache: KVCache, slots: int, *, folds: bool) -> None:
        self._gpt, self._cache, self._slots, self._folds = gpt, cache, slots, folds
        self._eager = Eager(gpt, cache)
        for store in (store for layer in cache.layers for store in (layer.keys, layer.values)):
            torch._dynamo.mark_static(store)
        # One dynamic shape serves all sizes; `fullgraph` turns a silent fall-back to eager into an error.
        compiled: Decode = torch.compile(self._decode, dynamic=True, fullgraph=True)
        self._graphs = gpt.device.type == "cuda"
        self._run: Decode = Recorded(compiled) if self._graphs else compiled

    def __call__(self, x: Sequence[Tensor], rows: Sequence[Rows]) -> list[Tensor]:
        """As Forward."""
        if any(own.weave or own.width > TOKEN_STEPS[-1] for own in rows):
            return self._eager(x, rows)
        return apart(self._decoded(pad(x), join(rows)), rows)

    def _decoded(self, x_BTD: Tensor, rows: Rows) -> Tensor:
        count, tokens = x_BTD.shape[:2]
        shape = (max(count, 2), tokens)  # one row would be a shape of its own to the compiler
        if self._graphs and count <= ROW_STEPS[-1]:
            shape = _step(ROW_STEPS, count), _step(TOKEN_STEPS, tokens)
        repeated = x_BTD[_repeat(count, shape[0])][:, _repeat(tokens, shape[1])]
        return self._call(repeated, rows.padded(*shape))[:count, :tokens]

    def warm(self) -> int:
        """Compile (and record) every shape that can come, and return how many; empties the cache.

        Raises CiarError where the compiler cannot work, for example because there is none.
        """
        import torch._dynamo as dynamo  # here: importing it takes a second

        dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _MOST_KINDS)
        shapes = list(self._shapes())
        try:
            for rows, tokens, last, dense in shapes:
                x_BTD = torch.zeros(rows, tokens, self._gpt.config.dim, dtype=self._gpt.dtype)
                slots = range(rows) if dense else [*range(rows - 1, 0, -1), 0]
                places = [[last - 1] * tokens] * rows
                self._call(x_BTD.to(self._gpt.device), Rows(slots, places, [0] * rows, [1] * rows))
        except (dynamo.exc.TorchDynamoException, dynamo.exc.FailOnRecompileLimitHit) as error:
            reason = str(error).split("Set TORCHDYNAMO_VERBOSE")[0].strip()
            why = f"torch.compile says: {reason[-600:]}"
            next_step = "it needs a working C++ compiler (g++ or clang++); without one, leave out --compile"
            raise CiarError("--compile failed", why, next_step) from error
        for slot in range(self._slots):
            self._cache.clear(slot)
        return len(shapes)

    def _shapes(self) -> Iterator[tuple[int, int, int, bool]]:
        """(rows, tokens, length, dense): every bucket of a GPU; one of each kind where shapes are dynamic."""
        longest = self._gpt.config.positions - 1
        lengths = [*range(LENGTH_STEP, longest, LENGTH_STEP), longest]
        rows: Sequence[int] = [n for n in ROW_STEPS if n <= max(self._slots, 2)]
        tokens: Sequence[int] = TOKEN_STEPS
        if not self._graphs:
            lengths, rows, tokens = lengths[:1], rows[:1], (1, 5)
        return (
            (row, token, length, dense)
            for row in rows
            for token in tokens
            for length in lengths
            for dense in (True, False)
        )

    def _call(self, x_BTD: Tensor, rows: Rows) -> Tensor:
        device, positions = self._gpt.device, self._gpt.config.positions
        longest = max(row[-1] for row in rows.positions) + 1
        # Never all positions (the last token of an image is not fed): that would be a shape of its own.
        last = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, positions - 1)
        inputs = Inputs(
            x_BTD,
            torch.tensor(rows.positions, device=device),
            torch.tensor(list(rows.starts), device=device),
            torch.tensor(list(rows.weights), device=device).float().log(),
            torch.tensor(list(rows.slots), device=device),
        )
        return self._run(inputs, last, list(rows.slots) == list(range(len(rows.slots))))

    def _decode(self, inputs: Inputs, last: int, dense: bool) -> Tensor:
        """The code that is compiled."""
        x_BTD, positions_BT, starts_B, log_weights_B, slots_B = inputs
        columns_S = torch.arange(last, device=x_BTD.device)
        mask = visible(positions_BT, columns_S, starts_B, log_weights_B if self._folds else None)
        window = Window(positions_BT, mask, slots_B, 0, last, 0 if dense else None)
        hidden: Tensor = self._gpt(x_BTD, window, self._cache)
        return hidden


class Recorded:
    """A Decode whose kernels are recorded once per shape and then launched as one CUDA graph."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._recordings: dict[tuple[int, int, int, bool], tuple[torch.cuda.CUDAGraph, Inputs, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, inputs: Inputs, last: int, dense: bool) -> Tensor:
        """Copy the inputs to where the recording reads them, launch it, and copy the result out."""
        rows, tokens = inputs.x_BTD.shape[:2]
        key = (rows, tokens, last, dense)
        if key not in self._recordings:
            self._recordings[key] = self._record(inputs, last, dense)
        graph, own, hidden_BTD = self._recordings[key]
        for target, source in zip(own, inputs, strict=True):
            target.copy_(source)
        graph.replay()
        return hidden_BTD.clone()

    def _record(self, inputs: Inputs, last: int, dense: bool) -> tuple[torch.cuda.CUDAGraph, Inputs, Tensor]:
        own = Inputs(*(value.clone() for value in inputs))
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_REHEARSALS):
                self._decode(own, last, dense)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            hidden_BTD = self._decode(own, last, dense)
        return graph, own, hidden_BTD


def _step(steps: Sequence[int], size: int) -> int:
    """The smallest step that holds `size`."""
    return steps[bisect_left(steps, size)]


def _repeat(own: int, wanted: int) -> list[int]:
    """0 .. own - 1, the last one repeated up to `wanted` entries."""
    return [*range(own), *[own - 1] * (wanted - own)]
