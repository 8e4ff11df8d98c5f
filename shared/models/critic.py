"""The critic: a small pair of encoders that says how well a picture fits a caption. Knows nothing of drawing.

Contrastive language-image pre-training (Radford et al. 2021) at the size of emoji: a convolutional image
encoder over 128 px and a transformer over the words of a closed vocabulary, both onto the unit sphere of D
dimensions. Shapes: B pairs, N words, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.config import CriticConfig, from_dict, to_dict
from shared.errors import InvalidRequest
from shared.models.checkpoint import load_weights, read_config, save_folder
from shared.models.text import Vocabulary
from shared.models.vq import ResBlock, from_pixels

PIXELS = 128
PATCH = 4  # pixels folded into channels before the first convolution
GRID = 4  # places per side that the image encoder keeps apart, so that left and right can be told
GROUPS = 8
FIRST_SCALE = 1 / 0.07
LARGEST_SCALE = 100.0


class ImageEncoder(nn.Module):
    """Pixels to features before normalisation."""

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        width = config.width
        self.conv_in = nn.Conv2d(3 * PATCH**2, width, 3, padding=1)
        widths = (width, width, 2 * width, 4 * width)
        self.widen = nn.ModuleList(_block(a, b) for a, b in itertools.pairwise(widths))
        self.refine = nn.ModuleList(_block(w, w) for w in widths[1:])
        self.norm = nn.GroupNorm(GROUPS, 4 * width)
        self.project = nn.Linear(4 * width * GRID**2, config.dim)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Image in [-1, 1], 128 px a side, to features [B, D]."""
        h = self.conv_in(F.pixel_unshuffle(image_B3HW, PATCH))
        for widen, refine in zip(self.widen, self.refine, strict=True):
            h = F.avg_pool2d(refine(widen(h)), 2)
        out: Tensor = self.project(F.silu(self.norm(h)).flatten(1))
        return out


def _block(c_in: int, c_out: int) -> ResBlock:
    return ResBlock(c_in, c_out, "group", "zeros", GROUPS)


class TextBlock(nn.Module):
    """Pre-norm attention over the words of a caption, then a feed-forward layer."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.w1, self.w2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x_BND: Tensor, mask_BN: Tensor) -> Tensor:
        """Shape kept; `mask_BN` is true at words, false at padding."""
        shape = (*x_BND.shape[:2], self.heads, -1)
        q, k, v = (t.reshape(shape).transpose(1, 2) for t in self.qkv(self.norm1(x_BND)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BN[:, None, None])
        x_BND = x_BND + self.out(mixed.transpose(1, 2).reshape(x_BND.shape))
        out: Tensor = x_BND + self.w2(F.gelu(self.w1(self.norm2(x_BND))))
        return out


class TextEncoder(nn.Module):
    """Word ids to features before normalisation."""

    def __init__(self, config: CriticConfig, words: int) -> None:
        super().__init__()
        self.table = nn.Embedding(words, config.dim)
        self.places = nn.Embedding(config.words, config.dim)
        self.blocks = nn.ModuleList(TextBlock(config.dim, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        self.project = nn.Linear(config.dim, config.dim)

    def forward(self, ids_BN: Tensor, mask_BN: Tensor) -> Tensor:
        """Ids and their mask to features [B, D]: the mean over words."""
        x_BND = self.table(ids_BN) + self.places(torch.arange(ids_BN.shape[1]))
        for block in self.blocks:
            x_BND = block(x_BND, mask_BN)
        weight_BN1 = mask_BN[..., None].to(x_BND.dtype)
        mean_BD = (self.norm(x_BND) * weight_BN1).sum(1) / weight_BN1.sum(1)
        out: Tensor = self.project(mean_BD)
        return out


class Critic(nn.Module):
    """Both encoders and a learned temperature. `captions` are a sample of what is said of other pictures, to
    tell the true caption from."""

    def __init__(self, config: CriticConfig, words: Sequence[str], captions: Sequence[str] = ()) -> None:
        super().__init__()
        self.config, self.captions = config, tuple(captions)
        self.vocabulary = Vocabulary(words, config.words)
        self.image, self.text = ImageEncoder(config), TextEncoder(config, len(words))
        self.log_scale = nn.Parameter(torch.tensor(FIRST_SCALE).log())

    def image_features(self, pixels_BHW3: Tensor) -> Tensor:
        """Features of uint8 pictures before normalisation: [B, D]. Raises InvalidRequest on another size."""
        if pixels_BHW3.shape[1:] != (PIXELS, PIXELS, 3):
            raise InvalidRequest(
                f"pictures of shape {tuple(pixels_BHW3.shape[1:])}", "allowed: (128, 128, 3)"
            )
        out: Tensor = self.image(from_pixels(pixels_BHW3))
        return out

    def embed_images(self, pixels_BHW3: Tensor) -> Tensor:
        """Unit vectors [B, D] of uint8 pictures [B, 128, 128, 3]."""
        return F.normalize(self.image_features(pixels_BHW3).float(), dim=-1)

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors [B, D]. Raises InvalidPrompt as `Vocabulary.encode` does."""
        ids = [torch.tensor(self.vocabulary.encode(caption)) for caption in captions]
        ids_BN = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        lengths_B1 = torch.tensor([[len(row)] for row in ids])
        mask_BN = torch.arange(ids_BN.shape[1]) < lengths_B1
        return F.normalize(self.text(ids_BN, mask_BN).float(), dim=-1)

    def logits(self, pixels_BHW3: Tensor, captions: Sequence[str]) -> Tensor:
        """Scaled cosines of every picture with every caption: [B, B]."""
        scale = self.log_scale.exp().clamp(max=LARGEST_SCALE)
        return scale * self.embed_images(pixels_BHW3) @ self.embed_captions(captions).T


def contrastive_loss(logits_BB: Tensor) -> Tensor:
    """Symmetric InfoNCE: each picture finds its caption among the batch's, each caption its picture."""
    own = torch.arange(len(logits_BB))
    return (F.cross_entropy(logits_BB, own) + F.cross_entropy(logits_BB.T, own)) / 2


def save_critic(folder: Path, critic: Critic) -> str:
    """Write a critic in fp16 and return its digest."""
    config = {
        "kind": "critic",
        "critic": to_dict(critic.config),
        "words": list(critic.vocabulary.words),
        "captions": list(critic.captions),
    }
    return save_folder(folder, config, critic.state_dict(), torch.float16)


def load_critic(folder: Path) -> Critic:
    """Read a critic. Raises ModelUnavailable as `read_config` and `load_weights` do."""
    config = read_config(folder, "critic")
    critic = Critic(from_dict(CriticConfig, config["critic"]), config["words"], config["captions"])
    load_weights(folder, critic)
    return critic.eval()
