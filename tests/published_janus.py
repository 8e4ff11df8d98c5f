"""Tiny random Janus models written as DeepSeek publishes them and as transformers saves them.

Knows nothing of how they are read.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from shared.config import TransformerConfig
from tests.published import CODES, GRID, HEADS, State, gpt_state, llama_names, split, vq_state, write_two

JANUS = TransformerConfig(
    dim=32, n_layer=3, n_head=HEADS, n_kv_head=2, vocab_size=CODES, grid=GRID, prefix_len=20, caption_dim=0,
    ffn_hidden=64, norm_eps=1e-6, token_rows=20, rope_axes=1, rope_pairs="halves",
    code_width=4, head_hidden=24,
)  # fmt: skip
# Janus's tokenizer reads bytes: a space and a line break are letters of their own.
JANUS_VOCABULARY = {token: index for index, token in enumerate((*"abcde:", "\u0120", "\u010a"))}
JANUS_SPECIAL = {
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>": 8, "<\uff5cend\u2581of\u2581sentence\uff5c>": 9,
    "<\uff5c\u2581pad\u2581\uff5c>": 10, "<|User|>": 11, "<|Assistant|>": 12, "<begin_of_image>": 13,
}  # fmt: skip
# Ours and theirs, in DeepSeek's layout and in that of transformers.
JANUS_NAMES = {
    "official": (
        ("code_embeddings.table", "gen_embed"), ("code_embeddings.lift.fc1", "gen_aligner.layers.0"),
        ("code_embeddings.lift.fc2", "gen_aligner.layers.2"), ("output.fc1", "gen_head.output_mlp_projector"),
        ("output.fc2", "gen_head.vision_head"), ("model.", "language_model.model."),
    ),
    "hf": (
        ("code_embeddings.table", "model.generation_embeddings"),
        ("code_embeddings.lift.fc1", "model.generation_aligner.fc1"),
        ("code_embeddings.lift.fc2", "model.generation_aligner.hidden_layers.0"),
        ("output.fc1", "model.generation_head.proj_out"), ("output.fc2", "model.generation_head.vision_head"),
        ("model.", "model.language_model."),
    ),
}  # fmt: skip


def janus_state(config: TransformerConfig = JANUS, layout: str = "official") -> State:
    """A Janus as published: what draws, its VQ, and what reads pictures and writes text."""
    vision, llm = ("", "language_model.") if layout == "official" else ("model.", "")
    state = {
        f"{vision}vision_model.anything.weight": torch.zeros(3),
        f"{vision}aligner.layers.0.bias": torch.zeros(3),
        f"{llm}lm_head.weight": torch.zeros(config.token_rows, config.dim),
    }
    for name, value in llama_names(split(gpt_state(config), config)).items():
        inner = name.removeprefix("model.") if "code_embeddings" in name or "output" in name else name
        ours, theirs = next(pair for pair in JANUS_NAMES[layout] if inner.startswith(pair[0]))
        state[inner.replace(ours, theirs, 1)] = value
    if layout == "official":
        return state | {f"gen_vision_model.{name}": value for name, value in vq_state().items()}
    return state | {
        f"model.vqmodel.{_hf_name(name)}": value for name, value in vq_state().items() if "used" not in name
    }


def write_janus(
    folder: Path, layout: str = "official", kind: str = "bin", state: State | None = None
) -> Path:
    """A folder as DeepSeek publishes it, or as transformers saves it."""
    folder.mkdir()
    write_two(folder, state or janus_state(layout=layout), kind)
    nested = {"num_attention_heads": HEADS} | ({"rms_norm_eps": 1e-6} if layout == "hf" else {})
    settings = {"language_config" if layout == "official" else "text_config": nested}
    (folder / "config.json").write_text(json.dumps(settings))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": t, "special": True, **flags} for t, i in JANUS_SPECIAL.items()],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "model": {"type": "BPE", "vocab": JANUS_VOCABULARY, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def _hf_name(name: str) -> str:
    """The name that transformers has for a tensor of the VQ; the decoder's levels keep their numbers."""
    for number, middle in enumerate(("block_1", "attn_1", "block_2")):
        name = name.replace(f".mid.{number}.", f".mid.{middle}.")
    name = name.replace("encoder.conv_blocks.", "encoder.down.").replace(
        "decoder.conv_blocks.", "decoder.up."
    )
    return name.replace(".res.", ".block.")
