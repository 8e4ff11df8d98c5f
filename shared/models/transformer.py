"""The transformer of LlamaGen, Chameleon and Janus: ONE forward over new tokens, upstream parameter names.

Knows nothing of sampling or of families.

Shapes: B rows, T new tokens, S visible positions, D width, H heads, P prefix rows, V codebook.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.config import TransformerConfig
from shared.models.attend import attend, attend_cache
from shared.models.kv_cache import KVCache, LayerCache, Window
from shared.models.rope import rope_table, rotate


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) in fp32, cast back, times a weight [D]."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last dimension; shape and dtype are kept."""
        normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


class HeadNorm(nn.Module):
    """LayerNorm over each head, in fp32, cast back: Chameleon's normalisation of queries and keys.

    Weight and bias are [rows, head_dim]; a row serves heads / rows neighbouring heads.
    """

    def __init__(self, rows: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads_per_row = heads // rows
        self.weight = nn.Parameter(torch.ones(rows, head_dim))
        self.bias = nn.Parameter(torch.zeros(rows, head_dim))

    def forward(self, x_BTHD: Tensor) -> Tensor:
        """Shape and dtype are kept."""
        normed = F.layer_norm(x_BTHD.float(), x_BTHD.shape[-1:], eps=1e-5)
        weight_HD, bias_HD = (
            value.repeat_interleave(self.heads_per_row, dim=0) for value in (self.weight, self.bias)
        )
        return (normed * weight_HD + bias_HD).to(x_BTHD.dtype)


class Attention(nn.Module):
    """Causal attention, optionally with fewer key-value heads and with normalised queries and keys."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_head, self.kv_heads, self.head_dim = config.n_head, config.kv_heads, config.head_dim
        self.wqkv = nn.Linear(config.dim, (config.n_head + 2 * config.kv_heads) * config.head_dim, bias=False)
        self.wo = nn.Linear(config.n_head * config.head_dim, config.dim, bias=False)
        self.rope_pairs = config.rope_pairs
        self.normalised = config.q_norm_rows > 0
        if self.normalised:
            self.q_normalization = HeadNorm(config.q_norm_rows, self.n_head, self.head_dim)
            self.k_normalization = HeadNorm(config.k_norm_rows, self.kv_heads, self.head_dim)

    def forward(
        self, x_BTD: Tensor, rope_BTP2: Tensor, window: Window, cache: LayerCache | None
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]; extends `cache` where there is one."""
        heads = (self.n_head, self.kv_heads, self.kv_heads)
        qkv = self.wqkv(x_BTD).unflatten(-1, (-1, self.head_dim))
        q_BTHD, k_BTHD, v_BTHD = qkv.split(heads, dim=2)
        if self.normalised:
            q_BTHD, k_BTHD = self.q_normalization(q_BTHD), self.k_normalization(k_BTHD)
        q_BTHD, k_BTHD = (rotate(x_BTHD, rope_BTP2, self.rope_pairs) for x_BTHD in (q_BTHD, k_BTHD))
        if cache is None:
            attended = attend(q_BTHD, k_BTHD, v_BTHD, window.mask_BTS)
        else:
            cache.extend(window, k_BTHD, v_BTHD)
            attended = attend_cache(q_BTHD, window, cache)
        out: Tensor = self.wo(attended.flatten(2))
        return out


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_hidden, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_hidden, bias=False)
        self.w2 = nn.Linear(config.ffn_hidden, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class Block(nn.Module):
    """Attention and feed-forward, both residual; the norms are on what is read, with `swin_norm` on what is
    added."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.swin_norm = config.swin_norm

    def forward(
        self, x: Tensor, rope_BTP2: Tensor, window: Window, cache: LayerCache | None
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        if self.swin_norm:
            x = x + self.attention_norm(self.attention(x, rope_BTP2, window, cache))
            x = x + self.ffn_norm(self.feed_forward(x))
            return x
        x = x + self.attention(self.attention_norm(x), rope_BTP2, window, cache)
        x = x + self.feed_forward(self.ffn_norm(x))
        return x


class TwoLayers(nn.Module):
    """fc2(gelu(fc1 x)), with biases: what Janus has around the transformer where others have one map."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width_in, hidden)
        self.fc2 = nn.Linear(hidden, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width_in] -> [..., width_out]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class CodeEmbedding(nn.Module):
    """Image codes in a narrow table of their own, lifted to the width of the transformer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.code_width)
        self.lift = TwoLayers(config.code_width, config.dim, config.dim)

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., D]."""
        out: Tensor = self.lift(self.table(ids))
        return out


class CaptionProjection(nn.Module):
    """fc2(gelu_tanh(fc1(c))): caption features to model width."""

    def __init__(self, caption_dim: int, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(caption_dim, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)

    def forward(self, caption_BPC: Tensor) -> Tensor:
        """[B, P, C] -> [B, P, D]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(caption_BPC), approximate="tanh"))
        return out


class CaptionEmbedding(nn.Module):
    """Text prefix rows. `uncond_embedding` [P, C] replaces the caption in the unguided row, aligned to the
    right."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.cap_proj = CaptionProjection(config.caption_dim, config.dim)
        self.uncond_embedding = nn.Parameter(torch.randn(config.prefix_len, config.caption_dim) * 0.02)


class ClassEmbedding(nn.Module):
    """One prefix row per class; the row behind the last class is the unguided one."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(config.classes + 1, config.dim)


class Transformer(nn.Module):
    """The stack. `forward` is the only way in: embeddings of T new tokens per row to their hidden states."""

    rope: Tensor
    cls_embedding: CaptionEmbedding | ClassEmbedding

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        if config.classes:
            self.cls_embedding = ClassEmbedding(config)
        elif config.caption_dim:
            self.cls_embedding = CaptionEmbedding(config)
        self.tok_embeddings = nn.Embedding(config.token_rows or config.vocab_size, config.dim)
        if config.code_width:
            self.code_embeddings = CodeEmbedding(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = (
            TwoLayers(config.dim, config.head_hidden, config.vocab_size)
            if config.head_hidden
            else nn.Linear(config.dim, config.vocab_size, bias=False)
        )
        if config.learned_positions:
            self.pos_embeddings = nn.Embedding(config.image_tokens, config.dim)
        self.register_buffer("rope", rope_table(config), persistent=False)

    def reset_table(self) -> None:
        """Compute the rotary table anew, in fp32 whatever the weights are: no file holds it."""
        self.rope = rope_table(self.config).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the weights are; ids and features may come from anywhere."""
        return self.tok_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, and of what flows between them."""
        return self.tok_embeddings.weight.dtype

    def embed_caption(self, caption_BNC: Tensor) -> Tensor:
        """Caption features [B, n, C] to prefix rows [B, n, D]; they sit at positions P-n .. P-1."""
        assert isinstance(self.cls_embedding, CaptionEmbedding)
        rows: Tensor = self.cls_embedding.cap_proj(caption_BNC.to(self.device, self.dtype))
        return rows

    def no_caption(self, length: int) -> Tensor:
        """Features [n, C] of the unguided row: the LAST n of `uncond_embedding`, as upstream masks them."""
        assert isinstance(self.cls_embedding, CaptionEmbedding)
        return self.cls_embedding.uncond_embedding[-length:]

    def embed_nothing(self, length: int) -> Tensor:
        """The unguided prefix [n, D] of a model of captions."""
        return self.embed_caption(self.no_caption(length))

    def embed_class(self, ids_B: Tensor) -> Tensor:
        """Classes (the number of classes is the unguided one) to prefix rows [B, 1, D]."""
        assert isinstance(self.cls_embedding, ClassEmbedding)
        rows: Tensor = self.cls_embedding.embedding_table(ids_B.to(self.device))
        return rows[:, None]

    def embed_text(self, ids_BN: Tensor) -> Tensor:
        """Ids of the shared token table to prefix rows [B, n, D]."""
        rows: Tensor = self.tok_embeddings(ids_BN.to(self.device))
        return rows

    def embed_tokens(self, ids_BT: Tensor, places_BT: Tensor) -> Tensor:
        """Image ids at image places (0 .. T-1) to input embeddings [B, T, D]."""
        ids_BT, places_BT = ids_BT.to(self.device), places_BT.to(self.device)
        if self.config.code_width:
            x: Tensor = self.code_embeddings(ids_BT)
        else:
            x = self.tok_embeddings(ids_BT + self.config.image_start)
        if self.config.learned_positions:
            x = x + self.pos_embeddings(places_BT)
        return x

    def forward(self, x_BTD: Tensor, window: Window, cache: KVCache | None = None) -> Tensor:
        """Run T new tokens per row through all layers: [B, T, D] -> normalised hidden [B, T, D]."""
        rope_BTP2 = self.rope[window.turns_BT]
        stores = [None] * len(self.layers) if cache is None else cache.layers
        for block, store in zip(self.layers, stores, strict=True):
            x_BTD = block(x_BTD, rope_BTP2, window, store)
        hidden: Tensor = self.norm(x_BTD)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> fp32 [..., V]; position P-1+i judges image token i."""
        out: Tensor = self.output(hidden)
        return out.float()
