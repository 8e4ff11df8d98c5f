"""`ciar-train base`: the cloud model, text to image tokens. Knows nothing of the device or of decoding
policies.

Teacher forcing on scenes encoded by a trained tokenizer. Token corruption (inputs only) makes the model
robust to its own mistakes; captions are dropped by the data, and the dropped rows train `uncond_embedding`
for guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.decoding.noise import gumbel
from shared.decoding.warp import Warp, log_probs
from shared.errors import InvalidRequest
from shared.models.checkpoint import load_model, load_vq, save_model
from shared.models.families.emoji import EmojiModel
from shared.models.family import ImageModel
from shared.models.kv_cache import KVCache, cache_window
from shared.models.text import split_words
from shared.models.vq import VQModel, to_pixels
from training.carry import carry_over, seen_together
from training.data import keyed_generator
from training.engine import Engine
from training.forcing import caption_rows, prompt_weights, teacher_forced_hidden
from training.held_back import held_back_combinations, seen_beside
from training.loading import SceneBatch, encode, scene_batches
from training.presets import preset
from training.runs import Learner, RunFolder, drive
from training.scenes import Scene, Scenes, scene_split

SAMPLE_PROMPTS = (
    "a cat", "a dog face", "a red apple", "a house", "a rocket", "a penguin",
    "a cat on a light blue background", "a banana on a pink background", "a sunflower noto style",
    "a smiling face with sunglasses", "a guitar 3d style", "a red heart", "an owl", "a bus flat style",
    "a snowman", "a mushroom",
)  # fmt: skip


@dataclass(frozen=True)
class BaseRun:
    """Settings of one run; saved with it."""

    data: Path
    tokenizer: Path
    out: Path
    preset: str = "everyday"
    steps: int = 3000
    batch: int = 16
    rate: float = 2e-3
    matrix_rate: float = 1e-2
    cooldown: int = 0  # last steps over which the rates fall; 0: they fall from the first step on
    start_from: Path | None = None  # run folder whose weights, optimisers and step a new run takes over
    grown_from: Path | None = None  # model folder whose cloud knows other words or draws with other codes
    corruption: float = 0.12  # each row corrupts a share U(0, corruption) of its input tokens
    average: float = 0.995
    seed: int = 0
    checkpoint_every: int = 250
    sample_warp: Warp = field(default_factory=lambda: Warp(guidance=2.0, temperature=0.7, top_p=0.9))


def corrupt(tokens_BT: Tensor, near_KJ: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Replace a share U(0, `share`) of each row: half by a near code, half by a token of the same batch."""
    shape = tokens_BT.shape
    hit = rng.random(shape) < rng.random((shape[0], 1)) * share
    near = near_KJ[tokens_BT, torch.from_numpy(rng.integers(0, near_KJ.shape[1], shape))]
    other = tokens_BT.flatten()[torch.from_numpy(rng.integers(0, tokens_BT.numel(), shape))]
    replacement = torch.where(torch.from_numpy(rng.random(shape) < 0.5), near, other)
    return torch.where(torch.from_numpy(hit), replacement, tokens_BT)


def nearest_codes(tokenizer: VQModel, count: int = 8) -> Tensor:
    """The `count` nearest other codes of each code: [K, count]."""
    codes = tokenizer.quantize.codes()
    return (codes @ codes.T).fill_diagonal_(-2).topk(count).indices


