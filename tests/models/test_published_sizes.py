"""Every published size has the tensors and the parameters its publishers count. Nothing is allocated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shared.config import TransformerConfig, VQConfig
from shared.models.families.dit import DiTConfig, DiTModel
from shared.models.families.llamagen import HEADS
from shared.models.families.mar import MARConfig, MARModel, TowerConfig
from shared.models.families.var import VARConfig, VARModel
from shared.models.families.var_vae import ScaleVQ, ScaleVQConfig
from shared.models.shapes import SHAPES
from shared.models.transformer import Transformer
from shared.models.vq import VQModel
from tests.published import split
from training.sources import Tensors
from training.upstream import llamagen_config
from training.upstream_janus import janus_config

# width, layers, heads, hidden width of the feed-forward part, parameters with captions and with classes
SIZES = {
    "B": (768, 12, 12, 2048, 112_282_368, 110_888_448),
    "L": (1024, 24, 16, 2816, 345_031_680, 342_910_976),
    "XL": (1280, 36, 20, 3584, 777_678_080, 774_699_520),
    "XXL": (1536, 48, 24, 4096, 1_414_940_160, 1_410_972_672),
    "XXXL": (2560, 48, 40, 6912, 3_902_261_760, 3_893_027_840),
    "1B": (2048, 22, 32, 5632, 1_205_954_560, 1_199_616_000),
    "3B": (3200, 24, 32, 8704, 3_110_249_600, 3_096_659_200),
    "7B": (4096, 32, 32, 11008, 6_635_655_168, 6_614_589_440),
}


def count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.state_dict().values())


def on_meta(shape: TransformerConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(shape)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("captions", [True, False])
def test_llamagen(size: str, captions: bool) -> None:
    dim, layers, heads, hidden, with_captions, with_classes = SIZES[size]
    prefix = (
        {"prefix_len": 120, "caption_dim": 2048}
        if captions
        else {"prefix_len": 1, "caption_dim": 0, "classes": 1000}
    )
    shape = TransformerConfig(
        dim=dim, n_layer=layers, n_head=heads, n_kv_head=heads, vocab_size=16384, grid=16, ffn_hidden=hidden,
        **prefix,
    )  # fmt: skip
    model = on_meta(shape)
    unguided = 120 * 2048 if captions else 0  # a buffer upstream, so not a parameter there
    assert count(model) - unguided == (with_captions if captions else with_classes)
    assert len(model.state_dict()) == 7 * layers + (6 if captions else 4)
    assert HEADS[dim] == heads
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert llamagen_config(Tensors(shapes, torch.float32, model.state_dict().__getitem__), 16, None) == shape


@pytest.mark.parametrize(
    ("shape", "billions"),
    [
        (dict(dim=4096, n_layer=32, n_head=32, ffn_hidden=11008, q_norm_rows=1, k_norm_rows=1), 7.0137),
        (dict(dim=8192, n_layer=48, n_head=64, n_kv_head=8, ffn_hidden=22016, swin_norm=True), 34.29),
    ],
)
def test_chameleon(shape: dict[str, int], billions: float) -> None:
    """Without the 57,344 rows of the head that judge text."""
    common = dict(vocab_size=8192, grid=32, prefix_len=128, caption_dim=0, token_rows=65536, image_start=4)
    model = on_meta(TransformerConfig(**common, **shape, rope_axes=1))
    text_head = (65536 - 8192) * shape["dim"]
    assert (count(model) + text_head) / 1e9 == pytest.approx(billions, rel=2e-4)


@pytest.mark.parametrize(
    ("name", "said", "parameters"),
    [
        ("janus-pro-1b", {"num_attention_heads": 16}, 1_485_053_952),
        ("janus-pro-7b", {"vocab_size": 102400}, 6_591_791_104),  # its file leaves out what is the default
    ],
)
def test_janus(name: str, said: dict[str, int], parameters: int) -> None:
    """As many parameters as transformers counts in `language_model` and the three `generation_*` parts."""
    shape = SHAPES[name]
    model = on_meta(shape)
    assert count(model) == parameters
    shapes = {name: tuple(v.shape) for name, v in split(model.state_dict(), shape).items()}
    tensors, settings = Tensors(shapes, torch.float32, shapes.__getitem__), {"language_config": said, **said}
    assert janus_config(tensors, settings, 24, 128) == shape


def test_vq_tokenizers() -> None:
    with torch.device("meta"):
        llamagen = VQModel(VQConfig(128, (1, 1, 2, 2, 4), 256, 16384, 8))
        chameleon = VQModel(VQConfig(128, (1, 1, 2, 2, 4), 256, 8192, 256, attention=False))
    assert (count(llamagen), len(llamagen.state_dict())) == (71_883_403, 343)
    assert count(chameleon) / 1e6 == pytest.approx(68.7, abs=0.05)


SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


@pytest.mark.parametrize(
    ("depth", "parameters"), [(16, 310_283_520), (20, 600_917_136), (24, 1_033_399_360), (30, 2_010_020_356)]
)
def test_var(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        model = VARModel(VARConfig(depth, 64 * depth, depth, 1000, 4096, 32, SCALES, 256 * depth))
    assert count(model) == parameters
    assert model.config.offsets[-2:] == (424, 680)


def test_the_tokenizer_of_var() -> None:
    with torch.device("meta"):
        vq = ScaleVQ(VQConfig(160, (1, 1, 2, 2, 4), 32, 4096, 32, unit_codes=False), ScaleVQConfig(SCALES, 4))
    assert (count(vq), count(vq.decoder)) == (108_948_355, 64_653_923)


@pytest.mark.parametrize(
    ("dim", "depth", "heads", "head", "millions"),
    [
        (768, 12, 12, (1024, 6), (208, 36)),
        (1024, 16, 16, (1280, 8), (478, 72)),  # published as 479
        (1280, 20, 16, (1536, 12), (942, 151)),  # published as 943
    ],
)
def test_mar(dim: int, depth: int, heads: int, head: tuple[int, int], millions: tuple[int, int]) -> None:
    tower = TowerConfig(dim, depth, heads, 4 * dim)
    with torch.device("meta"):
        model = MARModel(MARConfig(tower, tower, 256, 16, 64, 1000, *head))
    assert (round(count(model) / 1e6), round(count(model.diffloss) / 1e6)) == millions


def test_dit() -> None:
    with torch.device("meta"):
        model = DiTModel(DiTConfig(28, 1152, 16, 4608, 2, 4, 32, 1000))
    assert count(model) == 675_129_632
