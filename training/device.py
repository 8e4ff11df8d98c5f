"""`ciar-train device`: distil a one-layer device model with an Inter-Head from a cloud model (SPEC section
7).

The teacher is the cloud's guided, temperature-1, unfiltered distribution on sequences the cloud drew itself,
mixed with real scenes. Guidance is distilled: the device learns the guided distribution and needs one row per
step. At the end every gate is calibrated on images the cloud draws from seeds that were not trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from shared.config import DeviceConfig
from shared.decoding.calibration import auroc
from shared.decoding.intervals import inter_fuse
from shared.decoding.warp import Warp, guide
from shared.errors import InvalidRequest
from shared.models.checkpoint import digest, load_model, load_vq, save_device
from shared.models.families.emoji import EmojiModel
from shared.models.family import ImageModel
from shared.models.inter_head import DeviceModel
from training.base import caption_rows, falling, optimizers, require_words, sample, teacher_forced_hidden
from training.calibrate import CALIBRATED, score_image
from training.cut import cut_device
from training.data import keyed_generator
from training.gate import Fitting, fit_gates, play, write_fitted
from training.images import Images
from training.presets import preset
from training.rehearsal import Pair
from training.runs import Learner, RunFolder, drive
from training.scenes import scene_split
from training.tokenizer import encode_scenes

BOUNDS = ("logit", "prob")
# Seeds of drawn images: training counts up from one, held-back images from the other.
TRAIN_SEED, HELD_SEED = 1_000_000, 9_000_000


@dataclass(frozen=True)
class InterDRO:
    """Weights and switches of the loss (eqs. 9 to 12)."""

    bounds: str = "logit"  # how lower and upper enter: softmax(c -+ r), or the fused p^l and p^u
    absolute: float = 1.0  # lambda_v of eq. 9
    entropy: float = 0.1  # lambda_p of eq. 9
    centre: float = 1.0  # lambda_b of eq. 11
    alpha: float = 1.0  # sharpness of the worst-case weights of eq. 10
    use_anchor: bool = True
    use_lower: bool = True
    use_upper: bool = True
    use_centre: bool = True

    def __post_init__(self) -> None:
        if self.bounds not in BOUNDS:
            raise InvalidRequest(f"unknown bounds {self.bounds!r}", f"allowed: {', '.join(BOUNDS)}")


@dataclass(frozen=True)
class DeviceRun:
    """Settings of one run; saved with it."""

    data: Path
    tokenizer: Path
    cloud: Path
    out: Path
    preset: str = "everyday"
    layers: int = 1
    steps: int = 600
    batch: int = 16
    drawn: int = 256  # images the cloud draws for training
    drawn_share: float = 0.5  # share of a batch taken from them, the rest are real scenes
    calibration_images: int = 192  # half of them fit the agreement gate, half the tables
    rate: float = 1e-3
    matrix_rate: float = 5e-3
    average: float = 0.99
    seed: int = 0
    guidance: float = 1.5  # distilled into the device
    temperature: float = 0.9  # the default warp, under which images are drawn and gates calibrated
    top_p: float = 0.95
    loss: InterDRO = field(default_factory=InterDRO)
    checkpoint_every: int = 100

    @property
    def warp(self) -> Warp:
        """The warp images are drawn under, on both sides."""
        return Warp(self.guidance, self.temperature, 0, self.top_p)


def inter_dro(loss: InterDRO, centre_NV: Tensor, radius_NV: Tensor, p_NV: Tensor) -> dict[str, Tensor]:
    """The terms of eq. 12 over N positions, each a scalar; a term that is switched off is absent.

    Eq. 9 anchors a distribution d to the teacher p: lambda_v ||d - p||_1 + lambda_p CE(p, d). Eq. 10 weighs
    the cross entropy of the lower bound towards its worst positions. Eq. 11 is KL(p || softmax c).
    """
    log_centre, log_low, log_high = _log_bounds(loss.bounds, centre_NV, radius_NV)
    terms: dict[str, Tensor] = {}
    named = {"anchor": (loss.use_anchor, log_centre), "upper": (loss.use_upper, log_high)}
    for name, (used, log_d) in {**named, "lower": (loss.use_lower, log_low)}.items():
        if used:
            terms[name] = _anchor(loss, log_d, p_NV)
    if loss.use_centre:
        kl = F.kl_div(log_centre, p_NV, reduction="batchmean")
        terms["centre"] = loss.centre * kl
    if loss.use_lower:
        cross_N = -(p_NV * log_low).sum(-1)
        weight_N = (loss.alpha * cross_N.detach()).softmax(0)
        terms["worst_case"] = (weight_N * cross_N).sum()
    return terms


def _log_bounds(bounds: str, centre_NV: Tensor, radius_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_centre = centre_NV.log_softmax(-1)
    if bounds == "logit":
        return log_centre, (centre_NV - radius_NV).log_softmax(-1), (centre_NV + radius_NV).log_softmax(-1)
    fused = inter_fuse(centre_NV, radius_NV)
    return log_centre, fused.lower_TV.clamp(min=1e-12).log(), fused.upper_TV.clamp(min=1e-12).log()


def _anchor(loss: InterDRO, log_d_NV: Tensor, p_NV: Tensor) -> Tensor:
    absolute = (log_d_NV.exp() - p_NV).abs().sum(-1).mean()
    return loss.absolute * absolute + loss.entropy * -(p_NV * log_d_NV).sum(-1).mean()


@dataclass(frozen=True, eq=False)
class Drawn:
    """Images the cloud drew by itself: captions, seeds, tokens [N, T]."""

    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    tokens_NT: Tensor


def draw_images(cloud: ImageModel, captions: Sequence[str], first_seed: int, warp: Warp, file: Path) -> Drawn:
    """Draw one image per caption with the keyed noise, in chunks, and keep the tokens in `file` for the next
    time."""
    seeds = tuple(range(first_seed, first_seed + len(captions)))
    if not file.exists():
        chunks = [slice(start, start + 16) for start in range(0, len(captions), 16)]
        drawn = [sample(cloud, captions[chunk], seeds[chunk], warp) for chunk in chunks]
        save_file({"tokens": torch.cat(drawn).to(torch.int32)}, file)
    return Drawn(tuple(captions), seeds, load_file(file)["tokens"].long())


@torch.no_grad()
def teacher_probabilities(
    cloud: EmojiModel, captions: Sequence[str], tokens_BT: Tensor, guidance: float
) -> Tensor:
    """The guided distribution of the cloud at every place, temperature 1, unfiltered: [B, T, V] (SPEC section
    7)."""
    with torch.autocast("cpu", torch.bfloat16):
        prefix, starts = caption_rows(cloud, captions)
        length = prefix.shape[1]
        nothing = cloud.gpt.embed_nothing(length)[None].expand(len(captions), -1, -1)
        both = torch.cat([prefix, nothing.to(prefix.dtype)])
        hidden = teacher_forced_hidden(cloud, both, starts.repeat(2), tokens_BT.repeat(2, 1))
        cond, uncond = cloud.gpt.logits(hidden).chunk(2)
    return guide(cond, uncond, guidance).softmax(-1)


def _word_model(folder: Path) -> EmojiModel:
    model = load_model(folder)
    if not isinstance(model, EmojiModel):
        raise InvalidRequest(
            f"{folder} holds a model of family {model.family!r}",
            "scenes and their captions train the emoji family",
            "ciar-train cut makes a device model of any family, without training",
        )
    return model


class DeviceTrainer:
    """One run: draw, distil, evaluate, calibrate, export."""

    def __init__(self, run: DeviceRun) -> None:
        self.run, self.folder = run, RunFolder(run.out)
        self.cloud, self.tokenizer = _word_model(run.cloud), load_vq(run.tokenizer)
        chosen = preset(run.preset)
        self.scenes, _ = scene_split(run.data, chosen.concepts, chosen.scenes, run.seed)
        require_words(self.cloud, self.scenes, run.preset)
        config = DeviceConfig(cloud_digest=digest(run.cloud), distilled_guidance=run.guidance)
        torch.manual_seed(run.seed)  # the radius head and phi; everything later is keyed by (seed, step)
        self.model = cut_device(self.cloud, run.layers, config)
        self.learner = Learner(self.model, optimizers(self.model, run.rate, run.matrix_rate), run.average)
        if state := self.folder.begin(run, chosen):
            self.learner.restore(state)
        self.drawn = self._draw(run.drawn, TRAIN_SEED, "drawn")
        self.held_back = self._draw(run.calibration_images, HELD_SEED, "held-back")

    def _draw(self, count: int, first_seed: int, name: str) -> Drawn:
        captions = (self.scenes.layout(index).caption for index in itertools.count(first_seed))
        named = list(itertools.islice(filter(None, captions), count))
        file = self.folder.path / f"{name}.safetensors"
        return draw_images(self.cloud, named, first_seed, self.run.warp, file)

    def save(self) -> None:
        """Write everything a resumed run needs."""
        self.folder.save(self.learner.state())

    def train(self) -> None:
        """Run to the last step, export, calibrate."""
        drive(self, self.run.steps, self.run.batch, self.run.checkpoint_every)
        model, folder = self.averaged_model(), self.run.out / "device"
        save_device(folder, model)
        held, pair = self.held_back, Pair(self.cloud, model, None)
        images = Images(held.captions, held.seeds, held.tokens_NT)
        write_fitted(folder, fit_gates(pair, images, Fitting(play(self.run.warp))))

    def advance(self) -> dict[str, float]:
        """One optimiser step on a mixture of drawn and real sequences; the losses are per position."""
        captions, tokens = self._batch()
        p_BTV = teacher_probabilities(self.cloud, captions, tokens, self.run.guidance)
        run = self.run
        self.learner.set_rates(falling((run.matrix_rate, run.rate), self.learner.step, run.steps))
        centre, radius = self._forward(self.model, captions, tokens)
        terms = inter_dro(self.run.loss, centre.flatten(0, 1), radius.flatten(0, 1), p_BTV.flatten(0, 1))
        loss = torch.stack(list(terms.values())).sum()
        record = {name: round(term.item(), 4) for name, term in terms.items()}
        radii = {
            "radius_mean": radius.mean().item(),
            "radius_std": radius.std().item(),
            "gradient": self.learner.learn(loss),
        }
        return {**record, **{name: round(value, 4) for name, value in radii.items()}}

    def _batch(self) -> tuple[list[str], Tensor]:
        run, step = self.run, self.learner.step
        drawn = round(run.batch * run.drawn_share)
        rng = keyed_generator(run.seed + 5, step)
        pick = rng.integers(0, len(self.drawn.captions), drawn).tolist()
        start = step * (run.batch - drawn)
        real = [self.scenes[start + i] for i in range(run.batch - drawn)]
        captions = [self.drawn.captions[i] for i in pick] + [scene.caption for scene in real]
        return captions, torch.cat(
            [self.drawn.tokens_NT[pick], encode_scenes(self.tokenizer, real).flatten(1)]
        )

    @staticmethod
    def _forward(model: DeviceModel, captions: Sequence[str], tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Centres and radii [B, T, V] on teacher-forced tokens."""
        assert isinstance(model.base, EmojiModel)  # cut from a cloud that is one
        hidden = teacher_forced_hidden(model.base, *caption_rows(model.base, captions), tokens_BT)
        return model.base.gpt.logits(hidden), model.inter_head(hidden)

    def averaged_model(self) -> DeviceModel:
        """The model that ships: averaged weights."""
        base = self.model.base.with_layers(self.run.layers)
        model = DeviceModel(base, self.model.config)
        model.load_state_dict(self.learner.average.values)
        return model.eval()

    def evaluate(self) -> dict[str, float]:
        """Share of coupled draws that differ from the cloud's on held-back images, and the AUROC of every
        gate."""
        scores, agree = self.gate_scores(self.averaged_model())
        differ = ~agree.ravel()
        ranks = {f"auroc_{name}": round(auroc(score.ravel(), differ), 4) for name, score in scores.items()}
        return {"differ": round(float(differ.mean()), 4), **ranks}

    @torch.no_grad()
    def gate_scores(self, model: DeviceModel) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
        """Scores [N, T] of every calibrated gate, and where the device's coupled draw equals the cloud's
        token."""
        held, scores, agree = self.held_back, [], []
        for row, (caption, seed) in enumerate(zip(held.captions, held.seeds, strict=True)):
            tokens = held.tokens_NT[row]
            centre, radius = self._forward(model, [caption], tokens[None])
            scored, agreed = score_image(seed, centre[0], radius[0], tokens, self.run.warp)
            scores.append(scored)
            agree.append(agreed)
        return {name: np.stack([image[name] for image in scores]) for name in CALIBRATED}, np.stack(agree)
