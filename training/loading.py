"""Scenes by the batch, composed by worker processes where there are any. Knows no transformers.

A scene is a pure function of (seed, index), so what a batch holds does not depend on who composed it, and
there is nothing to save of a loader.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shared.models.vq import VQModel
from training.engine import Engine
from training.scenes import Scene, Scenes, batch_pixels
from training.tokenizer import snapped_features


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """Scenes as tensors: uint8 pixels [B, 128, 128, 3], background colours [B, 3], captions."""

    pixels_BHW3: Tensor
    backgrounds_B3: Tensor
    captions: tuple[str, ...]

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> SceneBatch:
        """Stack scenes."""
        backgrounds = np.array([scene.background for scene in scenes], np.uint8)
        pixels = torch.from_numpy(batch_pixels(scenes))
        return cls(pixels, torch.from_numpy(backgrounds), tuple(scene.caption for scene in scenes))

    def pin_memory(self) -> SceneBatch:
        """The same in page-locked memory, for GPUs."""
        return SceneBatch(self.pixels_BHW3.pin_memory(), self.backgrounds_B3.pin_memory(), self.captions)


class _Composed(Dataset[Scene]):
    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __getitem__(self, index: int) -> Scene:
        return self.scenes[index]


@dataclass(frozen=True)
class _Indices:
    """The scenes of each step from `step` on: rows `share` of batches of `batch`."""

    step: int
    batch: int
    share: range

    def __iter__(self) -> Iterator[list[int]]:
        return ([step * self.batch + row for row in self.share] for step in count(self.step))


def scene_batches(scenes: Scenes, step: int, batch: int, engine: Engine) -> Iterator[SceneBatch]:
    """This process's scenes of step `step` and all later ones; scene b of step s is number s * batch + b."""
    workers = engine.place.workers
    # Forked workers share the artwork; a spawned one would be sent a copy of it.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    loader = DataLoader(
        _Composed(scenes),
        batch_sampler=_Indices(step, batch, engine.share(batch)),
        num_workers=workers,
        collate_fn=SceneBatch.of,
        pin_memory=engine.device.type == "cuda",
        multiprocessing_context=method if workers else None,
        generator=torch.Generator(),  # instead of the global one, from which it would draw a seed
    )
    return iter(loader)


@torch.no_grad()
def encode(tokenizer: VQModel, batch: SceneBatch, device: torch.device) -> Tensor:
    """Token ids [B, T] of scenes, flat background snapped, on the tokenizer's `device`."""
    pixels, backgrounds = batch.pixels_BHW3.to(device), batch.backgrounds_B3.to(device)
    return tokenizer.quantize.nearest(snapped_features(tokenizer, pixels, backgrounds)).flatten(1)
