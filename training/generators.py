"""The official files of VAR, MAR and DiT: which entries are weights, and the shapes that follow from them.

Parameters keep their official names; convolutions get LlamaGen's. Knows no argv.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path

from shared.errors import InvalidRequest, ModelMismatch, ModelUnavailable
from shared.models.families.dit import HEADS, VAE_FACTOR, DiTConfig, DiTModel
from shared.models.families.mar import MARConfig, MARModel, TowerConfig
from shared.models.families.var import VARConfig, VARModel
from shared.models.families.var_vae import ScaleVQ, ScaleVQConfig
from shared.models.generators import Generator, describe, describe_kl, describe_scale_vq
from shared.models.kl_vae import KLVAE, KLConfig
from training.conversion import Conversion, on_meta, require_vq, write_module
from training.sources import NESTS, Tensors, read_tensors
from training.upstream import Recipe, count, vq_config, vq_tensors

# Where the weights are in the files that training programs write; flat files are published.
VAR_NESTS, VAR_VAE_NESTS = ("trainer.var_wo_ddp",), ("trainer.vae_local", *NESTS)
MAR_NESTS, DIT_NESTS = ("model_ema",), ("ema",)
MAR_HEADS = {768: 12, 1024: 16, 1280: 16}  # of the published widths: B, L, H
_VAR_BUFFERS = re.compile(r"lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias")
# What L tokens in ten scales are, should a file not say it: the 256 and the 512 px models.
_VAR_SCALES = {680: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 2240: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}


def convert_var(order: Conversion) -> tuple[str, str]:
    """Write `cloud/` and `vae/`; the digests. Raises as `convert` does."""
    tensors = read_tensors(order.source, VAR_NESTS)
    model = on_meta(lambda: VARModel(var_config(tensors, order.heads)))
    vae = scale_vq_tensors(order.vq or order.source)
    vq = on_meta(lambda: scale_vq(vae, model.config.scales))
    if model.config.vocab_size != vq.config.codebook_size:
        what = f"the transformer has {model.config.vocab_size} codes, the VQ {vq.config.codebook_size}"
        raise ModelMismatch(what, "both must come from the same publication")
    _check_pixels(order.pixels, model.config.scales[-1] * vq.config.factor)
    cloud = write_generator(order.target / "cloud", model, var_weights(tensors))
    return cloud, write_scale_vq(order.target / "vae", vq, vae)


def convert_mar(order: Conversion) -> tuple[str, str]:
    """Write `cloud/` and `vae/`; the digests. Raises as `convert` does."""
    if order.vq is None:
        raise InvalidRequest("MAR's autoencoder is not inside its file", "", "name kl16.ckpt with --vq")
    vae = vq_tensors(read_tensors(order.vq))
    kl, tensors = on_meta(lambda: KLVAE(kl_config(vae))), read_tensors(order.source, MAR_NESTS)
    heads = None if order.heads is None else (order.heads, order.heads)
    model = on_meta(lambda: MARModel(mar_config(tensors, heads, kl.config.latent)))
    _check_pixels(order.pixels, model.config.side * model.config.patch * kl.config.factor)
    cloud = write_generator(order.target / "cloud", model, tensors)
    return cloud, write_kl(order.target / "vae", kl, vae)


def convert_dit(order: Conversion) -> tuple[str, str]:
    """Write `cloud/`; its digest, and that there is no autoencoder. Raises as `convert` does."""
    if order.vq is not None:
        what = f"DiT's autoencoder {order.vq} is not converted"
        raise InvalidRequest(what, "diffusers reads it", f"put its folder into {order.target / 'vae'}")
    tensors = read_tensors(order.source, DIT_NESTS)
    model = on_meta(lambda: DiTModel(dit_config(tensors, order.heads)))
    _check_pixels(order.pixels, model.config.side * VAE_FACTOR)
    return write_generator(order.target / "cloud", model, tensors), "none"


CONVERTERS: Mapping[str, Callable[[Conversion], tuple[str, str]]] = {
    "var": convert_var,
    "mar": convert_mar,
    "dit": convert_dit,
}


def write_generator(folder: Path, model: Generator, tensors: Tensors) -> str:
    """Write a model that may live on the meta device; its digest. Raises ModelUnavailable by name."""
    return write_module(folder, describe(model), model, tensors)


def var_weights(tensors: Tensors) -> Tensors:
    """Those of a VAR without its buffers, which follow from the scales."""
    return tensors.renamed(lambda name: None if _VAR_BUFFERS.fullmatch(name) else name)


def var_config(tensors: Tensors, heads: int | None) -> VARConfig:
    """The shape of a VAR. Raises InvalidRequest where heads are neither said nor published, ModelUnavailable
    where a tensor that says a size is missing."""
    vocab, dim = tensors.shape("head.weight")
    own_scale = "blocks.0.attn.scale_mul_1H11"
    said = tensors.shape(own_scale)[1] if own_scale in tensors else heads
    depth = count(tensors, "blocks.")
    return VARConfig(
        depth=depth, dim=dim, heads=said or _published_heads("VAR", dim, {64 * depth: depth}),
        classes=tensors.shape("class_emb.weight")[0] - 1, vocab_size=vocab,
        code_dim=tensors.shape("word_embed.weight")[1], scales=var_scales(tensors),
        hidden=tensors.shape("blocks.0.ffn.fc1.weight")[0], l2_norm=own_scale in tensors,
        one_adaln="shared_ada_lin.1.weight" in tensors,
    )  # fmt: skip


def var_scales(tensors: Tensors) -> tuple[int, ...]:
    """Side of each map: the length of each run of levels is its square. Raises ModelUnavailable where the
    file has no levels and is not of a published size."""
    if "lvl_1L" in tensors:
        runs = [len(list(run)) for _, run in groupby(tensors["lvl_1L"].flatten().tolist())]
        return tuple(math.isqrt(run) for run in runs)
    tokens, scales = tensors.shape("pos_1LC")[1], tensors.shape("lvl_embed.weight")[0]
    found = _VAR_SCALES.get(tokens, ())
    if len(found) != scales:
        what = f"{tokens} tokens in {scales} scales are no published VAR, and lvl_1L is missing"
        raise ModelUnavailable(what, f"published: {sorted(_VAR_SCALES)} tokens in 10 scales")
    return found


def scale_vq_tensors(file: Path) -> Tensors:
    """Those of VAR's tokenizer under our names."""

    def rename(name: str) -> str | None:
        if name == "quantize.ema_vocab_hit_SV":
            return None
        return re.sub(r"^quantize\.quant_resi\.(?:qresi_ls\.(\d+)|qresi|(\d+))\.", _filter_name, name)

    return require_vq(vq_tensors(read_tensors(file, VAR_VAE_NESTS)), file).renamed(rename)


