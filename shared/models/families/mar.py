"""MAR: continuous tokens in any order; an encoder sees the known ones, a decoder says z for every place, and
a diffusion head draws the token.

Source: Li et al., "Autoregressive image generation without vector quantization" (2024), and its public code,
whose names the parameters have. Knows no files and no schedule.

Shapes: B rows, L tokens, C token width, De and Dd widths of encoder and decoder, F buffer tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared.errors import InvalidRequest
from shared.models.diffloss import DiffLoss
from shared.models.vit import NORM_EPS, Attention, Mlp


@dataclass(frozen=True)
class TowerConfig:
    """One of the two stacks of blocks."""

    dim: int
    depth: int
    heads: int
    hidden: int


@dataclass(frozen=True)
class MARConfig:
    """MAR-B, L and H have equal encoders and decoders of 12, 16, 20 blocks. Raises InvalidRequest unless the
    L tokens are a square and a token is a square of the VAE's latents.

    buffer          places in front of the tokens that all hold the class
    patch           side of a token in latents
    head_width      of the diffusion head, head_depth its blocks
    """

    encoder: TowerConfig
    decoder: TowerConfig
    tokens: int
    token_dim: int
    buffer: int
    classes: int
    head_width: int
    head_depth: int
    patch: int = 1

    def __post_init__(self) -> None:
        if math.isqrt(self.tokens) ** 2 != self.tokens or self.token_dim % self.patch**2:
            what = f"{self.tokens} tokens of {self.token_dim} numbers, patch {self.patch}"
            raise InvalidRequest(f"there is no MAR with {what}", "allowed: squares, whole latents")

    @property
    def side(self) -> int:
        """Tokens a side."""
        return math.isqrt(self.tokens)


class MARBlock(nn.Module):
    """Norm, attention, norm, feed-forward part with the exact GELU."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(config.dim, eps=NORM_EPS) for _ in range(2))
        self.attn = Attention(config.dim, config.heads)
        self.mlp = Mlp(config.dim, config.hidden, "none")

    def forward(self, x_BTD: Tensor, mask: Tensor | None = None) -> Tensor:
        """Shape kept; what `mask` hides nobody attends to."""
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD), mask)
        out: Tensor = x_BTD + self.mlp(self.norm2(x_BTD))
        return out


