"""How long a device takes for a token, beside what reading its bytes takes. Knows no cloud and no wire.

Two floors, measured between the images they are compared with. *memory*: the bytes of weights and visible
cache over the bandwidth of a sum over 256 MiB. *cached*: the same over the bandwidth of a sum over just as
many bytes, which a small model's weights reach, because they stay in the processor's caches between steps.
*products*: the step's matrix-vector products over its own weights, with nothing around them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import numpy as np
import torch

from device_client.drafter import Drafter
from evaluation.engine import PROBE_BYTES, Stopwatch
from shared.decoding import gates
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest
from shared.models.zoo import DevicePackage

PLAIN, LEAN = "torch", "lean"
HEADER = (
    "gate", "path", "ms", "image ms", "MB read", "memory ms", "cached ms", "products ms", "x memory",
    "x cached", "x products", "times torch",
)  # fmt: skip
_CPU = torch.device("cpu")


@dataclass(eq=False)
class Path:
    """One way of drawing: seconds of each step, seconds of each image, and the tokens."""

    steps: Stopwatch = field(default_factory=Stopwatch)
    images: Stopwatch = field(default_factory=Stopwatch)
    tokens: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Steps:
    """What to measure: images of one prompt, seeds 0, 1, ..., by the device alone, scored by a gate.

    Raises InvalidRequest where the model has no lean path.
    """

    package: DevicePackage
    gate: str
    images: int
    prompt: str = "a cat"

    def __post_init__(self) -> None:
        if self.package.lean is None or self.package.model.config.distilled_guidance is None:
            why = "it takes fp32 blocks of LlamaGen and one guidance row"
            raise InvalidRequest(f"model {self.package.name!r} has no lean path", why)

    def lines(self) -> Iterator[list[str]]:
        """Cells under HEADER, torch first. Raises InvalidRequest where the two draw other tokens."""
        paths, floors = {PLAIN: Path(), LEAN: Path()}, _Floors(self.package, self.gate)
        for seed in range(self.images):
            for name, path in paths.items():
                path.images.run(partial(self._draw, seed, name, path), _CPU)
            floors.run()
        if paths[PLAIN].tokens != paths[LEAN].tokens:
            pairs = zip(paths[PLAIN].tokens, paths[LEAN].tokens, strict=True)
            other = [seed for seed, (one, two) in enumerate(pairs) if one != two]
            raise InvalidRequest(
                f"the two paths draw other tokens for seeds {other}", "they round differently"
            )
        plain_s = median(paths[PLAIN].steps.own_s)
        for name, path in paths.items():
            yield [self.gate, name, *floors.cells(path, plain_s)]

    def _draw(self, seed: int, name: str, path: Path) -> None:
        warp: Warp = self.package.calibration.warp
        given = self.package, self.prompt, seed, warp
        drafter, tokens = Drafter(*given, gate=self.gate, plain=name == PLAIN), list[int]()
        for _ in range(self.package.model.base.config.image_tokens):
            path.steps.run(lambda: tokens.append(drafter.step(tokens).token), _CPU)
        path.tokens.append(tokens)


class _Floors:
    """Both bandwidths and the bare products, measured over and over."""

    def __init__(self, package: DevicePackage, gate: str) -> None:
        assert package.lean is not None
        lean, head = package.lean, package.model.inter_head.radius
        layers = [(layer.qkv, layer.out, layer.gates_FD, layer.down) for layer in lean.layers]
        radii = [head.weight.detach().numpy()] if gates.reads_radii(gate) else []
        self._weights = [*(weight for layer in layers for weight in layer), lean.head_VD, *radii]
        config = lean.config
        visible = config.prefix_len + config.image_tokens // 2
        entry = 2 * config.n_layer * config.kv_heads * config.head_dim * 4
        self.bytes_read = sum(weight.nbytes for weight in self._weights) + visible * entry
        self._inputs = [np.ones(weight.shape[1], dtype=np.float32) for weight in self._weights]
        self._far, self._near = torch.ones(PROBE_BYTES // 4), torch.ones(self.bytes_read // 4)
        self._sums, self._close, self._products = Stopwatch(), Stopwatch(), Stopwatch()

    def run(self, times: int = 10) -> None:
        """Measure all three."""
        self._sums.run(self._far.sum, _CPU)
        for _ in range(times):
            self._close.run(self._near.sum, _CPU)
            self._products.run(
                lambda: [w @ x for w, x in zip(self._weights, self._inputs, strict=True)], _CPU
            )

    def _multiply(self) -> None:
        for weight, x in zip(self._weights, self._inputs, strict=True):
            weight @ x

    def cells(self, path: Path, plain_s: float) -> Sequence[str]:
        """What a path took, against the floors and against torch."""
        step_s, image_s = median(path.steps.own_s), median(path.images.own_s)
        memory_s = median(self._sums.own_s) * self.bytes_read / PROBE_BYTES
        floors = memory_s, median(self._close.own_s), median(self._products.own_s)
        times = [f"{1000 * step_s:.3f}", f"{1000 * image_s:.1f}", f"{self.bytes_read / 1e6:.2f}"]
        times += [f"{1000 * floor_s:.3f}" for floor_s in floors]
        return [*times, *(f"{step_s / floor_s:.2f}" for floor_s in floors), f"{plain_s / step_s:.2f}"]
