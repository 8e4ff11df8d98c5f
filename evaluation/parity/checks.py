"""What a comparison is: a name, an error, a tolerance. Knows no model.

A golden folder holds `golden.json` (settings) and tensors that an official program computed with the weights
beside them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from shared.errors import CiarError, InvalidRequest, ModelUnavailable

Named = Mapping[str, Tensor]
BROKEN = "BROKEN"  # in the name of a file that must be refused
WEIGHTS = (".pth", ".pt", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class Check:
    """One comparison; it passes where error <= tolerance, or where it could not be made: tolerance NaN."""

    what: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def made(self) -> bool:
        """Whether there was anything to compare."""
        return not math.isnan(self.tolerance)

    @property
    def passed(self) -> bool:
        """The verdict; an error of NaN fails."""
        return not self.made or self.error <= self.tolerance

    def line(self) -> str:
        """Name, error, tolerance, verdict."""
        if not self.made:
            return f"{self.what:<56} not compared: {self.note}"
        verdict = "ok" if self.passed else "MISS"
        numbers = f"error {self.error:<9.3g} tolerance {self.tolerance:<7.3g}"
        return f"{self.what:<56} {numbers} {verdict} {self.note}".rstrip()


def close(what: str, found: Tensor, golden: Tensor, tolerance: float) -> Check:
    """The largest difference; infinite where the shapes differ."""
    if found.shape != golden.shape:
        return Check(what, math.inf, tolerance, f"shape {list(found.shape)}, golden {list(golden.shape)}")
    return Check(what, (found.double() - golden.double()).abs().max().item(), tolerance)


def same(what: str, found: Tensor, golden: Tensor) -> Check:
    """How many entries differ: none may."""
    if found.shape != golden.shape:
        return Check(what, math.inf, 0, f"shape {list(found.shape)}, golden {list(golden.shape)}")
    wrong = found.long() != golden.long()
    first = f"first at {wrong.nonzero()[0].tolist()}" if wrong.any() else ""
    return Check(what, float(wrong.sum()), 0, first)


def same_pixels(what: str, found: Tensor, golden: Tensor) -> Check:
    """uint8 images: no value differs by more than 1, and fewer than 1 % differ."""
    difference = (found.int() - golden.int()).abs()
    share = (difference > 0).double().mean().item()
    error = difference.max().item() if share < 0.01 else math.inf
    return Check(what, error, 1, f"{share:.2%} of the values differ")


def refused(what: str, act: Callable[[], object]) -> Check:
    """Whether loading is refused, and in which words."""
    try:
        act()
    except ModelUnavailable as error:
        return Check(what, 0, 0, f"refused: {error}")
    return Check(what, 1, 0, "was not refused")


def skipped(what: str, why: str) -> Check:
    """A comparison that cannot be made here."""
    return Check(what, 0, math.nan, why)


def compare(case: str, found: Named, golden: Named, tolerance: Callable[[str], float]) -> Iterable[Check]:
    """Every golden tensor that `found` has as well; integers exactly, pictures in uint8 as pixels."""
    for name in sorted(found.keys() & golden.keys()):
        what = f"{case} {name}"
        if golden[name].dtype == torch.uint8 and golden[name].shape[-1:] == (3,):
            yield same_pixels(what, found[name], golden[name])
        elif golden[name].is_floating_point():
            yield close(what, found[name], golden[name], tolerance(name))
        else:
            yield same(what, found[name], golden[name])


def scaled(found: Named, golden: Named) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Both, floats divided by the largest golden value where that is above 1: errors become relative."""
    sizes = {n: max(1.0, v.abs().max().item()) for n, v in golden.items() if v.is_floating_point()}
    ours, theirs = ({n: v / sizes[n] if n in sizes else v for n, v in of.items()} for of in (found, golden))
    return ours, theirs


def weight_files(folder: Path) -> list[Path]:
    """Files of weights, the golden ones aside."""
    return sorted(file for file in folder.iterdir() if file.suffix in WEIGHTS and ".golden" not in file.name)


def guarded(case: str, checks: Iterator[Check]) -> Iterator[Check]:
    """The checks of a case. An error on the way is a miss, and so is a case in which nothing was compared."""
    count = 0
    try:
        for count, item in enumerate(checks, start=1):  # noqa: B007 - read below
            yield item
    except CiarError as error:
        yield Check(case, math.inf, 0, str(error))
        return
    if not count:
        yield Check(case, math.inf, 0, "nothing was compared: its files are missing")


def left_over(case: str, found: Named, golden: Named) -> Iterable[Check]:
    """A line for the golden tensors, inputs aside, that nothing here computes."""
    if names := sorted(name for name in golden.keys() - found.keys() if not name.startswith("in.")):
        yield skipped(f"{case} {', '.join(names)}", "for information only")


def read_settings(folder: Path) -> dict[str, Any]:
    """`golden.json`. Raises InvalidRequest where there is none."""
    file = folder / "golden.json"
    if not file.is_file():
        raise InvalidRequest(
            f"there is no golden.json in {folder}", "a golden folder holds numbers to compare with"
        )
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return settings


def read_golden(file: Path) -> dict[str, Tensor]:
    """Golden tensors by name; none where the file is missing."""
    return load_file(file) if file.is_file() else {}
