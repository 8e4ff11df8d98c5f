"""How LlamaGen and Chameleon name their tensors, and the shapes that follow from them. Knows no files.

Every layout is first renamed to the names of the original programs: `layers.N.attention.wq`,
`tok_embeddings`, `output`, and for the VQ to LlamaGen's. Shapes are read off the tensors where they can be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from shared.config import TransformerConfig, VQConfig
from shared.errors import InvalidRequest, ModelUnavailable
from shared.models.checkpoint import Shape
from shared.models.families.chameleon import Marks
from shared.models.families.llamagen import HEADS
from training.sources import Tensors

VQ_PREFIX = "model.vqmodel."  # where the Hugging Face layout keeps Chameleon's VQ
# Entries that carry no weights of the model: rotary tables, codebook statistics, training losses.
_IDLE = re.compile(r"(.*\.)?freqs_cis|rope\.freqs|.*rotary_emb\.inv_freq|quantize\.codebook_used|loss\..*")
_LLAMA = tuple(
    (re.compile(pattern), put)
    for pattern, put in (
        (r"^model\.embed_tokens\.", "tok_embeddings."),
        (r"^model\.cls_embedding\.", "cls_embedding."),
        (r"^model\.norm\.", "norm."),
        (r"^lm_head\.", "output."),
        (r"^model\.layers\.(\d+)\.self_attn\.([qkvo])_proj\.", r"layers.\1.attention.w\2."),
        (r"^model\.layers\.(\d+)\.self_attn\.([qk])_norm\.", r"layers.\1.attention.\2_normalization."),
        (r"^model\.layers\.(\d+)\.mlp\.gate_proj\.", r"layers.\1.feed_forward.w1."),
        (r"^model\.layers\.(\d+)\.mlp\.up_proj\.", r"layers.\1.feed_forward.w3."),
        (r"^model\.layers\.(\d+)\.mlp\.down_proj\.", r"layers.\1.feed_forward.w2."),
        (r"^model\.layers\.(\d+)\.input_layernorm\.", r"layers.\1.attention_norm."),
        (r"^model\.layers\.(\d+)\.post_attention_layernorm\.", r"layers.\1.ffn_norm."),
    )
)
_TAMING = tuple(
    (re.compile(pattern), put)
    for pattern, put in (
        (r"\.mid\.block_1\.", ".mid.0."),
        (r"\.mid\.attn_1\.", ".mid.1."),
        (r"\.mid\.block_2\.", ".mid.2."),
        (r"\.(?:down|up)\.(\d+)\.block\.", r".conv_blocks.\1.res."),
        (r"\.(?:down|up)\.(\d+)\.", r".conv_blocks.\1."),
    )
)


@dataclass(frozen=True)
class Recipe:
    """A tensor of ours made of theirs: joined along the first axis, then cut to rows [first, end)."""

    sources: tuple[str, ...]
    rows: tuple[int, int] | None = None

    def make(self, tensors: Tensors) -> Tensor:
        """Load and assemble."""
        whole = torch.cat([tensors[name] for name in self.sources]) if len(self.sources) > 1 else None
        value = tensors[self.sources[0]] if whole is None else whole
        return value if self.rows is None else value[slice(*self.rows)]

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """The shape of what `make` gives."""
        parts = [shapes[name] for name in self.sources]
        rows = sum(part[0] for part in parts) if self.rows is None else self.rows[1] - self.rows[0]
        return (rows, *parts[0][1:])


def gpt_name(name: str) -> str | None:
    """The original program's name of a transformer's tensor; None for what is no part of it."""
    if name.startswith(VQ_PREFIX) or idle(name):
        return None
    for pattern, put in _LLAMA:
        name = pattern.sub(put, name)
    return name


def rotary_pairs(tensors: Tensors) -> Literal["adjacent", "halves"]:
    """Which components of a Chameleon turn together, by the layout it comes in.

    The original program rotates adjacent pairs. Under Hugging Face's names both exist: where the norms of
    queries are tables the rows were reordered to half-split pairs, where they are vectors they were not.
    """
    if "tok_embeddings.weight" in tensors:
        return "adjacent"
    return "halves" if len(tensors.shape("model.layers.0.self_attn.q_norm.weight")) == 2 else "adjacent"


def idle(name: str) -> bool:
    """Whether an entry carries no weights of the model."""
    return _IDLE.fullmatch(name) is not None


def llamagen_vq_name(name: str) -> str:
    """LlamaGen's name of a tensor of a VQ, from itself or from taming's; levels keep their numbers."""
    for pattern, put in _TAMING:
        name = pattern.sub(put, name)
    return name


def vq_tensors(tensors: Tensors) -> Tensors:
    """Those of a VQ under LlamaGen's names, from either layout, or from inside a Chameleon."""
    inside = any(name.startswith(VQ_PREFIX) for name in tensors)
    levels = count((name.removeprefix(VQ_PREFIX) for name in tensors), "decoder.up.")

    def rename(name: str) -> str | None:
        if (inside and not name.startswith(VQ_PREFIX)) or idle(name.removeprefix(VQ_PREFIX)):
            return None
        name = name.removeprefix(VQ_PREFIX)
        # Taming counts the decoder's levels from the highest resolution, LlamaGen from the lowest.
        name = re.sub(r"^decoder\.up\.(\d+)", lambda at: f"decoder.up.{levels - 1 - int(at[1])}", name)
        return llamagen_vq_name(name)

    return tensors.renamed(rename)


