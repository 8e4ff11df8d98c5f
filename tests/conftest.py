"""What every test shares: examples of hypothesis that do not depend on how busy the machine is."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("ciar", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("ciar")
