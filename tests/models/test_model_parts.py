"""Inter-Head, features, text, VQ and the strict folders they live in."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from shared.config import DeviceConfig, TransformerConfig, VQConfig, from_dict, to_dict
from shared.errors import InvalidPrompt, InvalidRequest, ModelMismatch, ModelUnavailable
from shared.models import zoo
from shared.models.checkpoint import (
    digest,
    load_device,
    load_model,
    load_vq,
    save_device,
    save_model,
    save_vq,
)
from shared.models.families.emoji import EmojiModel
from shared.models.inter_head import DeviceModel, InterHead, quantise_features
from shared.models.text import MAX_PROMPT_CHARS, Vocabulary
from shared.models.vq import VQModel, from_pixels, to_pixels

SHAPE = TransformerConfig(
    dim=16, n_layer=1, n_head=2, vocab_size=12, grid=2, prefix_len=4, caption_dim=8, ffn_hidden=32
)
VQ = VQConfig(
    ch=8, ch_mult=(1, 2), z_channels=8, codebook_size=12, codebook_dim=4, encoder_res=1, decoder_res=1
)
WORDS = ["a", "background", "cat", "dog", "on", "red", "style"]


def test_radii_stay_within_their_limits() -> None:
    head = InterHead(4, 6, radius_max=2.5)
    torch.nn.init.normal_(head.radius.weight, std=50)
    radius = head(torch.randn(100, 4))
    assert radius.dtype == torch.float32 and radius.min() >= 0 and radius.max() == 2.5


@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=4, max_size=4), min_size=1, max_size=5))
def test_quantised_features_are_within_half_a_step(rows: list[list[float]]) -> None:
    feature = torch.tensor(rows)
    codes, scale = quantise_features(feature)
    assert codes.dtype == torch.int8 and scale.dtype == torch.float16
    step = scale.float()[:, None]
    # fp16 rounds the scale by up to 2**-11 of itself, which clips the largest code by 127 times that.
    assert ((codes * step - feature).abs() <= step * (0.5 + 127 * 2**-11) + 1e-6).all()


def test_prompts_that_say_nothing_are_refused() -> None:
    vocabulary = Vocabulary(WORDS, max_words=4)
    assert vocabulary.encode("A red cat!") == [0, 5, 2]
    assert vocabulary.encode("a purple cat") == [0, 2] and vocabulary.unknown("a purple cat") == ["purple"]
    for prompt, says in (
        ("", "empty"),
        ("  ", "empty"),
        ("x" * 10_000, f"1 to {MAX_PROMPT_CHARS}"),
        ("a doog", "dog"),
        ("on a background", "names something"),
        ("cat dog cat dog red", "5 known words"),
    ):
        with pytest.raises(InvalidPrompt, match=says):
            vocabulary.encode(prompt)


def test_pixels_round_trip() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert (to_pixels(from_pixels(pixels)).int() - pixels.int()).abs().max() <= 1


@pytest.mark.parametrize("linear", [True, False])
def test_vq_shapes_and_flat_regions(linear: bool) -> None:
    """With per-pixel norm and replicate padding a flat image is one token everywhere."""
    torch.manual_seed(0)
    config = replace(VQ, encoder_norm="pixel", encoder_padding="replicate", attention=False, middle=False)
    model = VQModel(replace(config, patch=2, linear_path=linear)).eval()
    with torch.no_grad():
        ids = model.encode(torch.full((1, 3, 32, 32), 0.3))
        assert ids.shape == (1, 8, 8) and len(ids.unique()) == 1
        assert model.decode(ids).shape == (1, 3, 32, 32)


def _models(folder: Path) -> None:
    torch.manual_seed(0)
    save_model(folder / "cloud", EmojiModel(SHAPE, WORDS), torch.float32)
    config = DeviceConfig(cloud_digest=digest(folder / "cloud"))
    save_device(folder / "device", DeviceModel(EmojiModel(SHAPE, WORDS), config), torch.float32)
    save_vq(folder / "vq", VQModel(VQ))


def test_folders_round_trip(tmp_path: Path) -> None:
    _models(tmp_path)
    model = load_model(tmp_path / "cloud")
    assert model.vocabulary.words == tuple(WORDS) and model.config == SHAPE
    assert save_model(tmp_path / "again", model, torch.float32) == digest(tmp_path / "cloud")
    assert load_device(tmp_path / "device").config.cloud_digest == digest(tmp_path / "cloud")
    assert load_vq(tmp_path / "vq").config == VQ


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "kind", "config", "file"])
def test_damaged_folders_are_refused_by_name(tmp_path: Path, damage: str) -> None:
    _models(tmp_path)
    folder, name = tmp_path / "cloud", "gpt.norm.weight"
    state = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    expected = {"kind": "kind 'painter'", "config": "colour", "file": "model.safetensors"}.get(damage, name)
    if damage == "missing":
        del state[name]
    elif damage == "extra":
        state["gpt.norm.weight_2"] = torch.zeros(2)
    elif damage == "shape":
        state[name] = torch.zeros(3)
    elif damage == "kind":
        config["kind"] = "painter"
    elif damage == "config":
        config["transformer"]["colour"] = 3
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    if damage == "file":
        (folder / "model.safetensors").unlink()
    with pytest.raises((ModelUnavailable, InvalidRequest), match=expected):
        load_model(folder)


def test_config_refuses_unknown_and_missing_keys() -> None:
    assert from_dict(TransformerConfig, json.loads(json.dumps(to_dict(SHAPE)))) == SHAPE
    with pytest.raises(InvalidRequest, match="depth"):
        from_dict(TransformerConfig, {**to_dict(SHAPE), "depth": 3})
    with pytest.raises(InvalidRequest, match="grid"):
        from_dict(TransformerConfig, {k: v for k, v in to_dict(SHAPE).items() if k != "grid"})


def test_unknown_models_list_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"unknown model 'dalle'.*anole"):
        zoo.find("dalle", tmp_path)
    with pytest.raises(ModelUnavailable, match=f"Anole-7b.*{tmp_path / 'anole'}"):
        zoo.find("anole", tmp_path)
    with pytest.raises(ModelUnavailable, match=r"peizesun/llamagen_t2i.*--pixels 512.*flan-t5-xl"):
        zoo.find("llamagen-xl-512", tmp_path)
    _models(tmp_path / "anole")
    assert zoo.find("anole", tmp_path) == tmp_path / "anole" and "anole" in zoo.available(tmp_path)


def test_a_cloud_without_a_device_says_how_to_make_one(tmp_path: Path) -> None:
    _models(tmp_path)
    shutil.rmtree(tmp_path / "device")
    assert zoo.load_cloud(str(tmp_path), tmp_path).digest == digest(tmp_path / "cloud")
    with pytest.raises(ModelUnavailable, match=f"ciar-train cut {tmp_path}"):
        zoo.load_device_package(str(tmp_path), tmp_path)


def test_folders_of_the_first_release_still_load(tmp_path: Path) -> None:
    """Their configs lack every field that came later; weights and digest stay what they are."""
    _models(tmp_path)
    file = tmp_path / "cloud" / "config.json"
    config = json.loads(file.read_text())
    first = ("dim", "n_layer", "n_head", "vocab_size", "grid", "prefix_len", "caption_dim", "ffn_hidden")
    first += ("n_kv_head", "norm_eps", "rope_base", "learned_positions")
    config["transformer"] = {name: config["transformer"][name] for name in first}
    file.write_text(json.dumps(config, indent=1) + "\n")
    before = digest(tmp_path / "cloud")
    assert load_model(tmp_path / "cloud").config == SHAPE
    assert digest(tmp_path / "cloud") == before


def test_a_calibration_of_another_cloud_is_refused(tmp_path: Path) -> None:
    _models(tmp_path)
    calibration = zoo.Calibration("0" * 16, zoo.Warp(), 5, 0.06, {})
    zoo.write_calibration(tmp_path / "device" / zoo.CALIBRATION, calibration)
    assert zoo.read_calibration(tmp_path / "device" / zoo.CALIBRATION) == calibration
    with pytest.raises(ModelMismatch, match="0000000000000000"):
        zoo.load_device_package(str(tmp_path), tmp_path)
