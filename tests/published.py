"""Tiny random models written the way their publishers write theirs: LlamaGen's files, every Chameleon layout.

Knows nothing of how they are read.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from shared.config import TransformerConfig, VQConfig
from shared.models.transformer import Transformer
from shared.models.vq import VQModel

State = dict[str, Tensor]
HEADS, GRID, CODES, TEXT = 4, 4, 16, ("a", "b", "c", "d", "e", " ")
LLAMAGEN = TransformerConfig(
    dim=32, n_layer=3, n_head=HEADS, vocab_size=CODES, grid=GRID, prefix_len=6, caption_dim=12, ffn_hidden=64
)
CLASSES = replace(LLAMAGEN, prefix_len=1, caption_dim=0, classes=5)
CHAMELEON = TransformerConfig(
    dim=32, n_layer=3, n_head=HEADS, n_kv_head=2, vocab_size=CODES, grid=GRID, prefix_len=12, caption_dim=0,
    ffn_hidden=64, token_rows=40, image_start=4, rope_axes=1, rope_pairs="halves",
    q_norm_rows=1, k_norm_rows=1,
)  # fmt: skip
VQ = VQConfig(
    ch=32, ch_mult=(1, 2), z_channels=8, codebook_size=CODES, codebook_dim=4, encoder_res=1, decoder_res=2
)
PIXELS = GRID * VQ.factor


def code_names(count: int, start: int = 4) -> dict[str, int]:
    """Names and ids of image tokens: IMGIMG, the code with letters for digits, Z."""
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    return {f"IMGIMG{str(code).translate(letters)}Z": start + code for code in range(count)}


VOCABULARY = {
    "<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3,
    **code_names(CODES),
    "<eoss>": 20, "<racm3:break>": 21, "<reserved08706>": 22, "<reserved08707>": 23,
    **{letter: 24 + index for index, letter in enumerate(TEXT)},
}  # fmt: skip


def gpt_state(config: TransformerConfig, seed: int = 0) -> State:
    """Random weights under the original names, large enough that everything moves the logits."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = Transformer(config).state_dict()
        for name, value in state.items():
            table = "embed" in name and "lift" not in name
            scale = 1.0 if value.ndim == 1 or "norm" in name or table else value.shape[-1] ** -0.5
            offset = 1.0 if name.endswith("norm.weight") or "normalization.weight" in name else 0.0
            value.copy_(
                offset + 0.3 * torch.randn(value.shape) if offset else scale * torch.randn(value.shape)
            )
        state["output.fc2.weight" if config.head_hidden else "output.weight"] *= 1.8
    return state