def _filter_name(found: re.Match[str]) -> str:
    return f"quantize.phi.{found[1] or found[2] or 0}."


def scale_vq(tensors: Tensors, scales: tuple[int, ...], ratio: float = 0.5) -> ScaleVQ:
    """VAR's tokenizer of these tensors, weights not loaded."""
    filters = count(tensors, "quantize.phi.")
    kernel = tensors.shape("quant_conv.weight")[2]
    stack = vq_config(tensors, unit_codes=False, pixel_shift=127.5)
    return ScaleVQ(stack, ScaleVQConfig(scales, filters, ratio, kernel))


def write_scale_vq(folder: Path, vq: ScaleVQ, tensors: Tensors) -> str:
    """Write VAR's tokenizer; its digest. Raises ModelUnavailable by name."""
    config = describe_scale_vq(vq.config, vq.maps)
    return write_module(folder, config, vq, tensors, lambda name: _attention_part(name, tensors))


def _attention_part(name: str, tensors: Tensors) -> Recipe:
    """VAR keeps queries, keys and values of the convolutional attention in one tensor."""
    part = re.fullmatch(r"(.*)\.([qkv])\.(weight|bias)", name)
    if part is None or name in tensors:
        return Recipe((name,))
    whole = f"{part[1]}.qkv.{part[3]}"
    width, index = tensors.shape(whole)[0] // 3, "qkv".index(part[2])
    return Recipe((whole,), (index * width, (index + 1) * width))


