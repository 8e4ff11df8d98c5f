"""How fast the cloud's engine is, beside what the same machine can do in the same minute. Knows no wire.

Two floors are measured between the runs they are compared with. Bandwidth: the bytes a forward has to read
(weights, and the visible cache) over the bandwidth of a plain sum over memory. Matmuls: the products of the
forward and nothing else, in an eager loop over the same plain weights.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cloud_server.engine import LONG_JOB, ROWS, Engine, batches
from cloud_server.packed import pack
from cloud_server.session import Job, Session
from evaluation.promptless import PromptlessModel, promptless_cloud
from shared.errors import InvalidRequest
from shared.messages import Open
from shared.models.transformer import Transformer

EAGER, PACKED, COMPILED = "eager", "packed", "compiled"
PREFILL, STEP = "prefill", "step"
HEADER = (
    "forward", "sessions", "engine", "wall ms", "ms", "bandwidth ms", "matmuls ms", "x bandwidth", "x matmuls"
)  # fmt: skip
PROBE_BYTES = 2**28  # far more than the caches of a CPU hold


@dataclass(frozen=True)
class Plan:
    """What to measure.

    sessions  images per forward, each with two cache rows
    spans     lengths of checked spans; a check feeds one token more, the one drawn before it
    prompt    prompt rows; they are what the prefill reads
    context   image tokens in the cache before anything is measured
    repeats   measurements of each forward, interleaved with the floors; the table has medians
    """

    sessions: Sequence[int] = (1, 8, 32)
    spans: Sequence[int] = (4, 8, 16)
    prompt: int = 24
    context: int = 80
    repeats: int = 5
    prefill: bool = True

    def check(self, gpt: Transformer) -> None:
        """Raise InvalidRequest where prompt, batch or image are longer than the model's, or than a batch."""
        config, drawn = gpt.config, self.repeats * sum(span + 1 for span in (0, *self.spans))
        if not 1 <= self.prompt <= min(config.prefix_len, LONG_JOB):
            raise InvalidRequest(
                f"{self.prompt} prompt rows", f"allowed: 1 to {min(config.prefix_len, LONG_JOB)}"
            )
        if max(self.spans, default=0) + 1 > LONG_JOB:
            raise InvalidRequest(f"a span of {max(self.spans)}", f"allowed: up to {LONG_JOB - 1}")
        if self.context + drawn >= config.image_tokens:
            why = f"{self.context} tokens of context and {drawn} measured ones, of {config.image_tokens}"
            raise InvalidRequest("the image ends before the measurement", why, "fewer repeats or spans")


@dataclass(frozen=True)
class Line:
    """One forward by one engine: medians in ms.

    `ms` is CPU time where one CPU thread does the work, which other programs disturb little, and wall time
    elsewhere; so are the floors.
    """

    forward: str
    sessions: int
    engine: str
    wall_ms: float
    ms: float
    bandwidth_ms: float
    matmuls_ms: float

    def cells(self) -> list[str]:
        """Under HEADER."""
        times = (self.wall_ms, self.ms, self.bandwidth_ms, self.matmuls_ms)
        ratios = (self.ms / self.bandwidth_ms, self.ms / self.matmuls_ms)
        shown = [f"{value:.1f}" for value in times] + [f"{value:.2f}" for value in ratios]
        return [self.forward, str(self.sessions), self.engine, *shown]


@dataclass(eq=False)
class Stopwatch:
    """Runs of one thing: wall seconds, and the seconds that count."""

    wall_s: list[float] = field(default_factory=list)
    own_s: list[float] = field(default_factory=list)

    def run(self, work: Callable[[], object], device: torch.device) -> None:
        """Time it once."""
        _settle(device)
        wall_s, own_s = time.perf_counter(), _own_s(device)
        work()
        _settle(device)
        self.wall_s.append(time.perf_counter() - wall_s)
        self.own_s.append(_own_s(device) - own_s)


@dataclass(frozen=True, eq=False)
class Engines:
    """Engines over the same weights by name, and the seconds that each took to get ready."""

    gpt: Transformer
    engines: Mapping[str, Engine]
    ready_s: Mapping[str, float]

    @classmethod
    def make(cls, gpt: Transformer, names: Sequence[str], sessions: int) -> Engines:
        """Build and warm them. Raises CiarError where one cannot be."""
        engines, ready_s = {}, {}
        for name in names:
            began = time.perf_counter()
            own = copy.deepcopy(gpt) if name == PACKED else gpt
            if name == PACKED:
                pack(own)
            engines[name] = Engine(promptless_cloud(own, name), sessions, compiled=name == COMPILED)
            engines[name].warm()
            ready_s[name] = time.perf_counter() - began
        return cls(gpt, engines, ready_s)