def optimizers(
    model: nn.Module, rate: float, matrix_rate: float, blocks: str = ".layers."
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, whose names hold `blocks`; AdamW for embeddings, heads, norms."""
    matrices = [p for n, p in model.named_parameters() if blocks in n and p.ndim == 2]
    others = [p for n, p in model.named_parameters() if not (blocks in n and p.ndim == 2)]
    return [
        torch.optim.Muon(matrices, lr=matrix_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def falling(rates: Sequence[float], step: int, steps: int, cooldown: int = 0) -> list[float]:
    """Learning rates that warm up over 50 steps and fall linearly to 2 % over the last `cooldown` ones (0:
    over all).

    With a cooldown the rates stay constant before it, so that one long run can be cut at any step: a run
    that starts from it and only cools down ends as if that length had been planned.
    """
    span = cooldown or steps
    fallen = max(0.0, (step - (steps - span)) / span)
    factor = min(1.0, (step + 1) / 50) * (1 - 0.98 * fallen)
    return [rate * factor for rate in rates]


@torch.no_grad()
def sample(model: ImageModel, prompts: Sequence[str], seeds: Sequence[int], warp: Warp) -> Tensor:
    """Draw one image of tokens per prompt, [B, T], with the keyed noise of each seed (the base of SPEC
    section 3)."""
    config, rows = model.config, [model.prompt_rows(prompt) for prompt in prompts]
    cache = KVCache(config, 2 * len(prompts))
    longest = max(row.shape[1] for row in rows)
    x = torch.cat([F.pad(row, (0, 0, longest - row.shape[1], 0)) for row in rows])
    starts = [start for row in rows for start in model.starts(row.shape[1])]
    slots, positions = (
        range(len(starts)),
        [list(range(config.prefix_len - longest, config.prefix_len))] * len(starts),
    )
    noise = torch.stack([gumbel(seed, range(config.image_tokens), config.vocab_size) for seed in seeds])
    noise = noise.to(x.device)
    drawn: list[Tensor] = []
    for place in range(config.image_tokens):
        hidden = model.gpt(x, cache_window(slots, positions, starts), cache)[:, -1]
        cond, uncond = model.gpt.logits(hidden).reshape(len(prompts), 2, -1).unbind(1)
        drawn.append((log_probs(cond, uncond, warp) + noise[:, place]).argmax(-1))
        both = drawn[-1].repeat_interleave(2)[:, None]
        x = model.gpt.embed_tokens(both, torch.full_like(both, place))
        positions = [[config.prefix_len + place]] * len(both)
    return torch.stack(drawn, dim=1)


def require_words(cloud: EmojiModel, scenes: Scenes, name: str) -> None:
    """Raise InvalidRequest where the scenes of preset `name` say what the cloud was never told."""
    unknown = sorted(set(scenes.vocabulary()) - set(cloud.vocabulary.words))
    if unknown or scenes.limits.captions.words > cloud.config.prefix_len:
        raise InvalidRequest(
            f"the cloud was not trained on captions of preset {name!r}",
            f"unknown words: {unknown[:5]}; its captions have {cloud.config.prefix_len} words at most",
            "give the --preset that the cloud was trained with",
        )


class BaseLesson(nn.Module):
    """The forward pass of one step."""

    def __init__(self, model: EmojiModel, engine: Engine) -> None:
        super().__init__()
        self.model, self.engine = model, engine

    def forward(self, captions: Sequence[str], inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Nats per token."""
        with self.engine.here(), self.engine.autocast():
            loss = nll(self.model, captions, inputs_BT, targets_BT)
            return loss + prompt_weights(self.model) if self.engine.shards else loss


def nll(model: EmojiModel, captions: Sequence[str], inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Nats per token of `targets_BT`, given `inputs_BT`."""
    hidden = teacher_forced_hidden(model, *caption_rows(model, captions), inputs_BT)
    return F.cross_entropy(model.gpt.logits(hidden).flatten(0, 1), targets_BT.flatten())


class BaseTrainer:
    """One run: step, resume, evaluate, export."""

    def __init__(self, run: BaseRun, engine: Engine | None = None) -> None:
        self.engine = engine or Engine()
        self.run, self.folder = run, self.engine.folder(run.out)
        chosen = preset(run.preset)
        self.scenes, self.held_back = scene_split(run.data, chosen.concepts, chosen.scenes, run.seed)
        self.tokenizer = load_vq(run.tokenizer)
        self.near = nearest_codes(self.tokenizer)
        self.tokenizer.to(self.engine.device)
        torch.manual_seed(run.seed)  # initial weights; everything later is keyed by (seed, step)
        self.model = EmojiModel(chosen.model, self.scenes.vocabulary(), self.scenes.unsaid())
        initialise(self.model)
        if run.grown_from and not (run.out / "state.pt").exists():
            self._grow(run.grown_from)
        self.lesson = self.engine.wrap(BaseLesson(self.model, self.engine))
        self.learner = Learner(self.model, optimizers(self.model, run.rate, run.matrix_rate), run.average)
        with self.engine.first_in_turn():
            state = self.folder.begin(run, chosen)
            if state is None and run.start_from:
                state = RunFolder(run.start_from).state()
        if state:
            self.learner.restore(state)
        self.batches = scene_batches(self.scenes, self.learner.step, run.batch, self.engine)

    def _grow(self, folder: Path) -> None:
        older, old_tokenizer = load_model(folder / "cloud"), load_vq(folder / "vq")
        if not isinstance(older, EmojiModel):
            raise InvalidRequest(f"{folder} holds a {older.family} model", "a base grows from emoji ones")
        batches = (SceneBatch.of([self.scenes[i] for i in range(at, at + 16)]) for at in range(0, 768, 16))
        carry_over(self.model, older, seen_together(self.tokenizer.cpu(), old_tokenizer, batches))
        self.tokenizer.to(self.engine.device)

    def save(self) -> None:
        """Write everything a resumed run needs."""
        self.folder.save(self.learner.state())

    def train(self) -> None:
        """Run to the last step, then export."""
        drive(self, self.run.steps, self.run.batch, self.run.checkpoint_every)
        model = self.averaged_model()
        if self.engine.main:
            save_model(self.run.out / "cloud", model)

    def advance(self) -> dict[str, float]:
        """One optimiser step on the next scenes; the loss is nats per token."""
        run, step = self.run, self.learner.step
        batch, device = next(self.batches), self.engine.device
        tokens = encode(self.tokenizer, batch, device).cpu()
        rng = keyed_generator(run.seed + 4, step * self.engine.world + self.engine.rank)
        inputs = corrupt(tokens, self.near, run.corruption, rng)
        self.learner.set_rates(falling((run.matrix_rate, run.rate), step, run.steps, run.cooldown))
        loss: Tensor = self.lesson(batch.captions, inputs.to(device), tokens.to(device))
        gradient = round(self.learner.learn(loss), 3)
        return {"loss": round(self.engine.mean(loss.item()), 4), "gradient": gradient}

    def averaged_model(self) -> EmojiModel:
        """The model that ships: averaged weights."""
        model = self.model.with_layers(self.model.config.n_layer)
        model.load_state_dict(self.learner.averaged())
        return model.eval()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Nats per token on held-back (concept, style) pairs and (concept, colour) combinations, on the
        same pictures as they are seen, and a grid of samples with fixed seeds."""
        model = self.averaged_model().to(self.engine.device)
        batch = [self.held_back[i] for i in range(min(32, len(self.held_back.pictures)))]
        losses = {"held_back_loss": self._held_back_loss(model, batch)}
        if combinations := held_back_combinations(self.scenes, 32):
            losses["held_combination_loss"] = self._held_back_loss(model, combinations)
            losses["seen_combination_loss"] = self._held_back_loss(model, seen_beside(self.scenes, 32))
        prompts = [text for text in SAMPLE_PROMPTS if set(split_words(text)) <= set(model.vocabulary.words)]
        with self.engine.here():
            whole = [model.complete(prompt, seed) for seed, prompt in enumerate(prompts)]
            drawn = sample(model, whole, range(len(prompts)), self.run.sample_warp)
        grid = model.config.grid
        self.folder.grid(
            f"samples-{self.learner.step:06d}",
            to_pixels(self.tokenizer.decode(drawn.reshape(-1, grid, grid))).cpu(),
            8,
        )
        return losses

    def _held_back_loss(self, model: EmojiModel, batch: list[Scene]) -> float:
        with self.engine.here():
            tokens = encode(self.tokenizer, SceneBatch.of(batch), self.engine.device)
            loss = nll(model, [scene.caption for scene in batch], tokens, tokens)
        return round(loss.item(), 4)


def initialise(model: EmojiModel) -> None:
    """Small normal weights; residual outputs shrink with depth so that the stack starts near the identity."""
    for name, value in model.named_parameters():
        if value.ndim >= 2:
            residual = name.endswith(("wo.weight", "w2.weight"))
            scale = 0.02 / (2 * model.config.n_layer) ** 0.5 if residual else 0.02
            if "cap_proj" in name or "text." in name or "uncond" in name:
                scale = 0.2
            nn.init.normal_(value, std=scale)
