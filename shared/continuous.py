"""What travels of models of continuous tokens, as frozen dataclasses; parts of the messages of
`shared.messages`. Knows nothing of protobuf or models.

Shapes: C numbers of a token, K tokens of a span, R rows of guidance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.decoding.diffusion import STEPS
from shared.decoding.masked import SCHEDULES
from shared.errors import InvalidRequest

Marks = NDArray[np.bool_]
Values = NDArray[np.float16]  # continuous tokens [n, C]


@dataclass(frozen=True)
class Masking:
    """How an image of continuous tokens is drawn and judged. Raises InvalidRequest for values out of range.

    steps       of the cloud: windows of positions; all of them with "trajectory" acceptance
    head_steps  of the diffusion head for each token
    schedule    of guidance, one of shared.decoding.masked.SCHEDULES
    tolerance   of "aligned" acceptance, in units of a token's numbers
    clip        both heads clip their idea of a token to -clip .. clip; 0: they do not
    """

    steps: int
    head_steps: int = 100
    schedule: str = "linear"
    tolerance: float = 0.0
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise InvalidRequest(f"schedule {self.schedule!r}", f"allowed: {', '.join(SCHEDULES)}")
        if not 2 <= self.head_steps <= STEPS:
            raise InvalidRequest(f"{self.head_steps} steps of the head", f"allowed: 2 to {STEPS}")
        if not (self.tolerance >= 0 and 0 <= self.clip < math.inf):  # written so that NaN fails
            raise InvalidRequest(f"tolerance {self.tolerance}, clip {self.clip}", "allowed: 0 and above")


@dataclass(frozen=True, eq=False)
class Continuous:
    """A span of K drafted continuous tokens.

    values          fp16 [K, C]; None with "trajectory" acceptance
    conditions      fp16 [K, R, D]: what the device's head was told; "trajectory" alone
    log_std         fp16 [K, C] of the last step; "published" alone
    log_std_before  [K]: sums over the steps before it; "published" alone
    """

    values: Values | None = None
    conditions: NDArray[np.float16] | None = None
    log_std: Values | None = None
    log_std_before: tuple[float, ...] = ()

    def __len__(self) -> int:
        sent = self.values if self.conditions is None else self.conditions
        return 0 if sent is None else len(sent)


@dataclass(frozen=True, eq=False)
class Kept:
    """What stands of K continuous tokens: [K], and fp16 [n, C] what stands in place of the others; of a
    trajectory all that stands, one token behind the last one that does included."""

    stands: Marks
    values: Values