def measure(engines: Engines, plan: Plan) -> Iterator[Line]:
    """Lines of the table, as they are finished. Raises InvalidRequest as `Plan.check`."""
    plan.check(engines.gpt)
    probe = torch.ones(PROBE_BYTES // 4, device=engines.gpt.device)
    for count in plan.sessions:
        rounds = Rounds(engines, plan, count, probe)
        if plan.prefill:
            yield from rounds.prefills()
        yield from rounds.decodes()


@dataclass(frozen=True, eq=False)
class Rounds:
    """The measurements of one number of sessions."""

    engines: Engines
    plan: Plan
    count: int
    probe: Tensor

    def prefills(self) -> Iterator[Line]:
        """Every prompt is read and one token drawn behind it."""
        runs: dict[str, Stopwatch] = {name: Stopwatch() for name in self.engines.engines}
        rows, prompt = ROWS * self.count, self.plan.prompt
        floors = Floors(self.engines.gpt, self.probe, rows, prompt, 1, prompt)
        for _ in range(self.plan.repeats):
            for name, engine in self.engines.engines.items():
                sessions = self._open(engine, 0)
                self._time(runs[name], engine, [Job(session) for session in sessions])
                _close(engine, sessions)
            floors.run()
        yield from self._lines(PREFILL, runs, floors)

    def decodes(self) -> Iterator[Line]:
        """Steps, then checks of every length, at a growing context."""
        engines, context = self.engines.engines, self.plan.context
        opened = {name: self._open(engine, context) for name, engine in engines.items()}
        for name, engine in engines.items():
            for batch in batches([Job(session) for session in opened[name]]):
                engine.run(batch)
        for span in (0, *self.plan.spans):
            visible = self.plan.prompt + context
            floors = Floors(self.engines.gpt, self.probe, ROWS * self.count, span + 1, span + 1, visible)
            runs = {name: Stopwatch() for name in opened}
            draft = np.zeros(span, dtype=np.int32)
            for _ in range(self.plan.repeats):
                for name, engine in engines.items():
                    self._time(runs[name], engine, [Job(session, draft) for session in opened[name]])
                floors.run()
            yield from self._lines(f"verify {span}" if span else STEP, runs, floors)
        for name, engine in engines.items():
            _close(engine, opened[name])

    def _open(self, engine: Engine, context: int) -> list[Session]:
        config = self.engines.gpt.config
        resume = (np.arange(context) % config.vocab_size).astype(np.int32)
        order = Open(
            model=engine.info.name,
            cloud_digest="",
            codebook_size=config.vocab_size,
            prompt=str(self.plan.prompt),
            seed=0,
            warp=PromptlessModel.warp,
            prefix_tokens=0,
            acceptance="coupled",
            resume=resume,
        )
        return [engine.open(order) for _ in range(self.count)]

    def _time(self, watch: Stopwatch, engine: Engine, jobs: Sequence[Job]) -> None:
        watch.run(lambda: engine.run(jobs), self.engines.gpt.device)

    def _lines(self, forward: str, runs: Mapping[str, Stopwatch], floors: Floors) -> Iterator[Line]:
        for name, watch in runs.items():
            times = (median(watch.wall_s), median(watch.own_s), floors.bandwidth_s, floors.matmuls_s)
            yield Line(forward, self.count, name, *(1000 * seconds for seconds in times))


@dataclass(eq=False)
class Floors:
    """What a forward of `rows` x `tokens` cannot do without, measured. `judged` rows get logits, `visible`
    positions are read from the cache."""

    gpt: Transformer
    probe: Tensor
    rows: int
    tokens: int
    judged: int
    visible: int
    sums: Stopwatch = field(default_factory=Stopwatch)
    products: Stopwatch = field(default_factory=Stopwatch)

    @torch.inference_mode()
    def run(self) -> None:
        """Measure both once."""
        self.sums.run(self.probe.sum, self.gpt.device)
        blocks = [part for part in self.gpt.layers.modules() if isinstance(part, nn.Linear)]
        head = [part for part in self.gpt.output.modules() if isinstance(part, nn.Linear)]
        work = [(part, self._input(part, self.rows * self.tokens)) for part in blocks]
        work += [(part, self._input(part, self.rows * self.judged)) for part in head]
        self.products.run(lambda: [F.linear(x, part.weight) for part, x in work], self.gpt.device)

    def _input(self, part: nn.Linear, rows: int) -> Tensor:
        return torch.ones(rows, part.in_features, dtype=self.gpt.dtype, device=self.gpt.device)

    @property
    def bytes_read(self) -> int:
        """Weights of layers and head, and the visible cache."""
        config = self.gpt.config
        read = (*self.gpt.layers.parameters(), *self.gpt.output.parameters())
        weights = sum(value.nbytes for value in read)
        entry = 2 * config.n_layer * config.kv_heads * config.head_dim * self.gpt.dtype.itemsize
        return weights + self.rows * self.visible * entry

    @property
    def bandwidth_s(self) -> float:
        """Seconds to read them."""
        return median(self.sums.own_s) * self.bytes_read / self.probe.nbytes

    @property
    def matmuls_s(self) -> float:
        """Seconds of the bare products."""
        return median(self.products.own_s)


def markdown(lines: Iterable[Line]) -> Iterator[str]:
    """The lines of a table under HEADER, each as soon as it is measured."""
    yield _row(HEADER)
    yield _row(["---", "--:", "---"] + ["--:"] * (len(HEADER) - 3))
    for line in lines:
        yield _row(line.cells())


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _close(engine: Engine, sessions: Sequence[Session]) -> None:
    for session in sessions:
        engine.close(session)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _own_s(device: torch.device) -> float:
    """Seconds that count: of this thread where it does the work alone, of the clock elsewhere."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time() if alone else time.perf_counter()