def mar_config(tensors: Tensors, heads: tuple[int, int] | None, latent: int) -> MARConfig:
    """The shape of a MAR over latents of that many numbers; `heads` of encoder and decoder. Raises as
    `var_config` does."""
    tokens = tensors.shape("diffusion_pos_embed_learned")[1]
    token_dim = tensors.shape("z_proj.weight")[1]
    towers = [
        TowerConfig(
            dim=(dim := tensors.shape(f"{name}_norm.weight")[0]),
            depth=count(tensors, f"{name}_blocks."),
            heads=heads[index] if heads else _published_heads("MAR", dim, MAR_HEADS),
            hidden=tensors.shape(f"{name}_blocks.0.mlp.fc1.weight")[0],
        )
        for index, name in enumerate(("encoder", "decoder"))
    ]
    return MARConfig(
        encoder=towers[0], decoder=towers[1], tokens=tokens, token_dim=token_dim,
        buffer=tensors.shape("encoder_pos_embed_learned")[1] - tokens,
        classes=tensors.shape("class_emb.weight")[0],
        head_width=tensors.shape("diffloss.net.input_proj.weight")[0],
        head_depth=count(tensors, "diffloss.net.res_blocks."),
        patch=_patch(token_dim, latent),
    )  # fmt: skip


def _patch(token_dim: int, latent: int) -> int:
    patch = math.isqrt(token_dim // latent)
    if patch * patch * latent != token_dim:
        what = f"tokens of {token_dim} numbers are no square of latents of {latent}"
        raise ModelMismatch(what, "transformer and autoencoder must come from the same publication")
    return patch


def kl_config(tensors: Tensors) -> KLConfig:
    """The shape of MAR's autoencoder under LlamaGen's names. Raises as `vq_config` does."""
    stack = vq_config(tensors, unit_codes=False, pixel_shift=127.5, codebook=False)
    return KLConfig(
        ch=stack.ch, ch_mult=stack.ch_mult, z_channels=stack.z_channels // 2,
        latent=tensors.shape("quant_conv.weight")[0] // 2, encoder_res=stack.encoder_res,
        decoder_res=stack.decoder_res, encoder_attention=_attention_levels(tensors, "encoder"),
        decoder_attention=_attention_levels(tensors, "decoder"),
    )  # fmt: skip


def _attention_levels(tensors: Tensors, part: str) -> tuple[int, ...]:
    found = (re.match(rf"{part}\.conv_blocks\.(\d+)\.attn\.", name) for name in tensors)
    return tuple(sorted({int(at[1]) for at in found if at}))


def write_kl(folder: Path, kl: KLVAE, tensors: Tensors) -> str:
    """Write MAR's autoencoder; its digest. Raises ModelUnavailable by name."""
    return write_module(folder, describe_kl(kl.config), kl, tensors)


def dit_config(tensors: Tensors, heads: int | None) -> DiTConfig:
    """The shape of a DiT. Raises as `var_config` does."""
    dim, channels, patch, _ = tensors.shape("x_embedder.proj.weight")
    outputs = tensors.shape("final_layer.linear.weight")[0] // patch**2
    return DiTConfig(
        depth=count(tensors, "blocks."), dim=dim,
        heads=heads or _published_heads("DiT", dim, HEADS),
        hidden=tensors.shape("blocks.0.mlp.fc1.weight")[0], patch=patch, channels=channels,
        side=math.isqrt(tensors.shape("pos_embed")[1]) * patch,
        classes=tensors.shape("y_embedder.embedding_table.weight")[0] - 1,
        learned_spread=outputs == 2 * channels,
    )  # fmt: skip


def _published_heads(what: str, dim: int, published: Mapping[int, int]) -> int:
    if dim not in published:
        why = f"published widths: {sorted(published)}"
        raise InvalidRequest(f"width {dim} belongs to no published {what}", why, "say --heads")
    return published[dim]


def _check_pixels(asked: int, found: int) -> None:
    if asked != found:
        raise InvalidRequest(f"the weights draw {found} pixels, not {asked}", "", "mend --pixels")