def vq_state(config: VQConfig = VQ, seed: int = 0) -> State:
    """Random weights of a VQ under LlamaGen's names, with the buffer its files hold."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {**VQModel(config).state_dict(), "quantize.codebook_used": torch.zeros(8)}


def write_llamagen(folder: Path, config: TransformerConfig = LLAMAGEN) -> tuple[Path, Path]:
    """`gpt.pt` and `vq.pt`, nested under "model"."""
    torch.save({"model": gpt_state(config)}, folder / "gpt.pt")
    torch.save({"model": vq_state()}, folder / "vq.pt")
    return folder / "gpt.pt", folder / "vq.pt"


def write_hf(
    folder: Path, state: State, config: TransformerConfig = CHAMELEON, norm_rows: int = HEADS
) -> Path:
    """The Hugging Face layout, in two shards with an index, the VQ inside; norms of that many rows."""
    folder.mkdir()
    llama = llama_names(split(state, config))
    for name, value in llama.items():
        if ("_norm.weight" in name or "_norm.bias" in name) and config.q_norm_rows == 1:
            rows = min(norm_rows, config.kv_heads) if "k_norm" in name else norm_rows
            llama[name] = value.expand(rows, -1).contiguous()
    llama |= {f"model.vqmodel.{name}": value for name, value in taming_state().items()}
    write_two(folder, llama)
    settings = {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "swin_norm": config.swin_norm}
    (folder / "config.json").write_text(json.dumps(settings))
    write_tokenizer(folder / "tokenizer.json")
    return folder


def write_two(folder: Path, state: State, kind: str = "safetensors") -> None:
    """Two shards and their index, as safetensors or as pickles ("bin")."""
    names, stem = sorted(state), "model" if kind == "safetensors" else "pytorch_model"
    where = {name: f"{stem}-0000{1 + index % 2}-of-00002.{kind}" for index, name in enumerate(names)}
    for file in sorted(set(where.values())):
        part = {name: state[name] for name in names if where[name] == file}
        save_file(part, folder / file) if kind == "safetensors" else torch.save(part, folder / file)
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": where}))


def write_bin(folder: Path, state: State, config: TransformerConfig = CHAMELEON) -> Path:
    """Hugging Face names in one pickle, but rows in the original order and norms as vectors; no VQ."""
    folder.mkdir()
    torch.save(llama_names(split(_interleaved(state, config), config)), folder / "pytorch_model.bin")
    write_tokenizer(folder / "tokenizer.json")
    return folder


def write_fair(
    folder: Path, state: State, config: TransformerConfig = CHAMELEON, *, fused: bool = False
) -> Path:
    """The original layout: models/7b, tokenizer; with `fused`, queries, keys and values are one tensor."""
    weights = _interleaved(state, config)
    if fused:
        for layer in range(config.n_layer):
            stem = f"layers.{layer}.feed_forward"
            halves = [weights.pop(f"{stem}.{name}.weight") for name in ("w1", "w3")]
            weights[f"{stem}.w13.weight"] = torch.cat(halves)
    else:
        weights = split(weights, config)
    (folder / "models" / "7b").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    torch.save({**weights, "rope.freqs": torch.zeros(4)}, folder / "models" / "7b" / "consolidated.pth")
    settings = {"model": {"norm_eps": 1e-5, "rope_theta": 10000.0, "swin_norm": config.swin_norm}}
    (folder / "models" / "7b" / "params.json").write_text(json.dumps(settings))
    checkpoint = {"state_dict": {**taming_state(), "loss.weight": torch.zeros(1)}}
    torch.save(checkpoint, folder / "tokenizer" / "vqgan.ckpt")
    write_tokenizer(folder / "tokenizer" / "text_tokenizer.json")
    return folder


def write_shards(folder: Path, state: State, config: TransformerConfig) -> Path:
    """The original layout in two files: each has half of the heads, with norms of its own."""
    weights = split(_interleaved(state, config), config)
    target = write_fair(folder, state, config) / "models" / "7b"
    (target / "consolidated.pth").unlink()
    for shard in range(2):
        part = {}
        for name, value in weights.items():
            rows = name.endswith(
                ("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight", "output.weight")
            )
            columns = name.endswith(("wo.weight", "w2.weight", "tok_embeddings.weight"))
            cut = value.chunk(2, 0 if rows else 1)[shard].clone() if rows or columns else value
            part[name] = value[shard].clone() if "normalization" in name else cut
        torch.save(part, target / f"consolidated.0{shard}.pth")
    return folder


def write_tokenizer(path: Path) -> None:
    """As much of a tokenizer.json as tells the ids of its tokens."""
    path.write_text(json.dumps({"model": {"type": "BPE", "vocab": VOCABULARY}, "added_tokens": []}))


def chameleon_state(config: TransformerConfig = CHAMELEON) -> State:
    """A Chameleon under the original names, half-split rows, a head for every token, one row per norm."""
    state = gpt_state(config)
    state["output.weight"] = torch.zeros(config.token_rows, config.dim)
    rows = slice(config.image_start, config.image_start + CODES)
    state["output.weight"][rows] = gpt_state(config)["output.weight"]
    return state


def taming_state(shape: VQConfig = VQ) -> State:
    """The VQ under taming's names: levels of the decoder counted from the highest resolution."""
    config = replace(shape, attention=False, unit_codes=False, pixel_shift=127.5)
    out = {}
    for name, value in VQModel(config).state_dict().items():
        for number, middle in enumerate(("block_1", "attn_1", "block_2")):
            name = name.replace(f".mid.{number}.", f".mid.{middle}.")
        for level in range(len(shape.ch_mult)):
            name = name.replace(f"encoder.conv_blocks.{level}.", f"encoder.down.{level}.")
            name = name.replace(
                f"decoder.conv_blocks.{len(shape.ch_mult) - 1 - level}.", f"decoder.up.{level}."
            )
        out[name.replace(".res.", ".block.")] = value
    return out


def split(state: State, config: TransformerConfig) -> State:
    """Queries, keys and values apart."""
    out = dict(state)
    width = config.head_dim
    rows = [config.n_head * width, config.kv_heads * width, config.kv_heads * width]
    for name in [name for name in state if name.endswith("wqkv.weight")]:
        for letter, part in zip("qkv", out.pop(name).split(rows), strict=True):
            out[name.replace("wqkv", f"w{letter}")] = part.contiguous()
    return out


def _interleaved(state: State, config: TransformerConfig) -> State:
    """Rows of queries and keys reordered from half-split pairs to adjacent ones; norms as vectors."""
    out, width = dict(state), config.head_dim
    for name, value in state.items():
        if name.endswith("wqkv.weight"):
            turned = (config.n_head + config.kv_heads) * width
            rows = value[:turned].unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2)
            out[name] = torch.cat([rows, value[turned:]])
        elif "normalization" in name:
            table = value.unflatten(1, (2, width // 2)).transpose(1, 2).flatten(1)
            out[name] = table[0] if len(table) == 1 else table
    return out


def llama_names(state: State) -> State:
    """Original names to those of Hugging Face's Llama."""
    pairs = (
        ("feed_forward.w1", "mlp.gate_proj"), ("feed_forward.w3", "mlp.up_proj"),
        ("feed_forward.w2", "mlp.down_proj"), ("attention_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"), ("_normalization", "_norm"),
        *((f"attention.w{letter}", f"self_attn.{letter}_proj") for letter in "qkvo"),
        ("attention.q_", "self_attn.q_"), ("attention.k_", "self_attn.k_"),
        ("tok_embeddings", "embed_tokens"),
    )  # fmt: skip
    out = {}
    for name, value in state.items():
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        out["lm_head.weight" if name == "output.weight" else f"model.{name}"] = value
    return out
