"""What every training run shares: a folder with its config, a log of JSON lines, resumable checkpoints.

Knows nothing of what is trained.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from shared.errors import InvalidRequest
from training.sharded import all_like, restore_optimizer, whole


@dataclass(frozen=True)
class RunFolder:
    """One run: `config.json`, `log.jsonl`, `state.pt`, sample grids."""

    path: Path

    def begin(self, config: Any, settings: Any) -> dict[str, Any] | None:  # noqa: ANN401 - any dataclasses
        """Create the folder or resume it; returns the saved state, None for a fresh run.

        `config.json` records the config of the run and, as `settings`, the preset it names.

        Raises InvalidRequest naming the fields, when the folder holds a run with another config.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**asdict(config), "settings": asdict(settings)}, indent=1, default=str)
        saved = self.path / "config.json"
        if saved.exists():
            changed = list(_differences(json.loads(saved.read_text(encoding="utf-8")), json.loads(text)))
            if changed:
                raise InvalidRequest(
                    f"{self.path} holds a run with another config: {'; '.join(changed)}",
                    "resuming needs the same one",
                    "choose another --out",
                )
        saved.write_text(text, encoding="utf-8")
        return self.state() if (self.path / "state.pt").exists() else None

    def state(self) -> dict[str, Any]:
        """The last checkpoint. Raises InvalidRequest when the folder has none."""
        file = self.path / "state.pt"
        if not file.exists():
            raise InvalidRequest(f"{self.path} holds no checkpoint", "expected state.pt", "train it first")
        loaded: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        return loaded

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state beside the old one, then swap: a killed run never leaves half a file."""
        partial = self.path / "state.partial"
        torch.save(dict(state), partial)
        os.replace(partial, self.path / "state.pt")

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one JSON line of metrics, with the wall clock in seconds."""
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time_s": round(time.time(), 2), **record}) + "\n")

    def grid(self, name: str, images_BHW3: Tensor, columns: int) -> None:
        """Write uint8 images as one PNG grid."""
        save_grid(self.path / f"{name}.png", images_BHW3, columns)


def _differences(saved: dict[str, Any], given: dict[str, Any], inside: str = "") -> Iterator[str]:
    """Fields that both configs have and whose values differ. A field the saved one lacks is younger than the
    run: its default leaves the run as it was."""
    for name in (name for name in given if name in saved):
        before, now, path = saved[name], given[name], f"{inside}{name}"
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{path}.")
        elif before != now:
            yield f"{path} was {before!r}, is {now!r}"


class SilentFolder(RunFolder):
    """The same folder seen by every process but the first: it reads, and writes nothing."""

    def begin(self, config: Any, settings: Any) -> dict[str, Any] | None:  # noqa: ANN401
        """The saved state, None for a fresh run."""
        return self.state() if (self.path / "state.pt").exists() else None

    def save(self, state: Mapping[str, Any]) -> None:
        """Nothing."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Nothing."""

    def grid(self, name: str, images_BHW3: Tensor, columns: int) -> None:
        """Nothing."""


def save_grid(path: Path, images_BHW3: Tensor, columns: int) -> None:
    """Tile uint8 images [B, H, W, 3] row by row into one PNG with a thin gray line between them."""
    count, height, width, _ = images_BHW3.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 2), columns * (width + 2), 3), 128, np.uint8)
    for index, image in enumerate(images_BHW3.numpy()):
        y, x = divmod(index, columns)
        sheet[y * (height + 2) : y * (height + 2) + height, x * (width + 2) : x * (width + 2) + width] = image
    Image.fromarray(sheet).save(path)


class Trainer(Protocol):
    """What `drive` needs of a training verb."""

    folder: RunFolder
    learner: Learner

    def advance(self) -> dict[str, float]:
        """One optimiser step; returns its metrics."""

    def save(self) -> None:
        """Write everything a resumed run needs."""

    def evaluate(self) -> dict[str, float]:
        """Figures on held-back data, sample grids on the way."""


def drive(trainer: Trainer, steps: int, batch: int, checkpoint_every: int) -> None:
    """Advance to the last step, logging every step and checkpointing with an evaluation now and then."""
    while (step := trainer.learner.step) < steps:
        began = time.monotonic()
        record = trainer.advance()
        images_per_s = round(batch / (time.monotonic() - began), 1)
        trainer.folder.log({"step": step + 1, **record, "images_per_s": images_per_s})
        if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
            trainer.save()
            trainer.folder.log({"step": step + 1, **trainer.evaluate()})


class Average:
    """An exponential moving average of a model's parameters; the averaged weights are the ones that ship."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Blend in the current weights; the decay warms up so that early averages are not stale."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)


class Learner:
    """A model, its optimisers and its average: one gradient step at a time, saved and restored whole."""

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], decay: float) -> None:
        self.model, self.optimizers, self.average = model, optimizers, Average(model, decay)
        self.step = 0

    def learn(self, loss: Tensor) -> float:
        """Descend once, gradients clipped to norm 1; returns their norm before clipping."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm: Tensor = whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.average.update(self.model, self.step)
        return norm.item()

    def norms(self, norm: float, parts: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
        """The gradient norm of the last step, and those of parts of the model, before clipping; a part is
        named by how its parameters' names begin. A collective where parameters are sharded."""
        found = {"gradient": norm}
        for part, prefixes in parts.items():
            gradients = [
                value.grad
                for name, value in self.model.named_parameters()
                if name.startswith(prefixes) and value.grad is not None
            ]
            clipped: Tensor = whole(torch.nn.utils.get_total_norm(gradients))
            found[f"gradient_{part}"] = clipped.item() * max(norm, 1.0)
        return found

    def set_rates(self, rates: Sequence[float]) -> None:
        """The learning rate of each optimiser for the next step."""
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs; holds only what `torch.load(weights_only=True)` reads."""
        state: dict[str, Any] = whole(
            {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "average": self.average.values,
                "step": self.step,
            }
        )
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was taken of."""
        patterns = self.model.state_dict()
        self.model.load_state_dict(all_like(patterns, state["model"]))
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            restore_optimizer(optimizer, saved)
        self.average.values, self.step = all_like(patterns, state["average"]), state["step"]

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights, gathered from every process, on the CPU."""
        weights: dict[str, Tensor] = whole(self.average.values)
        return {name: value.cpu() for name, value in weights.items()}
