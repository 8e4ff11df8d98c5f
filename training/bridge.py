"""`ciar-train bridge`: teach a frozen cloud to listen to interval features (eqs. 5 and 6, SPEC section 7).

What is learnt is phi on the device's side and W on the cloud's. A sequence the cloud drew is replayed with
the device's own tokens where its gate is sure; the cloud reads those tokens with W f added to their
embeddings, and its target is what it would have thought of its own sequence.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.errors import InvalidRequest, ModelMismatch
from shared.models.checkpoint import digest, load_device, save_device
from shared.models.families.emoji import EmojiModel
from shared.models.zoo import BRIDGE, CALIBRATION, read_calibration, write_calibration
from training.base import falling, require_words
from training.data import keyed_generator
from training.device import word_model
from training.drawn import HELD_SEED, TRAIN_SEED, Source
from training.engine import Engine
from training.listening import Bridge, Pair, cloud_logits, divergence
from training.presets import preset
from training.runs import Learner, drive
from training.scenes import scene_split
from training.standing_in import Keeping, Replayed

MEASURED_SHARE = 0.5  # of the tokens of a held-back image that the device keeps


@dataclass(frozen=True)
class BridgeRun:
    """Settings of one run; saved with it."""

    data: Path
    cloud: Path
    device: Path
    out: Path
    preset: str = "everyday"
    steps: int = 300
    batch: int = 8
    drawn: int = 256  # images the cloud draws for training
    held_back: int = 32  # images the effect is measured on
    images: Path | None = None  # folder of drawn images; `out` where none is given
    keeping: Keeping = field(default_factory=Keeping)
    rate: float = 3e-4  # ten times as much made the bundled cloud hear worse than without features
    average: float = 0.99
    seed: int = 0
    checkpoint_every: int = 100


class BridgeLesson(nn.Module):
    """The forward pass of one step: the frozen cloud around the bridge."""

    def __init__(self, bridge: Bridge, cloud: EmojiModel, guidance: float, engine: Engine) -> None:
        super().__init__()
        self.bridge = bridge
        # In a tuple it is no submodule: frozen weights are neither synchronised nor sharded.
        self._cloud = (cloud,)
        self.guidance, self.engine = guidance, engine

    def forward(self, captions: Sequence[str], replayed: Replayed, target_BTV: Tensor) -> Tensor:
        """Mean KL in nats."""
        added = self.bridge(replayed)
        with self.engine.here(), self.engine.autocast():
            logits = cloud_logits(self._cloud[0], captions, replayed, added, self.guidance)
        return divergence(logits, target_BTV, replayed.heard_BT)


class BridgeTrainer:
    """One run: draw, replay, learn, measure, export.

    Raises ModelMismatch for a device of another cloud, InvalidRequest where the export would overwrite it.
    """

    def __init__(self, run: BridgeRun, engine: Engine | None = None) -> None:
        self.run, self.engine = run, engine or Engine()
        self.folder = self.engine.folder(run.out)
        self.pair, owner = self._load()
        chosen = preset(run.preset)
        scenes, _ = scene_split(run.data, chosen.concepts, chosen.scenes, run.seed)
        require_words(self.pair.cloud, scenes, run.preset)
        self.bridge = self._fresh()
        lesson = BridgeLesson(self.bridge, self.pair.cloud, self.pair.warp.guidance, self.engine)
        self.lesson = self.engine.wrap(lesson)
        optimizer = torch.optim.AdamW(self.bridge.parameters(), lr=run.rate, weight_decay=0.01)
        self.learner = Learner(self.bridge, [optimizer], run.average)
        with self.engine.first_in_turn():
            state = self.folder.begin(run, chosen)
        if state:
            self.learner.restore(state)
        source = Source(self.pair.cloud, owner, self.pair.warp, run.images or run.out)
        self.drawn = source.images(scenes, run.drawn, TRAIN_SEED, self.engine)
        self.held_back = source.images(scenes, run.held_back, HELD_SEED, self.engine)

    def _load(self) -> tuple[Pair, str]:
        """The frozen pair, and the digest of its cloud."""
        run, place = self.run, self.engine.device
        if run.device.resolve() == (run.out / "device").resolve():
            raise InvalidRequest(f"{run.device} would be overwritten", "the run starts from it")
        cloud, device, served = word_model(run.cloud), load_device(run.device), digest(run.cloud)
        if device.config.cloud_digest != served:
            belongs = f"{run.device} belongs to cloud {device.config.cloud_digest}"
            raise ModelMismatch(belongs, f"{run.cloud} is {served}")
        warp = read_calibration(run.device / CALIBRATION).warp
        device.requires_grad_(False)
        return Pair(cloud.to(place), device.to(place), warp, run.keeping, self.engine), served

    def _fresh(self) -> Bridge:
        device = load_device(self.run.device)
        return Bridge(device, self.pair.cloud.config.dim)

    def save(self) -> None:
        """Write everything a resumed run needs."""
        self.folder.save(self.learner.state())

    def train(self) -> None:
        """Run to the last step, then export a device folder with its bridge."""
        drive(self, self.run.steps, self.run.batch, self.run.checkpoint_every)
        bridge = self.averaged_bridge()
        if self.engine.main:
            export(bridge, self.run.device, self.run.out / "device")

    def advance(self) -> dict[str, float]:
        """One optimiser step on replayed sequences; the loss is KL in nats per place behind a kept token."""
        run, step = self.run, self.learner.step
        rng = keyed_generator(run.seed + 6, step)
        picked, shares = rng.integers(0, len(self.drawn), run.batch), run.keeping.shares(rng, run.batch)
        rows = list(self.engine.share(run.batch))
        heard = self.pair.hear(self.drawn, picked[rows].tolist(), shares[rows].tolist())
        self.learner.set_rates(falling((run.rate,), step, run.steps))
        loss: Tensor = self.lesson(heard.captions, heard.replayed, heard.target_BTV)
        norm = self.learner.learn(loss)
        kept = heard.replayed.kept_BT.float().mean().item()
        figures = {"loss": loss.item(), "kept": kept}
        means = {name: round(self.engine.mean(value), 4) for name, value in figures.items()}
        return {**means, "gradient": round(norm, 4)}

    def averaged_bridge(self) -> Bridge:
        """The averaged weights, on the CPU."""
        bridge = self._fresh()
        bridge.load_state_dict(self.learner.averaged())
        return bridge.eval()

    def evaluate(self) -> dict[str, float]:
        """The effect on held-back images, half of whose tokens the device kept."""
        bridge = self.averaged_bridge().to(self.engine.device)
        effect = self.pair.effect(bridge, self.held_back, MEASURED_SHARE, self.run.batch)
        return {name: round(value, 4) for name, value in effect._asdict().items()}


def export(bridge: Bridge, source: Path, target: Path) -> None:
    """A device folder as `source` with the bridge's phi, and W where the cloud finds it.

    No gate reads phi, so the calibration stays true of what it counts without features; `ciar-eval rehearse`
    counts with them.
    """
    shutil.copytree(source, target, dirs_exist_ok=True)
    device = load_device(source)
    device.phi.load_state_dict(bridge.phi.state_dict())
    save_device(target, device)
    calibration = replace(read_calibration(source / CALIBRATION), device_digest=digest(target))
    write_calibration(target / CALIBRATION, calibration)
    save_file({"weight": bridge.weight.weight.detach().contiguous()}, target / BRIDGE)
