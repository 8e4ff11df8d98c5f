"""`ciar-train critic`: the image-text encoder that judges pictures. Knows nothing of tokens or of drawing.

Trained on the scenes the cloud is trained on, with the symmetric contrastive loss. Scenes without a caption
are left out of a batch, and so is a caption's second scene: it would be a wrong answer that is right.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.models.critic import Critic, contrastive_loss, save_critic
from training.base import falling
from training.held_back import held_back_combinations
from training.presets import preset
from training.scenes import Scene, Scenes, batch_pixels, scene_split
from training.trainer import ModelTrainer

CAPTIONS = 512  # exported with the critic, to tell true captions from


@dataclass(frozen=True)
class CriticRun:
    """Settings of one run; saved with it."""

    data: Path
    out: Path
    preset: str = "everyday"
    steps: int = 3000
    batch: int = 64
    rate: float = 1e-3
    average: float = 0.995
    seed: int = 0
    checkpoint_every: int = 250


def other_captions(scenes: Scenes, count: int) -> list[str]:
    """The first distinct captions of some scenes, at most `count`, looking at no more than four times as
    many."""
    said = (scenes.layout(index).caption for index in range(4 * count))
    return list(itertools.islice(dict.fromkeys(filter(None, said)), count))


def pairs_of(scenes: list[Scene]) -> tuple[Tensor, list[str]]:
    """Pixels [B, 128, 128, 3] and captions of scenes that say something, each caption once."""
    told = list({scene.caption: scene for scene in reversed(scenes) if scene.caption}.values())
    return torch.from_numpy(batch_pixels(told)), [scene.caption for scene in told]


class CriticTrainer(ModelTrainer[CriticRun, Critic]):
    """One run: step, resume, evaluate, export."""

    def __init__(self, run: CriticRun) -> None:
        super().__init__(run)
        chosen = preset(run.preset)
        self.scenes, self.held_back = scene_split(run.data, chosen.concepts, chosen.scenes, run.seed)
        torch.manual_seed(run.seed)  # initial weights; everything later is keyed by (seed, step)
        words, captions = self.scenes.vocabulary(), other_captions(self.scenes, CAPTIONS)
        self.model = Critic(chosen.critic, words, captions)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=run.rate, weight_decay=0.05)
        self.begin([optimizer], chosen)

    def train(self) -> None:
        """Run to the last step, then export."""
        self.drive()
        save_critic(self.run.out / "critic", self.averaged_model())

    def advance(self) -> dict[str, float]:
        """One optimiser step on the next scenes; the loss is nats per pair."""
        run, step = self.run, self.learner.step
        pixels, captions = pairs_of([self.scenes[step * run.batch + i] for i in range(run.batch)])
        self.learner.set_rates(falling((run.rate,), step, run.steps))
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model.logits(pixels, captions)
        loss = contrastive_loss(logits.float())
        return {"loss": round(loss.item(), 4), "gradient": round(self.learner.learn(loss), 3)}

    def evaluate(self) -> dict[str, float]:
        """How often a picture finds its caption among up to 64 others: held-back (concept, style) pairs, and
        held-back (concept, colour) combinations where there are any."""
        held = self.held_back
        pairs = [held.canonical(picture, "white") for picture in held.pictures[:64]]
        found = {"held_back_top1": self._top1(pairs)}
        if combinations := held_back_combinations(self.scenes, 64):
            found["held_combination_top1"] = self._top1(combinations)
        return found

    @torch.no_grad()
    def _top1(self, scenes: list[Scene]) -> float:
        pixels, captions = pairs_of(scenes)
        own = torch.arange(len(captions))
        return round(
            (self.averaged_model().logits(pixels, captions).argmax(-1) == own).float().mean().item(), 4
        )
