"""DiT: a transformer that predicts the noise of a latent image.

Source: Peebles and Xie, "Scalable diffusion models with transformers" (2023), and its public code, whose
names the parameters have. Knows no files, no schedule and no VAE.

Shapes: B rows, C latent channels, H the side of the latent, T patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from shared.errors import InvalidRequest
from shared.models.vit import Attention, FinalLayer, Mlp, TimeEmbedding, conditioning, modulated, plain_norm

GUIDED = 3  # channels that the published program guides; the fourth keeps the noise of its own row
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of the published widths: S, B, L, XL
LATENT_SCALE = 0.18215  # a latent of the VAE times this is what the model sees
VAE_FACTOR = 8  # pixels per latent and side


@dataclass(frozen=True)
class DiTConfig:
    """XL/2 has depth 28, width 1,152, 16 heads, patch 2. Raises InvalidRequest where the patch does not
    divide the side.

    side            of the latent
    learned_spread  the output has v, the place of the variance, behind the noise
    guided          so many channels of the noise are guided; the others keep the noise of their own row
    """

    depth: int
    dim: int
    heads: int
    hidden: int
    patch: int
    channels: int
    side: int
    classes: int
    learned_spread: bool = True
    guided: int = GUIDED

    def __post_init__(self) -> None:
        if self.side % self.patch or self.dim % self.heads:
            what = f"patch {self.patch} of side {self.side}, {self.heads} heads of width {self.dim}"
            raise InvalidRequest(f"there is no DiT with {what}", "one must divide the other")

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return self.channels * (2 if self.learned_spread else 1)


class PatchEmbedding(nn.Module):
    """One vector a patch."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.dim, config.patch, config.patch)

    def forward(self, x_BCHH: Tensor) -> Tensor:
        """[B, T, D]."""
        out: Tensor = self.proj(x_BCHH).flatten(2).transpose(1, 2)
        return out


class ClassEmbedding(nn.Module):
    """The last row is no class."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, dim)

    def forward(self, labels_B: Tensor) -> Tensor:
        """[B, D]."""
        out: Tensor = self.embedding_table(labels_B)
        return out


class DiTBlock(nn.Module):
    """Attention and feed-forward part under adaLN: shift, scale, gate of each."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.attn = Attention(config.dim, config.heads)
        self.mlp = Mlp(config.dim, config.hidden, "tanh")
        self.adaLN_modulation = conditioning(config.dim, 6)

    def forward(self, x_BTD: Tensor, c_BD: Tensor) -> Tensor:
        """Shape kept."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c_BD)[:, None].chunk(6, dim=-1)
        x_BTD = x_BTD + gate1 * self.attn(modulated(plain_norm(x_BTD), shift1, scale1))
        out: Tensor = x_BTD + gate2 * self.mlp(modulated(plain_norm(x_BTD), shift2, scale2))
        return out


class DiTModel(nn.Module):
    """Noisy latent, original step and class -> noise and v."""

    family = "dit"

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder, self.t_embedder = PatchEmbedding(config), TimeEmbedding(config.dim)
        self.y_embedder = ClassEmbedding(config.classes, config.dim)
        count = config.side // config.patch
        self.pos_embed = nn.Parameter(torch.zeros(1, count * count, config.dim))
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config.dim, config.patch**2 * config.outputs)

    def hidden(self, x_BCHH: Tensor, step_B: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """What the last block gives [B, T, D], and the condition [B, D]."""
        c_BD = self.t_embedder(step_B) + self.y_embedder(labels_B)
        x_BTD = self.x_embedder(x_BCHH) + self.pos_embed
        for block in self.blocks:
            x_BTD = block(x_BTD, c_BD)
        return x_BTD, c_BD

    def forward(self, x_BCHH: Tensor, step_B: Tensor, labels_B: Tensor) -> Tensor:
        """[B, 2C, H, H] (C without a learned spread), fp32; `step_B` are original steps."""
        return self.read(*self.hidden(x_BCHH, step_B, labels_B))

    def read(self, x_BTD: Tensor, c_BD: Tensor) -> Tensor:
        """The output of what `hidden` gave."""
        return unpatched(self.final_layer(x_BTD, c_BD).float(), self.config)

    def denoised(
        self, x_BCHH: Tensor, step_B: Tensor, labels_B: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """What a sampler needs: guided outputs [B, ...] and the last hidden states [B, T, D] of the classes;
        guidance 1 is the class's own row, and costs no other."""
        rows = 1 if scale == 1 else 2
        nothing_B = torch.full_like(labels_B, self.config.classes)
        labels_R = torch.cat([labels_B, nothing_B][:rows])
        x_RTD, c_RD = self.hidden(x_BCHH.repeat(rows, 1, 1, 1), step_B.repeat(rows), labels_R)
        out, kept = self.read(x_RTD, c_RD), x_RTD[: len(x_BCHH)]
        return (out if rows == 1 else self._guide(out, scale)[: len(x_BCHH)]), kept

    def guided(self, x_BCHH: Tensor, step_B: Tensor, labels_B: Tensor, scale: float) -> Tensor:
        """Outputs [2B, ...] of the classes, then of no class. The guided channels are equal in both halves;
        everything else is each half's own. A sampler needs the first half alone: see `denoised`."""
        nothing_B = torch.full_like(labels_B, self.config.classes)
        out = self(x_BCHH.repeat(2, 1, 1, 1), step_B.repeat(2), torch.cat([labels_B, nothing_B]))
        return self._guide(out, scale)

    def _guide(self, out: Tensor, scale: float) -> Tensor:
        cond, uncond = out[:, : self.config.guided].chunk(2)
        eps = uncond + scale * (cond - uncond)
        return torch.cat([eps.repeat(2, 1, 1, 1), out[:, self.config.guided :]], 1)


def unpatched(x_BTO: Tensor, config: DiTConfig) -> Tensor:
    """[B, T, p * p * O] -> [B, O, H, H]; in a patch row, column, channel."""
    count, patch = config.side // config.patch, config.patch
    cells = x_BTO.reshape(len(x_BTO), count, count, patch, patch, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def position_table(dim: int, count: int) -> Tensor:
    """Fixed positions [count * count, dim] in raster order: column, then row; sines, then cosines."""
    rates = 10000 ** -(np.arange(dim // 4, dtype=np.float64) / (dim / 4))
    angles = np.arange(count)[:, None] * rates
    waves = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    columns, rows = np.tile(waves, (count, 1)), np.repeat(waves, count, 0)
    return torch.from_numpy(np.concatenate([columns, rows], 1)).float()
