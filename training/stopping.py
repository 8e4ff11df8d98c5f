"""When a run ends early: a figure that has not risen for some evaluations. Knows nothing of the figure."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class EarlyStop:
    """The figure at every evaluated step, kept in `file`; after `patience` evaluations without a new best
    one the run is over. A patience of 0 never ends a run.
    """

    file: Path
    patience: int
    seen: dict[int, float] = field(default_factory=dict)

    def resume(self) -> None:
        """Read what an earlier part of the run saw."""
        if self.file.exists():
            raw = json.loads(self.file.read_text(encoding="utf-8"))
            self.seen = {int(step): figure for step, figure in raw.items()}

    def saw(self, step: int, figure: float) -> bool:
        """Take note of an evaluation; whether it is the best one so far."""
        self.seen[step] = figure
        return self.best == step

    def write(self) -> None:
        """Keep what was seen."""
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.seen), encoding="utf-8")
        os.replace(partial, self.file)

    @property
    def best(self) -> int:
        """The first step of the largest figure."""
        return max(self.seen, key=lambda step: (self.seen[step], -step))

    @property
    def over(self) -> bool:
        """Whether nothing better came for long enough."""
        return self.patience > 0 and bool(self.seen) and self._waited() >= self.patience

    def _waited(self) -> int:
        return sum(step > self.best for step in self.seen)
