"""What every test shares: one thread, and examples of hypothesis that need no quiet machine."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("ciar", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("ciar")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A command run in this process may have asked for more; spinning threads slow the next test."""
    torch.set_num_threads(1)
