"""`ciar-train gate`: everything the gates of a finished pair need, fitted on images the cloud draws.

The agreement network and the factors on radii learn from one half of the images. On the other half every
gate gets its table; then the gated decode is rehearsed, so that a call rate is that of an image in which kept
tokens stand in for the cloud's, and a promise counts the tokens that were kept wrongly in their own context.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from shared.decoding.agreement import Learned
from shared.decoding.calibration import (
    Calibration,
    GateTable,
    auroc,
    fit_gate,
    keep_promises,
    with_calls,
)
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest, ModelMismatch
from shared.models.checkpoint import digest, load_device, load_model
from shared.models.gate_file import GATE_FILE, write_learned
from shared.models.zoo import BRIDGE, CALIBRATION, read_calibration, write_calibration
from training.agreement import Example, fit_learned
from training.calibrate import SCORED, Scores, look, stacked
from training.cut import read_prompts
from training.drawn import HELD_SEED, Sequences
from training.images import cloud_log_p, device_interval, draw_images
from training.presets import preset
from training.rehearsal import Ask, Pair, Play, rehearse
from training.scenes import scene_split

TRIED = (0.1, 0.15, 0.2, 0.26, 0.32, 0.4)  # teacher-forced budgets whose thresholds are rehearsed
RISKS = (0.005, 0.01, 0.02, 0.04)  # teacher-forced shares of wrong kept tokens: the same, for promises
PROMISES = (0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3)
PROMISED = ("agreement", "certificate")
DEFAULT = "agreement"


@dataclass(frozen=True)
class Fitting:
    """How gates are fitted. The play is that of mode `ciar`.

    rehearsed  images that are rehearsed per gate and threshold; 0: call rates stay teacher-forced
    promised   the same for gates that make promises, which need about 100
    factors    images of the first half on which the cloud is run once more to scale the radii
    """

    play: Play
    rehearsed: int = 16
    promised: int = 96
    factors: int = 16
    steps: int = 1000
    seed: int = 0


def play(warp: Warp) -> Play:
    """The default policy of mode `ciar`, as the device plays it."""
    return Play(warp, span=16, floor=0.3, prefix_rate=0.06)


@dataclass(frozen=True, eq=False)
class Fitted:
    """What is written beside the device's weights, and how well every gate ranks (AUROC, second half)."""

    learned: Learned
    calibration: Calibration
    ranks: Mapping[str, float]


def fit_gates(pair: Pair, drawn: Sequences, fitting: Fitting) -> Fitted:
    """Fit network, factors, tables and promises of a pair on images its cloud drew.

    Raises InvalidRequest for fewer than two images.
    """
    if len(drawn.captions) < 2:
        raise InvalidRequest(f"{len(drawn.captions)} images cannot fit a gate", "allowed: 2 and more")
    half = len(drawn.captions) // 2
    learned = _learn(pair, drawn.part(0, half), fitting)
    rest = drawn.part(half, len(drawn.captions))
    examples = _examples(pair, rest, fitting.play.warp, learned)
    scores, agree_NT = stacked(examples, SCORED)
    tables = _teacher_forced(scores, agree_NT, fitting.play)
    pair = replace(pair, learned=learned)
    if fitting.rehearsed:
        risky = {name: risk_thresholds(scores[name], agree_NT) for name in PROMISED}
        tables = {n: _rehearsed(pair, rest, n, (tables, risky.get(n, ())), fitting) for n in tables}
    ranks = {name: auroc(score.ravel(), ~agree_NT.ravel()) for name, score in scores.items()}
    plan, owner = fitting.play, pair.device.config.cloud_digest
    calibration = Calibration(
        owner, plan.warp, plan.span, plan.prefix_rate, tables, floor=plan.floor, default_gate=DEFAULT
    )
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
    rehearsed: int = 16
    promised: int = 96
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
    pair = Pair(load_model(cloud_folder), device, None, _bridge(folder))
    drawn = draw_images(pair.cloud, run.prompts, run.seed, warp, run.cache)
    fitted = fit_gates(pair, drawn, Fitting(play(warp), run.rehearsed, run.promised, steps=run.steps))
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


def _bridge(folder: Path) -> Tensor | None:
    file = folder / BRIDGE
    return load_file(file)["weight"].float() if file.is_file() else None


def _examples(pair: Pair, drawn: Sequences, warp: Warp, learned: Learned | None) -> list[Example]:
    images = zip(drawn.captions, drawn.seeds, drawn.tokens_NT, strict=True)
    return [
        look(seed, device_interval(pair.device, prompt, tokens_T, warp), tokens_T, warp, learned)
        for prompt, seed, tokens_T in images
    ]


def _learn(pair: Pair, drawn: Sequences, fitting: Fitting) -> Learned:
    warp = fitting.play.warp
    examples = _examples(pair, drawn, warp, None)
    few = list(zip(drawn.captions, drawn.tokens_NT, strict=True))[: fitting.factors]
    log_p = [cloud_log_p(pair.cloud, prompt, tokens_T, warp.unfiltered) for prompt, tokens_T in few]
    return fit_learned(examples, log_p, fitting.steps, fitting.seed)


def _teacher_forced(scores: Scores, agree_NT: np.ndarray, play: Play) -> dict[str, GateTable]:
    prefix = play.prefix(agree_NT.shape[1])
    return {name: fit_gate(score_NT, agree_NT, play.span, prefix) for name, score_NT in scores.items()}


def _rehearsed(
    pair: Pair,
    drawn: Sequences,
    name: str,
    known: tuple[Mapping[str, GateTable], Sequence[float]],
    fitting: Fitting,
) -> GateTable:
    """The table with call rates, and promises where the gate makes them, from rehearsals.

    known  the teacher-forced tables, and further thresholds to try
    """
    tables, more = known
    table, promising = tables[name], name in PROMISED
    taus = sorted({*(table.threshold(budget) for budget in TRIED), *more})
    images = min(fitting.promised if promising else fitting.rehearsed, len(drawn.captions))
    asks = list(_asks(drawn, images, taus))
    found = rehearse(pair, asks, fitting.play, name, (DEFAULT, tables[DEFAULT]))
    calls_MN, kept_MN, wrong_MN = (
        row.reshape(len(taus), images) for row in (found.calls_N, found.kept_N, found.wrong_N)
    )
    table = with_calls(table, taus, calls_MN.mean(1).tolist())
    if not promising:
        return table
    promises, bounds = keep_promises(taus, wrong_MN, kept_MN, PROMISES)
    return replace(table, promises=promises, bounds=bounds)


def risk_thresholds(score_NT: np.ndarray, agree_NT: np.ndarray) -> list[float]:
    """Per share of RISKS, the largest tau at which no larger a share of the tokens scored at most tau
    differs from the cloud's; a share that no tau reaches has none."""
    order = np.argsort(score_NT, axis=None)
    risk = np.cumsum(~agree_NT.ravel()[order]) / np.arange(1, agree_NT.size + 1)
    last = [np.flatnonzero(risk <= share) for share in RISKS]
    return [float(score_NT.ravel()[order[places[-1]]]) for places in last if len(places)]


def _asks(drawn: Sequences, images: int, taus: Sequence[float]) -> Iterable[Ask]:
    for tau in taus:
        for prompt, seed in zip(drawn.captions[:images], drawn.seeds, strict=False):
            yield Ask(prompt, seed, tau)
