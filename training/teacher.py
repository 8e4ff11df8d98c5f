"""What the cloud thinks of every place of an image: computed on the fly, or kept in shards.

Knows nothing of students. Shapes: B images, T places, V codebook, k kept ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from shared.decoding.warp import guide
from shared.models.families.emoji import EmojiModel
from training.drawn import Sequences, file_name, save_whole
from training.engine import Engine
from training.forcing import guidance_rows, teacher_forced_hidden

FORMS = ("fly", "fp16", "sparse")
_SHARD = 32  # images per file


@torch.no_grad()
def teacher_probabilities(
    cloud: EmojiModel, captions: Sequence[str], tokens_BT: Tensor, guidance: float, engine: Engine
) -> Tensor:
    """The guided distribution of the cloud at every place, temperature 1, unfiltered: fp32 [B, T, V] (SPEC
    section 7)."""
    with engine.here(), engine.autocast():
        prefix, starts = guidance_rows(cloud, captions, 2)
        hidden = teacher_forced_hidden(cloud, prefix, starts, tokens_BT.repeat(2, 1))
        cond, uncond = cloud.gpt.logits(hidden).chunk(2)
    return guide(cond, uncond, guidance).softmax(-1)


def sparsest(p_BTV: Tensor, ids: int) -> dict[str, Tensor]:
    """The `ids` largest probabilities of every place: ids int32 [B, T, k], fp16 [B, T, k]."""
    top = p_BTV.topk(min(ids, p_BTV.shape[-1]), dim=-1)
    return {"ids": top.indices.to(torch.int32), "probabilities": top.values.half()}


def dense(kept: dict[str, Tensor], vocab: int) -> Tensor:
    """Distributions fp32 [B, T, V] of what was kept; what is missing of one lies evenly on the other ids."""
    values = kept["probabilities"].float()
    if "ids" not in kept:
        return values / values.sum(-1, keepdim=True)
    rest = (1 - values.sum(-1, keepdim=True)).clamp(min=0) / max(vocab - values.shape[-1], 1)
    p_BTV = rest.expand(*values.shape[:-1], vocab).scatter(-1, kept["ids"].long(), values)
    return p_BTV / p_BTV.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Teacher:
    """A frozen cloud and how its distributions are had: `form` is one of FORMS, `ids` those a sparse one
    keeps of every place."""

    cloud: EmojiModel
    cloud_digest: str
    guidance: float
    form: str
    ids: int
    folder: Path

    def judge(self, captions: Sequence[str], tokens_BT: Tensor, engine: Engine) -> Tensor:
        """Distributions [B, T, V], computed now."""
        return teacher_probabilities(self.cloud, captions, tokens_BT, self.guidance, engine)

    def keep(self, pool: Sequences, engine: Engine) -> Shards:
        """Judge a pool once, each process some of its shards; shards that exist are not made again."""
        ids = self.ids if self.form == "sparse" else 0
        said = {"cloud": self.cloud_digest, "guidance": self.guidance, "ids": ids, "captions": pool.captions}
        name = file_name("teacher", **said, tokens=pool.tokens_NT.sum(-1).tolist())
        shards = Shards(self.folder / name, self.cloud.config.vocab_size)
        for start in range(0, len(pool), _SHARD)[engine.rank :: engine.world]:
            if not shards.file(start).exists():
                save_whole(self._shard(pool, slice(start, start + _SHARD), engine), shards.file(start))
        engine.wait()
        return shards

    def _shard(self, pool: Sequences, rows: slice, engine: Engine) -> dict[str, Tensor]:
        tokens_BT = pool.tokens_NT[rows].to(engine.device)
        p_BTV = self.judge(pool.captions[rows], tokens_BT, engine).cpu()
        return sparsest(p_BTV, self.ids) if self.form == "sparse" else {"probabilities": p_BTV.half()}


@dataclass(frozen=True)
class Shards:
    """Distributions of a pool of images, in files of `_SHARD` images each."""

    folder: Path
    vocab: int

    def file(self, image: int) -> Path:
        """Where an image's distributions are."""
        return self.folder / f"{image // _SHARD:05d}.safetensors"

    def read(self, images: Sequence[int]) -> Tensor:
        """Distributions fp32 [B, T, V] of some images; only their rows are read."""
        rows = []
        for image in images:
            with safe_open(self.file(image), "pt") as file:
                row = image % _SHARD
                rows.append({name: file.get_slice(name)[row : row + 1] for name in file.keys()})  # noqa: SIM118
        kept = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return dense(kept, self.vocab)