def recipe(target: str, tensors: Tensors) -> Recipe:
    """How a tensor of the transformer is made: taken as it is, or of parts that a layout keeps apart or
    fused."""
    if target not in tensors and target.endswith("attention.wqkv.weight"):
        return Recipe(tuple(target.replace("wqkv", name) for name in ("wq", "wk", "wv")))
    fused = re.sub(r"feed_forward\.w[13]\.", "feed_forward.w13.", target)
    if target not in tensors and fused in tensors:
        half = tensors.shape(fused)[0] // 2
        return Recipe((fused,), (0, half) if ".w1." in target else (half, 2 * half))
    return Recipe((target,))


def llamagen_config(tensors: Tensors, grid: int, heads: int | None) -> TransformerConfig:
    """The shape of a LlamaGen. `heads` is needed for widths that were never published.

    Raises InvalidRequest without it, ModelUnavailable where a tensor that says a size is missing.
    """
    rows, dim = tensors.matrix("tok_embeddings.weight")
    n_head = heads or HEADS.get(dim)
    if n_head is None:
        what = f"width {dim} belongs to no published LlamaGen"
        raise InvalidRequest(what, f"published: {sorted(HEADS)}", "say how many --heads it has")
    head_dim = dim // n_head
    qkv = recipe("layers.0.attention.wqkv.weight", tensors)
    kv_rows = sum(tensors.shape(name)[0] for name in qkv.sources) - dim
    classes, prefix, caption = _llamagen_prefix(tensors)
    return TransformerConfig(
        dim=dim, n_layer=_layers(tensors), n_head=n_head, n_kv_head=kv_rows // (2 * head_dim),
        vocab_size=rows, grid=grid, prefix_len=prefix, caption_dim=caption, classes=classes,
        ffn_hidden=tensors.shape("layers.0.feed_forward.w1.weight")[0],
    )  # fmt: skip


def _llamagen_prefix(tensors: Tensors) -> tuple[int, int, int]:
    """Classes, prefix rows, width of captions."""
    table = "cls_embedding.embedding_table.weight"
    if table in tensors:
        return tensors.shape(table)[0] - 1, 1, 0
    prefix, caption = tensors.matrix("cls_embedding.uncond_embedding")
    return 0, prefix, caption


