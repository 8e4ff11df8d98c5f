"""`ciar-train gate`: everything the gates of a finished pair need, fitted on images the cloud draws.

The agreement network and the factors on radii learn from one half of the images. On the other half every
gate gets its table, teacher-forced: what a kept token changes, and what guesses save, only the whole system
knows; `ciar-eval rehearse` runs that and puts real call rates and promises into the tables.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from shared.decoding.agreement import Learned
from shared.decoding.calibration import Calibration, auroc, fit_gate
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest, ModelMismatch
from shared.models.checkpoint import digest, load_device, load_model
from shared.models.family import ImageModel
from shared.models.gate_file import GATE_FILE, write_learned
from shared.models.inter_head import DeviceModel
from shared.models.zoo import CALIBRATION, read_calibration, write_calibration
from training.agreement import Example, fit_learned
from training.calibrate import SCORED, look, stacked
from training.cut import read_prompts
from training.drawn import HELD_SEED, Sequences
from training.images import cloud_log_p, device_interval, draw_images
from training.presets import preset
from training.scenes import scene_split

DEFAULT = "agreement"
SPAN, PREFIX_RATE = 16, 0.06  # of the rounds that are counted teacher-forced


@dataclass(frozen=True, eq=False)
class Pair:
    """A finished cloud and its device."""

    cloud: ImageModel
    device: DeviceModel


@dataclass(frozen=True)
class Fitting:
    """How gates are fitted: under `warp`, on `factors` images of the first half the cloud is run once more to
    scale the radii."""

    warp: Warp
    factors: int = 16
    steps: int = 1000
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Fitted:
    """What is written beside the device's weights, and how well every gate ranks (AUROC, second half)."""

    learned: Learned
    calibration: Calibration
    ranks: Mapping[str, float]


def fit_gates(pair: Pair, drawn: Sequences, fitting: Fitting) -> Fitted:
    """Fit network, factors and tables of a pair on images its cloud drew.

    Raises InvalidRequest for fewer than two images.
    """
    if len(drawn.captions) < 2:
        raise InvalidRequest(f"{len(drawn.captions)} images cannot fit a gate", "allowed: 2 and more")
    half = len(drawn.captions) // 2
    learned = _learn(pair, drawn.part(0, half), fitting)
    rest = drawn.part(half, len(drawn.captions))
    examples = _examples(pair, rest, fitting.warp, learned)
    scores, agree_NT = stacked(examples, SCORED)
    tokens = agree_NT.shape[1]
    prefix = int(PREFIX_RATE * tokens)
    tables = {name: fit_gate(score_NT, agree_NT, SPAN, prefix) for name, score_NT in scores.items()}
    ranks = {name: auroc(score.ravel(), ~agree_NT.ravel()) for name, score in scores.items()}
    owner = pair.device.config.cloud_digest
    calibration = Calibration(owner, fitting.warp, SPAN, prefix / tokens, tables, default_gate=DEFAULT)
    return Fitted(learned, calibration, ranks)


def write_fitted(folder: Path, fitted: Fitted) -> None:
    """Write the gate and the calibration beside the device's weights in `folder`, with both digests."""
    write_learned(folder / GATE_FILE, fitted.learned, fitted.calibration.cloud_digest)
    calibration = replace(fitted.calibration, device_digest=digest(folder))
    write_calibration(folder / CALIBRATION, calibration)


@dataclass(frozen=True)
class GateRun:
    """What to fit. Raises ModelMismatch where device and cloud do not belong together.

    model    model folder; `gate.safetensors` and `calibration.json` of its `device/` are written
    prompts  an image is drawn for each; half of them fit the network, half the tables
    cache    where the drawn images are kept for the next time; None: nowhere
    """

    model: Path
    prompts: tuple[str, ...]
    cache: Path | None = None
    steps: int = 1000
    seed: int = HELD_SEED


def fit_model(run: GateRun) -> Fitted:
    """Fit the gates of the pair in a model folder and write them; the warp is that of its calibration."""
    cloud_folder, folder = run.model / "cloud", run.model / "device"
    device, owner = load_device(folder), digest(cloud_folder)
    if device.config.cloud_digest != owner:
        what = f"{folder} belongs to cloud {device.config.cloud_digest}"
        raise ModelMismatch(what, f"{cloud_folder} is {owner}", "train a device for this cloud")
    known = folder / CALIBRATION
    warp = read_calibration(known).warp if known.is_file() else device.base.warp
    pair = Pair(load_model(cloud_folder), device)
    drawn = draw_images(pair.cloud, run.prompts, run.seed, warp, run.cache)
    fitted = fit_gates(pair, drawn, Fitting(warp, steps=run.steps))
    write_fitted(folder, fitted)
    return fitted


def gate_prompts(file: Path | None, data: Path | None, name: str, images: int) -> tuple[str, ...]:
    """Prompts to draw: the lines of a file, from the first again where it has fewer, or captions of the
    held-back scenes of a preset. Raises InvalidRequest unless exactly one of the two is given."""
    if (file is None) == (data is None):
        raise InvalidRequest("--prompts and --data are both given or both missing", "", "give one of them")
    if data is not None:
        chosen = preset(name)
        scenes, _ = scene_split(data, chosen.concepts, chosen.scenes, 0)
        captions = filter(None, (scenes.layout(index).caption for index in itertools.count(HELD_SEED)))
        return tuple(itertools.islice(captions, images))
    lines = read_prompts(file, images)
    if not lines:
        raise InvalidRequest(f"{file} has no prompts", "it holds one prompt a line")
    return tuple(itertools.islice(itertools.cycle(lines), images))


def _examples(pair: Pair, drawn: Sequences, warp: Warp, learned: Learned | None) -> list[Example]:
    images = zip(drawn.captions, drawn.seeds, drawn.tokens_NT, strict=True)
    return [
        look(seed, device_interval(pair.device, prompt, tokens_T, warp), tokens_T, warp, learned)
        for prompt, seed, tokens_T in images
    ]


def _learn(pair: Pair, drawn: Sequences, fitting: Fitting) -> Learned:
    warp = fitting.warp
    examples = _examples(pair, drawn, warp, None)
    few = list(zip(drawn.captions, drawn.tokens_NT, strict=True))[: fitting.factors]
    log_p = [cloud_log_p(pair.cloud, prompt, tokens_T, warp.unfiltered) for prompt, tokens_T in few]
    return fit_learned(examples, log_p, fitting.steps, fitting.seed)
