"""`python -m evaluation.parity DIR...`: one line a comparison.

Exit status: 0 all passed, 1 a miss or an error, 2 a command line without sense.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evaluation.parity import chameleon, dit, janus, llamagen, mar, var
from evaluation.parity.checks import Check, read_settings
from shared.errors import CiarError, InvalidRequest

Checks = Callable[[Path, Mapping[str, Any]], Iterator[Check]]


def _configs(settings: Mapping[str, Any]) -> set[str]:
    """Names of everything that the configurations of a folder set."""
    cases = [settings, *(case for case in settings.values() if isinstance(case, Mapping))]
    found = [case["config"] for case in cases if isinstance(case.get("config"), Mapping)]
    return {name for config in found for name in config}


# What a folder is by its golden.json, in this order.
KINDS: tuple[tuple[str, Callable[[Mapping[str, Any]], bool], Checks], ...] = (
    ("Chameleon", lambda settings: "image_token_start" in settings, chameleon.check),
    ("Janus", lambda settings: settings.get("family") == "janus", janus.check),
    ("LlamaGen", lambda settings: "LlamaGen" in settings.get("reference", ""), llamagen.check),
    ("VAR", lambda settings: "patch_nums" in _configs(settings), var.check),
    ("MAR", lambda settings: "diffloss_d" in _configs(settings), mar.check),
    ("DiT", lambda settings: "learn_sigma" in _configs(settings), dit.check),
)


def check(folder: Path) -> Iterator[Check]:
    """Every comparison of a golden folder. Raises InvalidRequest for one of another kind."""
    settings = read_settings(folder)
    for _, fits, found in KINDS:
        if fits(settings):
            return found(folder, settings)
    known = ", ".join(name for name, *_ in KINDS)
    raise InvalidRequest(f"{folder} holds golden numbers of an unknown model", f"known: {known}")


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