def chameleon_config(
    tensors: Tensors, settings: Mapping[str, Any], codes: tuple[int, int], grid: int, prefix: int
) -> TransformerConfig:
    """The shape of a Chameleon, its rotary pairs aside. `settings` is `config.json` or the model part of
    `params.json`, `codes` the id of image code 0 and their number.
    """
    q_norm, k_norm = (tensors.shape(f"layers.0.attention.{name}_normalization.weight") for name in "qk")
    rows, dim = tensors.matrix("tok_embeddings.weight")
    head_dim = q_norm[-1]
    qkv = recipe("layers.0.attention.wqkv.weight", tensors)
    kv_rows = sum(tensors.shape(name)[0] for name in qkv.sources) - dim
    fused = recipe("layers.0.feed_forward.w1.weight", tensors)
    return TransformerConfig(
        dim=dim, n_layer=_layers(tensors), n_head=dim // head_dim, n_kv_head=kv_rows // (2 * head_dim),
        vocab_size=codes[1], grid=grid, prefix_len=prefix, caption_dim=0,
        token_rows=rows, image_start=codes[0],
        ffn_hidden=fused.rows[1] if fused.rows else tensors.shape(fused.sources[0])[0],
        norm_eps=float(settings.get("rms_norm_eps", settings.get("norm_eps", 1e-5))),
        rope_base=float(settings.get("rope_theta", 10000.0)), rope_axes=1,
        q_norm_rows=q_norm[0] if len(q_norm) == 2 else 1, k_norm_rows=k_norm[0] if len(k_norm) == 2 else 1,
        swin_norm=bool(settings.get("swin_norm", False)),
    )  # fmt: skip


def vq_config(tensors: Tensors, unit_codes: bool, pixel_shift: float, codebook: bool = True) -> VQConfig:
    """The shape of a VQ, or of an autoencoder without `codebook`, under LlamaGen's names. Raises
    ModelUnavailable where a tensor that says a size is missing."""
    ch = tensors.shape("encoder.conv_in.weight")[0]
    levels = count(tensors, "encoder.conv_blocks.")
    widths = [tensors.shape(f"encoder.conv_blocks.{i}.res.0.conv2.weight")[0] for i in range(levels)]
    codes, width = tensors.matrix("quantize.embedding.weight") if codebook else (0, 0)
    return VQConfig(
        ch=ch, ch_mult=tuple(w // ch for w in widths), z_channels=tensors.shape("encoder.conv_out.weight")[0],
        codebook_size=codes, codebook_dim=width, encoder_res=count(tensors, "encoder.conv_blocks.0.res."),
        decoder_res=count(tensors, "decoder.conv_blocks.0.res."),
        attention=any(name.startswith("decoder.conv_blocks.0.attn.") for name in tensors),
        middle=any(name.startswith("encoder.mid.") for name in tensors),
        unit_codes=unit_codes, pixel_shift=pixel_shift,
    )  # fmt: skip


def image_codes(vocabulary: Mapping[str, int]) -> tuple[int, int]:
    """The id of image code 0 and the number of codes, from names such as IMGIMGFDZ: code 53 in letters for
    digits.

    Raises ModelUnavailable unless the codes are all there, in order and without a gap.
    """
    digits = str.maketrans("ABCDEFGHIJ", "0123456789")
    named = {name: re.fullmatch(r"IMGIMG([A-J]+)Z", name) for name in vocabulary}
    ids = {int(at[1].translate(digits)): vocabulary[name] for name, at in named.items() if at}
    start = ids.get(0)
    if start is None or ids != {code: start + code for code in range(len(ids))}:
        what = "the vocabulary's image tokens are not one run of ids"
        raise ModelUnavailable(what, f"found {len(ids)} of them")
    return start, len(ids)


def marks(vocabulary: Mapping[str, int]) -> Marks:
    """The ids around a prompt. Raises ModelUnavailable that names a token the vocabulary lacks."""
    return Marks(*token_ids(vocabulary, ("<s>", "<reserved08706>", "<racm3:break>"), "Chameleon"))


def token_ids(vocabulary: Mapping[str, int], names: Sequence[str], whose: str) -> list[int]:
    """Ids of tokens. Raises ModelUnavailable that names those the vocabulary lacks."""
    if missing := [name for name in names if name not in vocabulary]:
        raise ModelUnavailable(f"this is no tokenizer of {whose}", f"missing {missing}")
    return [vocabulary[name] for name in names]


def _layers(tensors: Tensors) -> int:
    return count(tensors, "layers.")


def count(names: Iterable[str], prefix: str) -> int:
    """How many numbers follow `prefix` in the names."""
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})