class MARModel(nn.Module):
    """Known tokens, which are masked, and the class -> z of every place; `diffloss` draws tokens of z."""

    family = "mar"

    def __init__(self, config: MARConfig) -> None:
        super().__init__()
        self.config = config
        encoder, decoder, places = config.encoder, config.decoder, config.buffer + config.tokens
        self.class_emb = nn.Embedding(config.classes, encoder.dim)
        self.fake_latent = nn.Parameter(torch.zeros(1, encoder.dim))
        self.z_proj = nn.Linear(config.token_dim, encoder.dim)
        self.z_proj_ln = nn.LayerNorm(encoder.dim, eps=NORM_EPS)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, places, encoder.dim))
        self.encoder_blocks = nn.ModuleList(MARBlock(encoder) for _ in range(encoder.depth))
        self.encoder_norm = nn.LayerNorm(encoder.dim, eps=NORM_EPS)
        self.decoder_embed = nn.Linear(encoder.dim, decoder.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.dim))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, places, decoder.dim))
        self.decoder_blocks = nn.ModuleList(MARBlock(decoder) for _ in range(decoder.depth))
        self.decoder_norm = nn.LayerNorm(decoder.dim, eps=NORM_EPS)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, config.tokens, decoder.dim))
        self.diffloss = DiffLoss(config.token_dim, decoder.dim, config.head_width, config.head_depth)

    def classes(self, labels_B: Tensor) -> Tensor:
        """Conditions [B, De] of classes."""
        out: Tensor = self.class_emb(labels_B)
        return out

    def nothing(self, rows: int) -> Tensor:
        """Conditions [B, De] of no class."""
        return self.fake_latent.expand(rows, -1)

    def encode(self, tokens_BLC: Tensor, masked_BL: Tensor, cond_BD: Tensor) -> Tensor:
        """Encoder outputs [B, F + visible, De]: the buffer, then visible tokens in ascending order.

        Every row must mask equally many tokens; what stands at masked places is not looked at.
        """
        x_BSD = self._embedded(tokens_BLC, cond_BD)
        x_BTD = x_BSD[self._visible(masked_BL)].reshape(len(masked_BL), -1, x_BSD.shape[-1])
        for block in self.encoder_blocks:
            x_BTD = block(x_BTD)
        out: Tensor = self.encoder_norm(x_BTD)
        return out

    def decode(self, encoded_BTD: Tensor, masked_BL: Tensor) -> Tensor:
        """z [B, L, Dd] of every place."""
        known_BTD = self.decoder_embed(encoded_BTD)
        x_BSD = self.mask_token.expand(len(masked_BL), self.config.buffer + self.config.tokens, -1).clone()
        x_BSD[self._visible(masked_BL)] = known_BTD.flatten(0, 1).to(x_BSD.dtype)
        return self._decoded(x_BSD)

    def ragged(self, tokens_BLC: Tensor, masked_BL: Tensor, cond_BD: Tensor) -> Tensor:
        """As `forward`, where rows may mask different numbers of tokens: masked ones are hidden instead of
        left out, which is the same up to rounding."""
        visible_BS = self._visible(masked_BL)
        x_BSD = self._embedded(tokens_BLC, cond_BD)
        for block in self.encoder_blocks:
            x_BSD = block(x_BSD, visible_BS[:, None, None])
        known_BSD = self.decoder_embed(self.encoder_norm(x_BSD))
        return self._decoded(torch.where(visible_BS[..., None], known_BSD, self.mask_token))

    def _embedded(self, tokens_BLC: Tensor, cond_BD: Tensor) -> Tensor:
        """The encoder's input [B, F + L, De]: the buffer, then all tokens."""
        buffer_BFD = cond_BD[:, None].expand(-1, self.config.buffer, -1)
        x_BSD = torch.cat([buffer_BFD, self.z_proj(tokens_BLC)], 1) + self.encoder_pos_embed_learned
        out: Tensor = self.z_proj_ln(x_BSD)
        return out

    def _decoded(self, x_BSD: Tensor) -> Tensor:
        """z [B, L, Dd] of the decoder's input [B, F + L, Dd]."""
        x_BSD = x_BSD + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x_BSD = block(x_BSD)
        out: Tensor = self.decoder_norm(x_BSD)[:, self.config.buffer :] + self.diffusion_pos_embed_learned
        return out

    def forward(self, tokens_BLC: Tensor, masked_BL: Tensor, cond_BD: Tensor) -> Tensor:
        """z [B, L, Dd] of every place, given the tokens that are not masked."""
        return self.decode(self.encode(tokens_BLC, masked_BL, cond_BD), masked_BL)

    def _visible(self, masked_BL: Tensor) -> Tensor:
        buffer = masked_BL.new_ones(len(masked_BL), self.config.buffer)
        return torch.cat([buffer, ~masked_BL], 1)


def patched(latent_BCHW: Tensor, patch: int) -> Tensor:
    """Latents [B, c, h p, w p] to tokens [B, h w, c p p] in raster order."""
    return nn.functional.pixel_unshuffle(latent_BCHW, patch).flatten(2).transpose(1, 2)


def unpatched(tokens_BLC: Tensor, patch: int) -> Tensor:
    """`patched` undone; the tokens are a square."""
    side = math.isqrt(tokens_BLC.shape[1])
    grid = tokens_BLC.transpose(1, 2).reshape(len(tokens_BLC), -1, side, side)
    return nn.functional.pixel_shuffle(grid, patch)
