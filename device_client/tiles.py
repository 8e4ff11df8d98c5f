"""Unfinished pictures for almost nothing: every codebook entry as a small tile of colour, fitted once.

The VQ decoder takes tens of milliseconds, too much to run at every step. Where all of a neighbourhood is one
token, what the decoder makes of it is nearly quadratic in the token's code vector; a fit to dozens of codes
gives a tile for each of them, and an unfinished picture is a mosaic of tiles. Knows nothing of progress.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from shared.models.vq import VQModel, to_pixels

SIDE = 8  # pixels per tile and side at most; less where a token covers fewer
SAMPLES = 128  # codes the fit decodes, or twice the width of a code
AROUND = 5  # each in a square of 5 x 5 equal tokens, of which the middle one counts
NARROW = 16  # numbers in a code up to which their products are fitted as well
RIDGE = 1e-5
BLANK = 200  # the grey of what is not drawn yet


class Tiles:
    """The tiles of one VQ model: `pixels_VSS3`, uint8, S pixels a side."""

    def __init__(self, vq: VQModel) -> None:
        with torch.inference_mode():
            self.pixels_VSS3: NDArray[np.uint8] = _fit(vq).numpy()
        with_blank = np.concatenate([self.pixels_VSS3, np.full_like(self.pixels_VSS3[:1], BLANK)])
        # Line by line, so that a mosaic is copied in long pieces; the last tile is the grey one.
        self._lines_SVP = np.ascontiguousarray(with_blank.swapaxes(0, 1)).reshape(
            self.side, -1, 3 * self.side
        )

    @property
    def side(self) -> int:
        """Pixels per tile and side."""
        return int(self.pixels_VSS3.shape[1])

    @property
    def columns(self) -> int:
        """Tiles per row of the atlas."""
        return math.isqrt(len(self.pixels_VSS3) - 1) + 1

    def atlas(self) -> Image.Image:
        """All tiles in one picture, token 0 top left, in rows of `columns`."""
        columns = self.columns
        rows = -(-len(self.pixels_VSS3) // columns)
        return self.mosaic(range(len(self.pixels_VSS3)), rows, columns)

    def mosaic(self, tokens: Sequence[int], rows: int, columns: int) -> Image.Image:
        """At most rows * columns tokens in raster order; what is missing at the end is grey."""
        side = self.side
        ids = np.full(rows * columns, len(self.pixels_VSS3))
        ids[: len(tokens)] = tokens
        lines = self._lines_SVP[:, ids.reshape(rows, columns)].swapaxes(0, 1)
        return Image.fromarray(lines.reshape(rows * side, columns * side, 3))


def _fit(vq: VQModel) -> Tensor:
    """Ridge regression from code vectors [V, E] and their products to tiles [V, S, S, 3]."""
    codes_VE = vq.quantize.codes()
    vocab, width = codes_VE.shape
    inputs_VE = torch.cat([codes_VE, _products(codes_VE), torch.ones(vocab, 1)], 1)
    chosen_N = torch.randperm(vocab, generator=torch.Generator().manual_seed(0))[: max(SAMPLES, 2 * width)]
    outputs_NP = _decoded(vq, chosen_N)
    x_NE = inputs_VE[chosen_N]
    square = x_NE.T @ x_NE + RIDGE * len(x_NE) * torch.eye(inputs_VE.shape[1])
    fitted_VP = inputs_VE @ torch.linalg.solve(square, x_NE.T @ outputs_NP)
    return to_pixels(F.pixel_shuffle(fitted_VP[:, :, None, None], _side(vq)), vq.config.pixel_shift)


def _products(codes_VE: Tensor) -> Tensor:
    """Of every two numbers of a code, squares included; none of a code that is wide."""
    width = codes_VE.shape[1] if codes_VE.shape[1] <= NARROW else 0
    first, second = torch.triu_indices(width, width)
    return codes_VE[:, first] * codes_VE[:, second]


def _decoded(vq: VQModel, ids_N: Tensor) -> Tensor:
    """What the decoder draws of each token among equals, [N, 3 S S], in batches that fit into memory."""
    factor, middle = vq.config.factor, AROUND // 2
    parts = []
    for start in range(0, len(ids_N), SAMPLES):
        ids_B = ids_N[start : start + SAMPLES]
        image_B3HW = vq.decode(ids_B[:, None, None].expand(-1, AROUND, AROUND))
        patch = image_B3HW[..., middle * factor : (middle + 1) * factor, middle * factor :][..., :factor]
        parts.append(F.pixel_unshuffle(F.adaptive_avg_pool2d(patch, _side(vq)), _side(vq)).flatten(1))
    return torch.cat(parts)


def _side(vq: VQModel) -> int:
    return min(SIDE, vq.config.factor)
