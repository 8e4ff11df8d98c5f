"""Official files of VAR, MAR and DiT become model folders; what does not fit is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.errors import CiarError, InvalidRequest, ModelMismatch, ModelUnavailable
from shared.models.families.dit import DiTModel
from shared.models.families.mar import MARModel
from shared.models.families.var import VARModel
from shared.models.generators import load_generator, load_kl, load_scale_vq
from shared.models.latent_decoder import load_latent_decoder
from training import cli
from training.conversion import Conversion
from training.convert import convert
from training.generators import var_scales
from training.sources import Tensors, read_tensors

GOLDEN = Path(__file__).parents[1] / "models" / "golden"
VAR, VAE = GOLDEN / "var" / "var_saln.safetensors", GOLDEN / "var" / "vae.safetensors"
MAR, KL = GOLDEN / "mar" / "mar.safetensors", GOLDEN / "mar" / "kl_tiny.ckpt"
DIT = GOLDEN / "dit" / "dit_a.safetensors"
ORDERS = {
    "var": Conversion(VAR, Path("out"), "var", 16, VAE),
    "mar": Conversion(MAR, Path("out"), "mar", 8, KL, heads=4),
    "dit": Conversion(DIT, Path("out"), "dit", 64, heads=4),
}


def converted(family: str, folder: Path, **changes: Any) -> tuple[str, str]:
    return convert(replace(ORDERS[family], target=folder, **changes))


@pytest.mark.parametrize(("family", "kind"), [("var", VARModel), ("mar", MARModel), ("dit", DiTModel)])
def test_a_folder_holds_the_same_weights(family: str, kind: type, tmp_path: Path) -> None:
    converted(family, tmp_path)
    model, official = load_generator(tmp_path / "cloud"), read_tensors(ORDERS[family].source)
    assert isinstance(model, kind)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, official[name].float()), name
    stored = load_file(tmp_path / "cloud" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}  # the precision they came in


def test_tokenizers_keep_their_weights(tmp_path: Path) -> None:
    converted("var", tmp_path / "var")
    vq, official = load_scale_vq(tmp_path / "var" / "vae"), load_file(VAE)
    whole = official["encoder.mid.attn_1.qkv.weight"].float()
    assert torch.equal(torch.cat([getattr(vq.encoder.mid[1], part).weight for part in "qkv"]), whole)
    assert torch.equal(vq.quantize.phi[2].weight, official["quantize.quant_resi.qresi_ls.2.weight"].float())
    converted("mar", tmp_path / "mar")
    kl, other = load_kl(tmp_path / "mar" / "vae"), torch.load(KL, weights_only=True)["model"]
    last = other["decoder.up.0.block.2.conv2.weight"].float()  # upstream counts from the highest resolution
    assert torch.equal(kl.decoder.conv_blocks[-1].res[2].conv2.weight, last)


@pytest.mark.parametrize(
    ("names", "filters"), [({"qresi_ls.0": "qresi"}, 1), ({f"qresi_ls.{j}": f"{j}" for j in range(4)}, 4)]
)
def test_every_way_of_sharing_filters(names: dict[str, str], filters: int, tmp_path: Path) -> None:
    """One filter for all scales, or one for each."""
    weights = {}
    for name, value in load_file(VAE).items():
        old = name.removeprefix("quantize.quant_resi.").rpartition(".")[0]
        if "quant_resi" not in name:
            weights[name] = value
        elif old in names:
            weights[name.replace(old, names[old])] = value
    save_file(weights, tmp_path / "vae.safetensors")
    converted("var", tmp_path / "out", vq=tmp_path / "vae.safetensors")
    assert load_scale_vq(tmp_path / "out" / "vae").maps.filters == filters


def without(file: Path, name: str, to: Path) -> Path:
    weights = load_file(file)
    del weights[name]
    save_file(weights, to)
    return to


@pytest.mark.parametrize(
    ("family", "missing"),
    [
        ("var", "head_nm.ada_lin.1.bias"),
        ("mar", "diffloss.net.res_blocks.1.in_ln.bias"),
        ("dit", "pos_embed"),
    ],
)
def test_a_missing_tensor_is_named(family: str, missing: str, tmp_path: Path) -> None:
    source = without(ORDERS[family].source, missing, tmp_path / "broken.safetensors")
    with pytest.raises(ModelUnavailable, match=missing):
        converted(family, tmp_path / "out", source=source)
    assert not (tmp_path / "out" / "cloud").exists()


def test_buffers_of_var_may_be_missing(tmp_path: Path) -> None:
    """They follow from the scales; the scales are then known for published sizes alone."""
    source = without(VAR, "attn_bias_for_masking", tmp_path / "a.safetensors")
    converted("var", tmp_path / "out", source=source)
    with pytest.raises(ModelUnavailable, match="lvl_1L is missing"):
        converted("var", tmp_path / "out", source=without(VAR, "lvl_1L", tmp_path / "b.safetensors"))
    shapes = {"pos_1LC": (1, 680, 8), "lvl_embed.weight": (10, 8)}
    published = Tensors(shapes, torch.float32, lambda name: torch.zeros(shapes[name]))
    assert var_scales(published)[-1] == 16 and sum(side**2 for side in var_scales(published)) == 680


@pytest.mark.parametrize(
    ("family", "changes", "error", "names"),
    [
        ("var", {"pixels": 32}, InvalidRequest, "16 pixels, not 32"),
        ("var", {"vq": None}, ModelUnavailable, "--vq"),
        ("var", {"source": GOLDEN / "var" / "var_plain.safetensors"}, InvalidRequest, "--heads"),
        ("mar", {"vq": None}, InvalidRequest, "--vq"),
        ("mar", {"heads": None}, InvalidRequest, "width 32"),
        ("mar", {"pixels": 64}, InvalidRequest, "8 pixels, not 64"),
        ("dit", {"vq": VAE}, InvalidRequest, "diffusers"),
        ("dit", {"pixels": 256}, InvalidRequest, "64 pixels, not 256"),
        ("dit", {"heads": 5}, InvalidRequest, "5 heads"),
    ],
)
def test_what_does_not_fit_is_refused(
    family: str, changes: dict[str, Any], error: type[CiarError], names: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as raised:
        converted(family, tmp_path, **changes)
    assert names in str(raised.value)


def test_codes_must_belong_together(tmp_path: Path) -> None:
    weights = load_file(VAR)
    for name in ("head.weight", "head.bias"):
        weights[name] = weights[name][:-1]
    save_file(weights, tmp_path / "var.safetensors")
    with pytest.raises(ModelMismatch, match="127 codes, the VQ 128"):
        converted("var", tmp_path, source=tmp_path / "var.safetensors")


def test_the_command_line_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--family", "dit", "--pixels", "64", "--heads", "4"]
    assert cli.main(["convert", str(DIT), str(tmp_path), *options]) == 0
    assert "vq none" in capsys.readouterr().out
    with pytest.raises(ModelUnavailable, match="sd-vae-ft-ema"):
        load_latent_decoder(tmp_path / "vae")


def test_another_family_is_no_generator(tmp_path: Path) -> None:
    converted("dit", tmp_path)
    config = tmp_path / "cloud" / "config.json"
    config.write_text(config.read_text().replace('"dit"', '"emoji"'))
    with pytest.raises(ModelUnavailable, match=r"'emoji'.*'dit', 'mar', 'var'"):
        load_generator(tmp_path / "cloud")


def test_latents_become_pictures(tmp_path: Path) -> None:
    """By a tiny autoencoder that diffusers wrote."""
    from diffusers import AutoencoderKL  # seconds to import, for this test alone

    sizes = dict(block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4)
    blocks = {"up_block_types": ("UpDecoderBlock2D",) * 4, "down_block_types": ("DownEncoderBlock2D",) * 4}
    vae = AutoencoderKL(**sizes, **blocks).eval()
    vae.save_pretrained(tmp_path / "vae")
    latent: Tensor = torch.randn(1, 4, 2, 2)
    with torch.inference_mode():
        decoder = load_latent_decoder(tmp_path / "vae")
        assert torch.equal(decoder.decode(latent), vae.decode(latent / 0.18215).sample)
        assert decoder.pictures(latent).shape == (1, 16, 16, 3)
