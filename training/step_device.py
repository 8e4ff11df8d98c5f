"""`ciar-train dit-device`: the one-block companion of a large DiT, distilled on the cloud's own paths.

It learns how far the guided noise leaves the line through the cloud's last two outputs, and how far off that
guess may be. First on paths of the cloud alone, then also on mixed ones, drawn with the device as it is by
then. The errors of a batch are counted in what the line would have cost there and weighed towards the worst:
Inter-DRO.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.decoding.denoising import FARTHEST, Denoising, Guess, denoising
from shared.errors import InvalidRequest
from shared.models.by_step import load_dit, load_pictures, save_step_device
from shared.models.checkpoint import digest, read_config
from shared.models.families.dit_device import Anchor, StepCompanion, StepDevice, cut_steps
from training.base import falling, optimizers
from training.data import keyed_generator
from training.drawn import save_whole
from training.step_calibrate import calibrate
from training.step_paths import Mix, Paths, components, walk
from training.trainer import ModelTrainer

MIXED = 2  # times that mixed paths are drawn
HELD = 4  # images of every path file that are measured on, not trained on
GAPS = (1, 2, 4, 8)  # at which they are measured


@dataclass(frozen=True)
class StepLoss:
    """coverage   share of places that the interval shall hold (a quantile loss)
    alpha      sharpness of the weights towards the worst of a batch; 0: a plain mean
    floor      mean square of a change that is as good as none
    """

    coverage: float = 0.9
    alpha: float = 0.5
    floor: float = 1e-4


@dataclass(frozen=True)
class StepDeviceRun:
    """Settings of one run; saved with it. Raises InvalidRequest where nothing would be left to train on."""

    base: Path
    out: Path
    steps: int = 1500
    batch: int = 24
    images: int = 96  # of either kind of path
    layers: int = 1
    features: int = 32
    max_gap: int = 14
    alone: float = 0.1  # share of a batch that knows nothing of a cloud
    spacing: str = "ddim50"
    rate: float = 1e-3
    matrix_rate: float = 5e-3
    average: float = 0.995
    seed: int = 0
    checkpoint_every: int = 250
    calibration_images: int = 6
    guidance: float = 2.0  # that thresholds are calibrated at
    loss: StepLoss = field(default_factory=StepLoss)

    def __post_init__(self) -> None:
        if self.images <= HELD:
            raise InvalidRequest(f"{self.images} images", f"allowed: more than {HELD}, which are held back")


class Pair(nn.Module):
    """The device, and the projection by which the cloud shortens its hidden states for it."""

    def __init__(self, device: StepDevice, projection_DF: Tensor) -> None:
        super().__init__()
        self.device, self.projection = device, nn.Parameter(projection_DF)


class StepDeviceTrainer(ModelTrainer[StepDeviceRun, Pair]):
    """One run: draw paths, distil, evaluate, calibrate, export."""

    def __init__(self, run: StepDeviceRun) -> None:
        super().__init__(run)
        self.cloud = load_dit(run.base / "cloud").requires_grad_(False)
        load_pictures(run.base / "vae")  # now, not when everything has been learned
        self.process: Denoising = denoising(run.spacing, "ddim")
        steps = range(len(self.process))
        self.original_T = torch.tensor([self.process.original(step) for step in steps])
        self.clear_T = torch.tensor([self.process.clearness(step) for step in steps])
        run.out.mkdir(parents=True, exist_ok=True)
        self.paths = [self._walk(0, None)]
        torch.manual_seed(run.seed)  # new parts; everything later is keyed by (seed, step)
        device = cut_steps(self.cloud, run.layers, StepCompanion(digest(run.base / "cloud"), run.features))
        device.base.pos_embed.requires_grad_(False)
        self.model = Pair(device, components(self.paths[0].hidden, run.features))
        groups = optimizers(self.model, run.rate, run.matrix_rate, "blocks.")
        self.begin(groups, device.config)

    def train(self) -> None:
        """Run to the last step, then export `OUT/model` with its cloud and decoder, budgets calibrated."""
        run, home = self.run, self.run.out / "model"
        self.drive()
        pair = self.averaged_model()
        for name in ("cloud", "vae"):
            shutil.copytree(run.base / name, home / name, dirs_exist_ok=True)
        labels = read_config(run.base / "cloud", "cloud").get("labels", ())
        save_step_device(home / "device", pair.device, pair.projection, labels)
        calibrate(home, run.spacing, run.guidance, run.calibration_images)

    def advance(self) -> dict[str, float]:
        """One optimiser step; mixed paths join those of the cloud alone after equal parts of the run."""
        run, step = self.run, self.learner.step
        while len(self.paths) <= min(MIXED, step * (MIXED + 1) // run.steps):
            averaged = self.averaged_model()
            mix = Mix(averaged.device, averaged.projection.detach(), run.max_gap)
            self.paths.append(self._walk(len(self.paths), mix))
        self.learner.set_rates(falling((run.matrix_rate, run.rate), step, run.steps))
        paths = self.paths[step % len(self.paths)]
        rng = keyed_generator(run.seed + 3, step)
        image = torch.from_numpy(rng.integers(0, len(paths) - HELD, run.batch))
        place = torch.from_numpy(rng.integers(1, len(self.process), run.batch))
        anchor, earlier = paths.asked(image, place, rng, run.max_gap)
        nobody = torch.from_numpy(rng.random(run.batch) < run.alone)
        anchor[nobody] = earlier[nobody] = -1
        with torch.autocast("cpu", torch.bfloat16):
            centre, radius = self._losses(self.model, paths, image, place, torch.stack([anchor, earlier]))
        self.learner.learn(centre + radius)
        return {"loss": round(centre.item(), 4), "radius": round(radius.item(), 4)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """On held-back images of the cloud's own, by gap: mean square error of the device and of the line, as
        shares of what repeating the cloud's noise costs, and the share of places that the interval holds."""
        pair, figures, paths = self.averaged_model(), {}, self.paths[0]
        image = torch.arange(len(paths) - HELD, len(paths))
        first = min(max(GAPS), len(self.process) - 1)
        places = torch.arange(first, len(self.process), 5)
        image_B, place_B = image.repeat_interleave(len(places)), places.repeat(HELD)
        for gap in (gap for gap in GAPS if gap <= first):
            asked_2B = torch.stack([place_B - gap, place_B - 2 * gap])
            asked_2B[1, asked_2B[1] < 0] = -1
            guess, eps, anchor = self._guess(pair, paths, image_B, place_B, asked_2B)
            assert anchor.line is not None, "every anchor of a path has one"
            reused = (anchor.eps - eps).square().mean()
            for name, found in (("error", guess.eps), ("line", anchor.line)):
                figures[f"{name}_{gap}"] = round(((found - eps).square().mean() / reused).item(), 4)
            inside = ((guess.eps - eps).abs() <= guess.radius).float().mean()
            figures[f"held_{gap}"] = round(inside.item(), 3)
        return figures

    def _guess(
        self, pair: Pair, paths: Paths, image_B: Tensor, place_B: Tensor, asked_2B: Tensor
    ) -> tuple[Guess, Tensor, Anchor]:
        """The device's guesses, the truth [B, C, H, H], and what the guesses began from. The cloud was asked
        at these steps, last and before; -1: never."""
        anchor = paths.anchor(image_B, asked_2B[0], self.original_T, pair.projection)
        last_B, before_B = (self.clear_T[asked_B.clamp(min=0)] for asked_B in asked_2B)
        far_B = ((self.clear_T[place_B] - last_B) / (last_B - before_B)).clamp(max=FARTHEST)
        far_B = torch.where(asked_2B[1] >= 0, far_B, 0.0)[:, None, None, None]
        before = paths.eps[image_B, asked_2B[1].clamp(min=0)].float()
        anchor = replace(anchor, line=anchor.eps + far_B * (anchor.eps - before))
        state, eps = (values[image_B, place_B].float() for values in (paths.state, paths.eps))
        labels_B, scale_B = paths.label[image_B], paths.guidance[image_B]
        return pair.device(state, self.original_T[place_B], labels_B, scale_B, anchor), eps, anchor

    def _losses(
        self, pair: Pair, paths: Paths, image_B: Tensor, place_B: Tensor, asked_2B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of the centre and of the radius."""
        loss = self.run.loss
        guess, eps, anchor = self._guess(pair, paths, image_B, place_B, asked_2B)
        assert anchor.line is not None, "every anchor of a path has one"
        reused_B = (anchor.line - eps).square().mean((1, 2, 3)) + loss.floor
        error_B = (guess.eps - eps).square().mean((1, 2, 3))
        worst_B = len(eps) * (loss.alpha * (error_B / reused_B).detach()).softmax(0)
        off = (guess.eps - eps).abs().detach() - guess.radius
        quantile_B = torch.maximum(loss.coverage * off, (loss.coverage - 1) * off).mean((1, 2, 3))
        return (worst_B * error_B / reused_B).mean(), (quantile_B / reused_B.sqrt()).mean()

    def _walk(self, kind: int, mix: Mix | None) -> Paths:
        """Paths of a kind: 0 the cloud's own, else mixed; no two kinds share seeds. Drawn once a run."""
        file = self.run.out / f"paths-{kind}.safetensors"
        if not file.exists():
            first = 10_000 * (kind + 1) + 1000 * self.run.seed
            seeds = range(first, first + self.run.images)
            save_whole(vars(walk(self.cloud, self.process, seeds, mix)), file)
        return Paths(**load_file(file))
