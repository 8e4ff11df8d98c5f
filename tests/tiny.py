"""A complete model folder from seeded random weights: small enough to load and run in milliseconds.

The device takes the cloud's embeddings, first layers and head, so that the two draw the same token about
every other time. Knows nothing of servers or devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from shared.config import DeviceConfig, TransformerConfig, VQConfig
from shared.decoding.agreement import BANDS, HIDDEN, SCALARS, Learned
from shared.decoding.calibration import Calibration, fit_gate
from shared.decoding.gates import Evidence, gate
from shared.decoding.noise import gumbel
from shared.decoding.warp import Warp, log_probs
from shared.models.checkpoint import save_device, save_model, save_vq
from shared.models.families.emoji import EmojiModel
from shared.models.gate_file import GATE_FILE, write_learned
from shared.models.inter_head import DeviceModel
from shared.models.kv_cache import plain_window
from shared.models.vq import VQModel
from shared.models.zoo import CALIBRATION, write_calibration

GLUE = ("a", "an", "and", "background", "on", "style")
WORDS = tuple(
    sorted((*GLUE, "apple", "banana", "black", "blue", "cat", "dog", "green", "house", "red", "white"))
)
WARP = Warp(guidance=1.5)
GATES = ("interval", "margin", "agreement", "certificate", "entropy", "softmax", "random", "discrete")
SPAN = 3
PREFIX_ROWS = 8  # P: words of a prompt at most
CAPTION_DIM = 16
HEAD_SCALE = 1.8  # larger: peakier distributions
RESIDUAL = ("attention.wo", "feed_forward.w2")
LATE_LAYERS = 2.0  # how much the layers only the cloud has add to the residual stream


@dataclass(frozen=True)
class TinyShape:
    """What a test may choose about the models."""

    grid: int = 4
    vocab: int = 32
    dim: int = 32
    layers: int = 2
    device_layers: int = 1


def build_tiny_model(  # noqa: PLR0913 - what a test may choose
    folder: Path,
    *,
    seed: int = 0,
    grid: int = 4,
    vocab: int = 32,
    dim: int = 32,
    layers: int = 2,
    device_layers: int = 1,
) -> Path:
    """Write `cloud/`, `device/` (with its calibration) and `vq/` below `folder`, and return it.

    zoo.load_cloud(str(folder), models) and zoo.load_device_package(str(folder), models) read it. T is grid
    squared; a seed names one model for ever.
    """
    shape = TinyShape(grid, vocab, dim, layers, device_layers)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        cloud = _cloud(shape)
        digest = save_model(folder / "cloud", cloud, torch.float32)
        device = _device(cloud, digest, device_layers)
        save_device(folder / "device", device, torch.float32)
        save_vq(folder / "vq", VQModel(_vq(vocab)).eval())
        learned = tiny_gate(seed)
        write_learned(folder / "device" / GATE_FILE, learned, digest)
        write_calibration(folder / "device" / CALIBRATION, _calibrate(cloud, device, learned))
    return folder


def tiny_gate(seed: int = 0) -> Learned:
    """A random agreement network whose score grows with the entropy and shrinks with the gap."""
    rng = torch.Generator().manual_seed(seed)
    w1_HS = 0.01 * torch.randn(HIDDEN, SCALARS, generator=rng)
    w1_HS[:, 0], w1_HS[:, 4] = w1_HS[:, 0] + 0.3, w1_HS[:, 4] - 0.3
    layers = (w1_HS, torch.zeros(HIDDEN), torch.full((HIDDEN,), 0.1), torch.zeros(()))
    return Learned(*layers, torch.ones(BANDS), torch.ones(()))


def _config(shape: TinyShape, layers: int) -> TransformerConfig:
    return TransformerConfig(
        dim=shape.dim,
        n_layer=layers,
        n_head=2,
        vocab_size=shape.vocab,
        grid=shape.grid,
        prefix_len=PREFIX_ROWS,
        caption_dim=CAPTION_DIM,
        ffn_hidden=2 * shape.dim,
        learned_positions=True,
    )


def _vq(vocab: int) -> VQConfig:
    return VQConfig(
        ch=8,
        ch_mult=(1, 1),
        z_channels=8,
        codebook_size=vocab,
        codebook_dim=4,
        encoder_res=1,
        decoder_res=1,
        patch=2,
        attention=False,
        middle=False,
        norm_groups=4,
    )


def _cloud(shape: TinyShape) -> EmojiModel:
    """Weights large enough that the prompt, the tokens before and the position all move the logits."""
    model = EmojiModel(_config(shape, shape.layers), WORDS).eval()
    late_layers = range(shape.device_layers, shape.layers)
    for name, value in model.named_parameters():
        if value.ndim < 2:
            continue
        table = any(
            part in name for part in ("tok_embeddings", "pos_embeddings", "uncond_embedding", "text.")
        )
        late = any(f"layers.{index}.{part}" in name for index in late_layers for part in RESIDUAL)
        nn.init.normal_(
            value, std=(1.0 if table else value.shape[1] ** -0.5) * (LATE_LAYERS if late else 1.0)
        )
    nn.init.normal_(model.gpt.output.weight, std=HEAD_SCALE * shape.dim**-0.5)
    return model


def _device(cloud: EmojiModel, digest: str, layers: int) -> DeviceModel:
    """The cloud without its later layers, with an untrained Inter-Head of radii about 1."""
    shared = TransformerConfig(**{**vars(cloud.config), "n_layer": layers})
    base = EmojiModel(shared, WORDS)
    wanted = base.state_dict().keys()
    base.load_state_dict({name: value for name, value in cloud.state_dict().items() if name in wanted})
    device = DeviceModel(base, DeviceConfig(cloud_digest=digest)).eval()
    nn.init.normal_(device.inter_head.radius.weight, std=cloud.config.dim**-0.5)
    return device


def _calibrate(cloud: EmojiModel, device: DeviceModel, learned: Learned, images: int = 8) -> Calibration:
    """Fit every gate on how device and cloud draw over random token sequences, with the same noise."""
    config = cloud.config
    scores: dict[str, list[Tensor]] = {name: [] for name in GATES}
    agree = []
    for seed in range(images):
        tokens_T = torch.randint(config.vocab_size, (config.image_tokens,))
        prompt = f"a {WORDS[-1 - seed]} cat"
        noise_TV = gumbel(seed, range(config.image_tokens), config.vocab_size)
        hidden_2TD = _hidden(device.base, prompt, tokens_T)
        log_q_TV = full_log_probs(device.base, prompt, tokens_T)
        log_p_TV = full_log_probs(cloud, prompt, tokens_T)
        agree.append((log_p_TV + noise_TV).argmax(-1) == (log_q_TV + noise_TV).argmax(-1))
        radius_TV = device.inter_head(hidden_2TD[0])
        places_T = torch.arange(config.image_tokens)
        evidence = Evidence(seed, places_T, log_q_TV, noise_TV, log_q_TV, radius_TV, learned)
        for name in GATES:
            scores[name].append(gate(name)(evidence))
    agree_NT = torch.stack(agree).numpy()
    tables = {name: fit_gate(torch.stack(rows).numpy(), agree_NT, SPAN, 1) for name, rows in scores.items()}
    return Calibration(device.config.cloud_digest, WARP, SPAN, 1 / config.image_tokens, tables)


def _hidden(model: EmojiModel, prompt: str, tokens_T: Tensor) -> Tensor:
    """Hidden states [2, T, D] that judge every place of a given sequence: the guided and the unguided row."""
    rows_2ND = model.prompt_rows(prompt)
    length, count = rows_2ND.shape[1], len(tokens_T) - 1
    first = model.config.prefix_len - length
    tokens_2TD = model.gpt.embed_tokens(tokens_T[:-1], torch.arange(count)).expand(2, -1, -1)
    positions_2T = torch.arange(first, model.config.prefix_len + count).expand(2, -1)
    window = plain_window(positions_2T, torch.tensor([first, first]))
    hidden: Tensor = model.gpt(torch.cat([rows_2ND, tokens_2TD], 1), window)
    return hidden[:, length - 1 :]


def full_log_probs(model: EmojiModel, prompt: str, tokens_T: Tensor, warp: Warp = WARP) -> Tensor:
    """Log-probabilities [T, V] of every place of a given sequence, from one forward without a cache."""
    cond_TV, uncond_TV = model.gpt.logits(_hidden(model, prompt, tokens_T))
    return log_probs(cond_TV, uncond_TV, warp)
