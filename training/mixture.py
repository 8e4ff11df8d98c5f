"""The batches a device learns from: sequences the cloud drew, mixed with real ones. Knows no students.

Which images a step sees is a pure function of (seed, step), whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from shared.errors import InvalidRequest
from shared.models.vq import VQModel
from training.data import keyed_generator
from training.drawn import Sequences, scene_pool
from training.engine import Engine
from training.loading import encode, scene_batches
from training.scenes import Scenes
from training.teacher import FORMS, Teacher


class Batch(NamedTuple):
    """Captions, tokens [B, T] and the teacher's distributions [B, T, V] of this process's rows."""

    captions: Sequence[str]
    tokens_BT: Tensor
    p_BTV: Tensor


@dataclass(frozen=True)
class Blend:
    """What a batch is made of. Raises InvalidRequest for a share out of range.

    drawn_share  share of a batch that the cloud drew, the rest is real
    real         size of a fixed pool of real scenes; 0: always fresh ones
    """

    batch: int
    drawn_share: float
    real: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.drawn_share <= 1:
            raise InvalidRequest(f"drawn share {self.drawn_share} is not allowed", "allowed: 0 to 1")

    @property
    def drawn(self) -> int:
        """Rows that the cloud drew."""
        return round(self.batch * self.drawn_share)

    @property
    def fresh(self) -> int:
        """Rows composed anew in every step."""
        return 0 if self.real else self.batch - self.drawn


def check_form(form: str, blend: Blend) -> None:
    """Raise InvalidRequest for an unknown form of teacher, and for one kept in shards where there are fresh
    scenes: it cannot have judged them."""
    if form not in FORMS:
        raise InvalidRequest(f"unknown form of teacher {form!r}", f"allowed: {', '.join(FORMS)}")
    if form != "fly" and blend.fresh:
        what = f"a teacher kept as {form} has not judged fresh scenes"
        raise InvalidRequest(what, "a pool of real scenes or a drawn share of 1 is needed", "give --real")


class Mixture:
    """Batches of a blend, step by step."""

    def __init__(
        self, blend: Blend, drawn: Sequences, scenes: Scenes, tokenizer: VQModel, teacher: Teacher
    ) -> None:
        check_form(teacher.form, blend)
        self.blend, self.drawn, self.scenes = blend, drawn, scenes
        self.tokenizer, self.teacher = tokenizer, teacher

    def start(self, step: int, engine: Engine) -> None:
        """Prepare what the steps from `step` on need: the pool, its teacher, the composing workers."""
        blend, self.engine = self.blend, engine
        self.pool = self.drawn
        if blend.real:
            self.pool = self.drawn.join(scene_pool(self.scenes, self.tokenizer, blend.real, engine.device))
        kept = self.teacher.form != "fly"
        self.shards = self.teacher.keep(self.pool, engine) if kept else None
        if blend.fresh:
            self.composed = scene_batches(self.scenes, step, blend.fresh, engine)

    def batch(self, step: int) -> Batch:
        """The rows of this process; fresh scenes come in the order of the steps."""
        picked = self._picked(step)
        captions = [self.pool.captions[row] for row in picked]
        tokens_BT = self.pool.tokens_NT[picked].to(self.engine.device)
        if self.blend.fresh:
            fresh = next(self.composed)
            captions += fresh.captions
            tokens_BT = torch.cat([tokens_BT, encode(self.tokenizer, fresh, self.engine.device)])
        if self.shards is not None:
            return Batch(captions, tokens_BT, self.shards.read(picked).to(self.engine.device))
        return Batch(captions, tokens_BT, self.teacher.judge(captions, tokens_BT, self.engine))

    def _picked(self, step: int) -> list[int]:
        """Rows of the pool: drawn ones, then real ones where there is a pool of them."""
        blend, rng = self.blend, keyed_generator(self.blend.seed + 5, step)
        drawn = rng.integers(0, len(self.drawn), blend.drawn)[self.engine.share(blend.drawn)]
        if not blend.real:
            return [int(row) for row in drawn]
        real = rng.integers(len(self.drawn), len(self.pool), blend.batch - blend.drawn)
        return [int(row) for row in (*drawn, *real[self.engine.share(len(real))])]
