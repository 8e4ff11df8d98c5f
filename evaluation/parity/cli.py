"""`python -m evaluation.parity DIR...`: one line a comparison.

Exit status: 0 all passed, 1 a miss or an error, 2 a command line without sense.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from evaluation.parity import chameleon, janus, llamagen
from evaluation.parity.checks import Check, read_settings
from shared.errors import CiarError, InvalidRequest


def check(folder: Path) -> Iterator[Check]:
    """Every comparison of a golden folder. Raises InvalidRequest for one of another kind."""
    settings = read_settings(folder)
    if "image_token_start" in settings:
        return chameleon.check(folder, settings)
    if settings.get("family") == "janus":
        return janus.check(folder, settings)
    if "LlamaGen" in settings.get("reference", ""):
        return llamagen.check(folder, settings)
    raise InvalidRequest(
        f"{folder} holds golden numbers of an unknown model", "known: LlamaGen, Chameleon, Janus"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Compare every folder and print the lines."""
    folders = [Path(name) for name in (sys.argv[1:] if argv is None else argv)]
    if not folders or any(str(folder).startswith("-") for folder in folders):
        print("usage: python -m evaluation.parity DIR... (folders with golden.json)", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    try:
        checks = [_print(item) for folder in folders for item in check(folder)]
    except CiarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    made, misses = sum(item.made for item in checks), sum(not item.passed for item in checks)
    print(f"{made} comparisons, {len(checks) - made} not made, {misses} missed")
    return 1 if misses else 0


def _print(item: Check) -> Check:
    print(item.line())
    return item
