"""How many threads a process computes with. Knows nothing of what is computed."""

from __future__ import annotations

import torch
from threadpoolctl import threadpool_limits


def use_threads(count: int) -> None:
    """Let torch and NumPy's matrix products have `count` threads each, for the rest of the process.

    Products of one row are too small to share: threads that wait for each other between them take longer than
    one alone, and a hundred times as long where another program has the other core.
    """
    torch.set_num_threads(count)
    threadpool_limits(count, "blas")
