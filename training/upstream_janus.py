"""How Janus names its tensors, and the shapes that follow from them. Knows no files.

Two layouts hold the same model: DeepSeek's own (`language_model.model.*`, `gen_*`), and that of
transformers (`model.language_model.*`, `model.generation_*`). Both also hold what reads pictures and what
writes text; those parts are listed here and left behind, everything else must be used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shared.config import TransformerConfig
from shared.errors import InvalidRequest, ModelMismatch
from shared.models.families.janus import Marks
from training.sources import Tensors
from training.upstream import count, gpt_name, idle, llamagen_vq_name, token_ids

SECTIONS = {"language_config", "text_config"}  # of config.json, in the one layout and in the other
HEADS = 32  # what a config.json means that does not say: the default of transformers' LlamaConfig
NORM_EPS = 1e-6  # the same
_VQ = re.compile(r"gen_vision_model\.|model\.vqmodel\.")
_LEFT_BEHIND = re.compile(
    r"(model\.)?(vision_model|aligner)\..*"  # reads pictures
    r"|(language_model\.)?lm_head\.weight"  # writes text
)
_DRAWING = tuple(
    (re.compile(pattern), put)
    for pattern, put in (
        (r"^(language_model\.model|model\.language_model)\.", "model."),  # a Llama
        (r"^(gen_embed|model\.generation_embeddings)\.", "code_embeddings.table."),
        (r"^(gen_aligner\.layers\.0|model\.generation_aligner\.fc1)\.", "code_embeddings.lift.fc1."),
        (
            r"^(gen_aligner\.layers\.2|model\.generation_aligner\.hidden_layers\.0)\.",
            "code_embeddings.lift.fc2.",
        ),
        (r"^(gen_head\.output_mlp_projector|model\.generation_head\.proj_out)\.", "output.fc1."),
        (r"^(gen_head|model\.generation_head)\.vision_head\.", "output.fc2."),
    )
)


def janus_name(name: str) -> str | None:
    """The original programs' name of a tensor that draws; None for one that is listed as left behind."""
    if _VQ.match(name) or _LEFT_BEHIND.fullmatch(name):
        return None
    for pattern, put in _DRAWING:
        name = pattern.sub(put, name)
    return gpt_name(name)


def janus_vq(tensors: Tensors) -> Tensors:
    """The tensors of the VQ under LlamaGen's names; both layouts count the decoder's levels its way."""

    def rename(name: str) -> str | None:
        inner = _VQ.sub("", name, count=1)
        return llamagen_vq_name(inner) if _VQ.match(name) and not idle(inner) else None

    return tensors.renamed(rename)


def janus_config(tensors: Tensors, settings: Mapping[str, Any], grid: int, prefix: int) -> TransformerConfig:
    """The shape of a Janus. `settings` is `config.json` with what it says of the language model laid flat.

    Raises InvalidRequest where it says nothing: no tensor tells how many heads there are. Raises
    ModelUnavailable where a tensor that says a size is missing.
    """
    if not settings.keys() & SECTIONS:
        what = f"no config.json with {' or '.join(sorted(SECTIONS))} beside the weights"
        raise InvalidRequest(what, "it says how many heads there are")
    rows, dim = tensors.matrix("tok_embeddings.weight")
    codes, width = tensors.matrix("code_embeddings.table.weight")
    heads = int(settings.get("num_attention_heads", HEADS))
    if dim % heads:
        raise InvalidRequest(f"config.json says {heads} heads", f"the width is {dim}")
    return TransformerConfig(
        dim=dim, n_layer=count(tensors, "layers."), n_head=heads,
        n_kv_head=tensors.shape("layers.0.attention.wk.weight")[0] // (dim // heads),
        vocab_size=codes, grid=grid, prefix_len=prefix, caption_dim=0,
        token_rows=rows, code_width=width, head_hidden=tensors.shape("output.fc1.weight")[0],
        ffn_hidden=tensors.shape("layers.0.feed_forward.w1.weight")[0],
        norm_eps=float(settings.get("rms_norm_eps", NORM_EPS)),
        rope_base=float(settings.get("rope_theta", 10000.0)), rope_axes=1, rope_pairs="halves",
    )  # fmt: skip


def janus_marks(vocabulary: Mapping[str, int], rows: int) -> Marks:
    """The ids around a prompt. Raises ModelUnavailable that names a token the vocabulary lacks, ModelMismatch
    where it has ids beyond the `rows` of the token table."""
    if max(vocabulary.values(), default=0) >= rows:
        what = f"the tokenizer has ids up to {max(vocabulary.values())}, the transformer rows for {rows}"
        raise ModelMismatch(what, "both must come from the same publication")
    bar, dot = "\N{FULLWIDTH VERTICAL LINE}", "\N{LOWER ONE EIGHTH BLOCK}"
    names = (f"<{bar}begin{dot}of{dot}sentence{bar}>", f"<{bar}{dot}pad{dot}{bar}>", "<begin_of_image>")
    return Marks(*token_ids(vocabulary, names, "Janus"))
