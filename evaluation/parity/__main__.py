"""`python -m evaluation.parity DIR...`."""

from __future__ import annotations

import sys

from evaluation.parity.cli import main

sys.exit(main())
