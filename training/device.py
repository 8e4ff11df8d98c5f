"""`ciar-train device`: distil a device model with Inter-Heads from a cloud model (SPEC section 7).

The teacher is the cloud's guided, temperature-1, unfiltered distribution on sequences the cloud drew itself,
mixed with real scenes. Guidance is distilled (the device learns the guided distribution and needs one row per
step), or two rows are kept and their guided logit is what learns. At the end every gate is calibrated on
images the cloud draws from seeds that were not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.config import DeviceConfig
from shared.decoding.calibration import auroc
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest
from shared.models.checkpoint import digest, load_model, load_vq, save_device
from shared.models.families.emoji import EmojiModel
from shared.models.inter_head import DeviceModel
from training.base import falling, optimizers, require_words
from training.calibrate import CALIBRATED, score_image
from training.cut import cut_device
from training.drawn import HELD_SEED, TRAIN_SEED, Source
from training.engine import Engine
from training.forcing import guidance_rows, prompt_weights, teacher_forced_hidden
from training.gate import Fitting, Pair, fit_gates, write_fitted
from training.inter_dro import InterDRO, heads_loss
from training.mixture import Blend, Mixture, check_form
from training.presets import preset
from training.runs import Learner, drive
from training.scenes import scene_split
from training.stopping import EarlyStop
from training.teacher import Teacher

BEST = "best.safetensors"
# Whose gradients are reported apart, by how their parameters' names begin.
PARTS = {
    "trunk": ("base.gpt.layers", "base.gpt.tok", "base.gpt.pos"),
    "radius": ("inter_head", "other_heads"),
}


@dataclass(frozen=True)
class DeviceRun:
    """Settings of one run; saved with it."""

    data: Path
    tokenizer: Path
    cloud: Path
    out: Path
    preset: str = "everyday"
    layers: int = 1
    heads: int = 1
    combine: str = "ensemble"  # how several heads become one interval
    steps: int = 600
    batch: int = 16
    drawn: int = 256  # images the cloud draws for training
    drawn_share: float = 0.5  # share of a batch taken from them, the rest are real scenes
    real: int = 0  # pool of real scenes; 0: fresh ones
    images: Path | None = None  # folder of drawn images and kept distributions; `out` where none is given
    teacher: str = "fly"  # fly, or kept in shards as fp16 or sparse
    teacher_ids: int = 64  # ids kept per place by a sparse teacher
    calibration_images: int = 192  # half of them fit the agreement gate, half the tables
    rate: float = 1e-3
    matrix_rate: float = 5e-3
    average: float = 0.99
    seed: int = 0
    guidance: float = 2.0
    distill_guidance: bool = True  # one row per step; else two
    temperature: float = 0.7  # the default warp, under which images are drawn and gates calibrated
    top_p: float = 0.9
    loss: InterDRO = field(default_factory=InterDRO)
    checkpoint_every: int = 100
    patience: int = 0  # evaluations without a better AUROC before the run ends; 0: never
    stop_gate: str = "interval"

    def __post_init__(self) -> None:
        if self.stop_gate not in CALIBRATED:
            raise InvalidRequest(f"no AUROC of gate {self.stop_gate!r}", f"allowed: {', '.join(CALIBRATED)}")
        check_form(self.teacher, self.blend)

    @property
    def blend(self) -> Blend:
        """What a batch is made of."""
        return Blend(self.batch, self.drawn_share, self.real, self.seed)

    @property
    def warp(self) -> Warp:
        """The warp images are drawn under, on both sides."""
        return Warp(self.guidance, self.temperature, 0, self.top_p)

    @property
    def rows(self) -> int:
        """Guidance rows of a device step."""
        return 1 if self.distill_guidance or self.guidance == 1 else 2

    @property
    def shape(self) -> DeviceConfig:
        """What the device model is."""
        distilled = self.guidance if self.distill_guidance else None
        return DeviceConfig(
            digest(self.cloud), distilled_guidance=distilled, heads=self.heads, combine=self.combine
        )


def word_model(folder: Path) -> EmojiModel:
    """The cloud in a folder, frozen. Raises InvalidRequest for a family whose captions are no words."""
    model = load_model(folder)
    if not isinstance(model, EmojiModel):
        raise InvalidRequest(
            f"{folder} holds a model of family {model.family!r}",
            "scenes and their captions train the emoji family",
            "ciar-train cut makes a device model of any family, without training",
        )
    return model.requires_grad_(False)


def forced_hidden(model: DeviceModel, captions: Sequence[str], tokens_BT: Tensor, rows: int) -> Tensor:
    """Hidden states fp32 [R, B, T, D] on teacher-forced tokens."""
    assert isinstance(model.base, EmojiModel)  # cut from a cloud that is one
    prefix, starts = guidance_rows(model.base, captions, rows)
    hidden = teacher_forced_hidden(model.base, prefix, starts, tokens_BT.repeat(rows, 1))
    return hidden.float().reshape(rows, len(tokens_BT), *hidden.shape[1:])


class Learnt(NamedTuple):
    """What one forward pass gives: the terms of the loss, and how the radii lie."""

    terms: dict[str, Tensor]
    radii: dict[str, Tensor]


class DeviceLesson(nn.Module):
    """The forward pass of one step."""

    def __init__(self, run: DeviceRun, model: DeviceModel, engine: Engine) -> None:
        super().__init__()
        self.run, self.model, self.engine = run, model, engine

    def forward(self, captions: Sequence[str], tokens_BT: Tensor, p_BTV: Tensor) -> Learnt:
        """Means over positions and heads; heads and losses are fp32."""
        with self.engine.here():
            with self.engine.autocast():
                hidden_RBTD = forced_hidden(self.model, captions, tokens_BT, self.run.rows)
            centre_HBTV = self.model.guided_centres(hidden_RBTD, self.run.guidance)
            radius_HBTV = self.model.radii(hidden_RBTD[0])
            inputs = centre_HBTV.flatten(1, 2), radius_HBTV.flatten(1, 2), p_BTV.flatten(0, 1)
            terms = heads_loss(self.run.loss, *inputs)
            if self.engine.shards:
                assert isinstance(self.model.base, EmojiModel)
                terms["unused"] = prompt_weights(self.model.base)
        return Learnt(terms, radius_figures(radius_HBTV.detach(), self.model.config.radius_max))


def radius_figures(radius: Tensor, most: float) -> dict[str, Tensor]:
    """Mean, spread, spread within a position (a uniform radius is invisible to the logit form of the loss)
    and the share that is clamped, of radii [..., V]."""
    return {
        "radius_mean": radius.mean(),
        "radius_std": radius.std(),
        "radius_within": radius.std(-1).mean(),
        "radius_clamped": (radius >= most).float().mean(),
    }


class DeviceTrainer:
    """One run: draw, distil, evaluate, calibrate, export."""

    def __init__(self, run: DeviceRun, engine: Engine | None = None) -> None:
        self.run, self.engine = run, engine or Engine()
        self.folder = self.engine.folder(run.out)
        cloud, device = word_model(run.cloud), self.engine.device
        chosen = preset(run.preset)
        scenes, _ = scene_split(run.data, chosen.concepts, chosen.scenes, run.seed)
        require_words(cloud, scenes, run.preset)
        torch.manual_seed(run.seed)  # further heads, radii and phi; everything later is keyed by (seed, step)
        self.model = cut_device(cloud, run.layers, run.shape)
        self.lesson = self.engine.wrap(DeviceLesson(run, self.model, self.engine))
        self.learner = Learner(self.model, optimizers(self.model, run.rate, run.matrix_rate), run.average)
        with self.engine.first_in_turn():
            state = self.folder.begin(run, chosen)
        if state:
            self.learner.restore(state)
        self.stopping = EarlyStop(run.out / "stopping.json", run.patience)
        self.stopping.resume()
        images = run.images or run.out
        source = Source(cloud.to(device), self.model.config.cloud_digest, run.warp, images)
        self.held_back = source.images(scenes, run.calibration_images, HELD_SEED, self.engine)
        drawn = source.images(scenes, run.drawn, TRAIN_SEED, self.engine)
        kept = run.guidance, run.teacher, run.teacher_ids, images
        teacher = Teacher(cloud, self.model.config.cloud_digest, *kept)
        self.mixture = Mixture(run.blend, drawn, scenes, load_vq(run.tokenizer).to(device), teacher)
        self.mixture.start(self.learner.step, self.engine)

    def save(self) -> None:
        """Write everything a resumed run needs."""
        self.folder.save(self.learner.state())

    def train(self) -> None:
        """Learn, export, calibrate."""
        self.learn()
        model = self.shipped_model()
        if self.engine.main:
            self.export(model)

    def learn(self) -> None:
        """Run to the last step or until nothing improves."""
        run, learner = self.run, self.learner
        at_checkpoint = learner.step > 0 and learner.step % run.checkpoint_every == 0
        if at_checkpoint and learner.step not in self.stopping.seen:
            self.evaluate()  # the run was stopped between a checkpoint and its evaluation
        while learner.step < run.steps and not self.stopping.over:
            mark = learner.step + run.checkpoint_every - learner.step % run.checkpoint_every
            drive(self, min(mark, run.steps), run.batch, run.checkpoint_every)

    def export(self, model: DeviceModel) -> None:
        """Write the device folder, its gates calibrated on the held-back images."""
        run = self.run
        save_device(run.out / "device", model)
        pair = Pair(word_model(run.cloud), model.cpu())
        write_fitted(run.out / "device", fit_gates(pair, self.held_back, Fitting(run.warp)))

    def advance(self) -> dict[str, float]:
        """One optimiser step on a mixture of drawn and real sequences; the losses are per position."""
        run, learner = self.run, self.learner
        batch = self.mixture.batch(learner.step)
        learner.set_rates(falling((run.matrix_rate, run.rate), learner.step, run.steps))
        learnt: Learnt = self.lesson(*batch)
        norm = learner.learn(torch.stack(list(learnt.terms.values())).sum())
        here = {**learnt.terms, **learnt.radii}
        figures = {name: self.engine.mean(value.item()) for name, value in here.items()}
        return {name: round(value, 4) for name, value in (figures | learner.norms(norm, PARTS)).items()}

    def averaged_model(self) -> DeviceModel:
        """The averaged weights of this step."""
        return self._with(self.learner.averaged())

    def shipped_model(self) -> DeviceModel:
        """The averaged weights: of the last step, or of the best one where the run may end early."""
        best = self.run.out / BEST
        return self._with(load_file(best)) if self.run.patience and best.exists() else self.averaged_model()

    def _with(self, weights: Mapping[str, Tensor]) -> DeviceModel:
        model = DeviceModel(self.model.base.with_layers(self.run.layers), self.model.config)
        model.load_state_dict(weights)
        return model.eval()

    def evaluate(self) -> dict[str, float]:
        """Share of coupled draws that differ from the cloud's on held-back images, and the AUROC of every
        gate; the best weights are kept where the run may end early."""
        model = self.averaged_model()
        scores, agree = self.gate_scores(model)
        differ = ~agree.ravel()
        ranks = {f"auroc_{name}": round(auroc(score.ravel(), differ), 4) for name, score in scores.items()}
        best = self.stopping.saw(
            self.learner.step, self.engine.agree(float(ranks[f"auroc_{self.run.stop_gate}"]))
        )
        if self.engine.main:
            self.stopping.write()
            if best and self.run.patience:
                save_file(model.state_dict(), self.run.out / BEST)
        return {"differ": round(float(differ.mean()), 4), **ranks}

    @torch.no_grad()
    def gate_scores(self, model: DeviceModel) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
        """Scores [N, T] of every calibrated gate, and where the device's coupled draw equals the cloud's
        token."""
        held, scores, agree, run = self.held_back, [], [], self.run
        model.to(self.engine.device)
        for row, (caption, seed) in enumerate(zip(held.captions, held.seeds, strict=True)):
            tokens = held.tokens_NT[row]
            with self.engine.here():
                hidden = forced_hidden(model, [caption], tokens[None].to(self.engine.device), run.rows)[:, 0]
            centre, radius = model.centre(hidden, run.guidance).cpu(), model.radius(hidden[0]).cpu()
            scored, agreed = score_image(seed, centre, radius, tokens, run.warp)
            scores.append(scored)
            agree.append(agreed)
        return {name: np.stack([image[name] for image in scores]) for name in CALIBRATED}, np.stack(agree)
