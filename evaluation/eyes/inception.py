"""InceptionV3 as the Frechet Inception Distance uses it: 2,048 features a picture (Szegedy et al. 2016, with
the pooling of the TensorFlow graph of 2015-12-05 that FID was defined on).

Reads `pt_inception-2015-12-05-6726825d.pth`, the file that pytorch-fid, torch-fidelity and torchmetrics use,
by its names. The network is a table: a block is branches side by side, a branch convolutions in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from evaluation.eyes.files import fill, read_tensors

PIXELS = 299
WIDTH = 2048
BATCH = 16
Kernel = tuple[int, int]
Step = tuple[str, int, Kernel]  # name, channels, kernel
Branch = tuple[Step | tuple[Step, Step], ...]  # a pair of steps reads one input and is joined


@dataclass(frozen=True)
class Block:
    """Branches and what becomes of the input beside them: pooled to `pool_width` channels, or, in a reducing
    block, pooled alone while the last step of each branch has stride 2."""

    branches: tuple[Branch, ...]
    pool: str  # average, maximum or reduce
    pool_width: int = 0


def _double(width: int, out: int) -> Branch:
    return (
        ("branch3x3dbl_1", width, (1, 1)),
        ("branch3x3dbl_2", out, (3, 3)),
        ("branch3x3dbl_3", out, (3, 3)),
    )


def _fine(pool_width: int) -> Block:
    five: Branch = (("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5)))
    return Block(((("branch1x1", 64, (1, 1)),), five, _double(64, 96)), "average", pool_width)


def _middle(width: int) -> Block:
    single: Branch = (
        ("branch7x7_1", width, (1, 1)),
        ("branch7x7_2", width, (1, 7)),
        ("branch7x7_3", 192, (7, 1)),
    )
    double: Branch = (
        ("branch7x7dbl_1", width, (1, 1)),
        ("branch7x7dbl_2", width, (7, 1)),
        ("branch7x7dbl_3", width, (1, 7)),
        ("branch7x7dbl_4", width, (7, 1)),
        ("branch7x7dbl_5", 192, (1, 7)),
    )
    return Block(((("branch1x1", 192, (1, 1)),), single, double), "average", 192)


def _coarse(pool: str) -> Block:
    single: Branch = (
        ("branch3x3_1", 384, (1, 1)),
        (("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))),
    )
    double: Branch = (
        ("branch3x3dbl_1", 448, (1, 1)),
        ("branch3x3dbl_2", 384, (3, 3)),
        (("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))),
    )
    return Block(((("branch1x1", 320, (1, 1)),), single, double), pool, 192)


_TO_17 = Block(((("branch3x3", 384, (3, 3)),), _double(64, 96)), "reduce")
_TO_8 = Block(
    (
        (("branch3x3_1", 192, (1, 1)), ("branch3x3_2", 320, (3, 3))),
        (
            ("branch7x7x3_1", 192, (1, 1)),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, (3, 3)),
        ),
    ),
    "reduce",
)
BLOCKS = {
    "Mixed_5b": _fine(32),
    "Mixed_5c": _fine(64),
    "Mixed_5d": _fine(64),
    "Mixed_6a": _TO_17,
    "Mixed_6b": _middle(128),
    "Mixed_6c": _middle(160),
    "Mixed_6d": _middle(160),
    "Mixed_6e": _middle(192),
    "Mixed_7a": _TO_8,
    "Mixed_7b": _coarse("average"),
    "Mixed_7c": _coarse("maximum"),
}


class Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: Kernel, stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Channels changed, sides kept where padded."""
        return F.relu(self.bn(self.conv(x_BCHW)))


class Mixed(nn.Module):
    """One block."""

    def __init__(self, c_in: int, block: Block) -> None:
        super().__init__()
        self.block, self.width = block, 0
        for branch in block.branches:
            self.width += self._add(c_in, branch)
        if block.pool_width:
            self.add_module("branch_pool", Convolution(c_in, block.pool_width, (1, 1)))
        self.width += block.pool_width or c_in

    def _add(self, c_in: int, branch: Branch) -> int:
        """The steps of one branch; returns the channels it ends with."""
        width = c_in
        for place, step in enumerate(branch):
            reduces = self.block.pool == "reduce" and place == len(branch) - 1
            steps = _side_by_side(step)
            for name, c_out, kernel in steps:
                self.add_module(name, Convolution(width, c_out, kernel, 2 if reduces else 1, not reduces))
            width = sum(c_out for _, c_out, _ in steps)
        return width

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Branches and pooled input, joined along channels."""
        ran = [self._run(x_BCHW, branch) for branch in self.block.branches]
        return torch.cat([*ran, self._pool(x_BCHW)], 1)

    def _run(self, x_BCHW: Tensor, branch: Branch) -> Tensor:
        for step in branch:
            steps = [self.get_submodule(name) for name, _, _ in _side_by_side(step)]
            x_BCHW = torch.cat([convolve(x_BCHW) for convolve in steps], 1)
        return x_BCHW

    def _pool(self, x_BCHW: Tensor) -> Tensor:
        if self.block.pool == "reduce":
            return F.max_pool2d(x_BCHW, 3, 2)
        if self.block.pool == "maximum":
            pooled = F.max_pool2d(x_BCHW, 3, 1, 1)
        else:
            pooled = F.avg_pool2d(x_BCHW, 3, 1, 1, count_include_pad=False)
        out: Tensor = self.get_submodule("branch_pool")(pooled)
        return out


def _side_by_side(step: Step | tuple[Step, Step]) -> Sequence[Step]:
    return step if isinstance(step[0], tuple) else (step,)


class Inception(nn.Module):
    """The network up to its last pooling."""

    num_features = WIDTH  # torchmetrics reads it

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), 2, pad=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), pad=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), pad=False)
        width = 192
        for name, block in BLOCKS.items():
            mixed = Mixed(width, block)
            self.add_module(name, mixed)
            width = mixed.width

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Features [B, 2048] of uint8 pictures of any size, scaled to 299 px as torchmetrics scales them."""
        size = (PIXELS, PIXELS)
        x = F.interpolate(pixels_B3HW.float(), size, mode="bilinear", align_corners=False, antialias=True)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3((x - 128) / 128)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def load_inception(file: Path) -> Inception:
    """Read the published weights. Raises ModelUnavailable as `read_tensors` and `fill` do."""
    model = Inception()
    counted = {name: value for name, value in model.state_dict().items() if name.endswith("_tracked")}
    read = {name: value for name, value in read_tensors(file).items() if not name.startswith("fc.")}
    fill(model, {**counted, **read}, file)  # files of older programs hold no counts
    return model.eval()


@dataclass(frozen=True, eq=False)
class InceptionEye:
    """FID's eye. It reads no captions."""

    model: Inception
    name: str = "inception"

    @torch.no_grad()
    def look(self, pixels_BHW3: Tensor) -> NDArray[np.float64]:
        """Features [B, 2048]."""
        starts = range(0, len(pixels_BHW3), BATCH)
        parts = [self.model(pixels_BHW3[start : start + BATCH].permute(0, 3, 1, 2)) for start in starts]
        return np.asarray(torch.cat(parts).double())

    def fits(self, pixels_BHW3: Tensor, captions: Sequence[str]) -> list[float]:
        """None."""
        return []
