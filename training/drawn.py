"""Sequences a device learns from: images the cloud drew by itself, and a pool of real scenes, kept in files.

Knows nothing of losses. A file's name holds a digest of what made it, so a folder serves several runs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.decoding.warp import Warp
from shared.models.family import ImageModel
from shared.models.vq import VQModel
from training.base import sample
from training.engine import Engine
from training.loading import SceneBatch, encode
from training.scenes import Scenes

# Seeds of drawn images and numbers of their captions: training counts up from one, held-back images from
# the other, a pool of real scenes from the third.
TRAIN_SEED, HELD_SEED, POOL_START = 1_000_000, 9_000_000, 5_000_000
_CHUNK = 16  # images drawn or encoded at a time


@dataclass(frozen=True, eq=False)
class Sequences:
    """Images as tokens [N, T] with their captions; `seeds` where the cloud drew them."""

    captions: tuple[str, ...]
    tokens_NT: Tensor
    seeds: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.captions)

    def part(self, first: int, end: int) -> Sequences:
        """Images first .. end - 1."""
        return Sequences(self.captions[first:end], self.tokens_NT[first:end], self.seeds[first:end])

    def join(self, other: Sequences) -> Sequences:
        """These and the other ones; the seeds are these alone."""
        tokens_NT = torch.cat([self.tokens_NT, other.tokens_NT])
        return Sequences(self.captions + other.captions, tokens_NT, self.seeds)


def file_name(kind: str, **made_of: object) -> str:
    """`kind` and twelve digits that name everything the file's contents follow from."""
    text = json.dumps(made_of, sort_keys=True, default=str)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def save_whole(tensors: dict[str, Tensor], file: Path) -> None:
    """Write beside the place, then swap: a killed run never leaves half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file(tensors, partial)
    os.replace(partial, file)


@dataclass(frozen=True)
class Source:
    """The cloud that draws, and where its images are kept."""

    cloud: ImageModel
    cloud_digest: str
    warp: Warp
    folder: Path

    def images(self, scenes: Scenes, count: int, first: int, engine: Engine) -> Sequences:
        """The cloud's own images of the first `count` captions that say something, completed as by devices,
        by keyed noise from seed `first`; drawn once, by the first process."""
        said = filter(None, (scenes.layout(index).caption for index in itertools.count(first)))
        seeds = tuple(range(first, first + count))
        captions = tuple(map(self.cloud.complete, itertools.islice(said, count), seeds))
        warp = asdict(self.warp)
        name = file_name("drawn", cloud=self.cloud_digest, warp=warp, captions=captions, first=first)
        file = self.folder / f"{name}.safetensors"
        with engine.first_in_turn(), engine.here():
            if not file.exists():
                save_whole({"tokens": draw(self.cloud, captions, seeds, self.warp)}, file)
        return Sequences(captions, load_file(file)["tokens"].long(), seeds)


def draw(cloud: ImageModel, captions: Sequence[str], seeds: Sequence[int], warp: Warp) -> Tensor:
    """The cloud's own image per caption and seed, int32 [N, T]."""
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(captions), _CHUNK)]
    drawn = [sample(cloud, captions[chunk], seeds[chunk], warp) for chunk in chunks]
    return torch.cat(drawn).to("cpu", torch.int32)


def scene_pool(scenes: Scenes, tokenizer: VQModel, count: int, device: torch.device) -> Sequences:
    """The first `count` scenes of a pool that no step of training on fresh scenes reaches."""
    numbers = range(POOL_START, POOL_START + count)
    batches = [
        SceneBatch.of([scenes[number] for number in numbers[start : start + _CHUNK]])
        for start in range(0, count, _CHUNK)
    ]
    captions = tuple(itertools.chain.from_iterable(batch.captions for batch in batches))
    return Sequences(captions, torch.cat([encode(tokenizer, batch, device).cpu() for batch in batches]))
