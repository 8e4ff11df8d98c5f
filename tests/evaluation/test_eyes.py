"""Published models are read from their official layouts (tiny stand-ins, random weights), and what they
measure is what the published programs measure.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from evaluation.cli import main
from evaluation.coco import read_captions
from evaluation.critic import frechet_distance
from evaluation.eyes.clip import load_clip, load_hps, prepared
from evaluation.eyes.files import read_tensors
from evaluation.eyes.inception import Inception, InceptionEye, load_inception
from evaluation.gallery import read_pictures
from evaluation.metrics import Reference
from evaluation.quality import against_pictures, published_distance
from shared.errors import InvalidRequest, ModelUnavailable
from tests.tiny import build_tiny_model

pytest.importorskip("transformers")
pytest.importorskip("torchmetrics")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
START, END = "<|startoftext|>", "<|endoftext|>"
WIDTH, TEXT_WIDTH, COMMON, LAYERS, PATCH, SIDE, PLACES = 160, 128, 24, 2, 8, 32, 12


def pictures(count: int, side: int = SIDE) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8))


def write_tokenizer(folder: Path) -> int:
    """A tokenizer of single letters in CLIP's files; returns how many tokens it has."""
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), START, END]
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, "model_max_length": PLACES}))
    return len(tokens)


class Tower(nn.Module):
    """A transformer with open_clip's names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Layer(width, heads) for _ in range(LAYERS))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, WIDTH))
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Tower(WIDTH, WIDTH // 80)
        self.proj = nn.Parameter(torch.randn(WIDTH, COMMON))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """open_clip's model, written out: what a published checkpoint was saved from."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.visual = Visual()
        self.token_embedding = nn.Embedding(tokens, TEXT_WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(PLACES, TEXT_WIDTH))
        self.transformer = Tower(TEXT_WIDTH, TEXT_WIDTH // 64)
        self.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(torch.randn(TEXT_WIDTH, COMMON))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def scores(self, images: Tensor, ids: Tensor) -> Tensor:
        """Cosines; a caption is read at its largest id, where it ends."""
        mask = torch.full((PLACES, PLACES), -torch.inf).triu(1)
        x = self.ln_final(self.transformer(self.token_embedding(ids) + self.positional_embedding, mask))
        text = x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection
        return (F.normalize(self.visual(images), dim=-1) * F.normalize(text, dim=-1)).sum(-1)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel

    logging.getLogger("transformers").setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp("clip")
    tokens = write_tokenizer(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **sizes, "vocab_size": tokens, "max_position_embeddings": PLACES, "bos_token_id": tokens - 2,
            "eos_token_id": tokens - 1,
        },
        vision_config={**sizes, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=COMMON,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of pt_inception-2015-12-05-6726825d.pth: with classifier, uncounted."""
    torch.manual_seed(0)
    state = {name: value for name, value in Inception().state_dict().items() if "num_batches" not in name}
    state |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    file = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(state, file)
    return file


def test_clip_scores_are_those_of_transformers(clip_folder: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    eye, pixels, captions = load_clip(clip_folder), pictures(3, 40), ["a cat", "dogs", "x"]
    model = CLIPModel.from_pretrained(clip_folder).eval()
    ids = CLIPTokenizer.from_pretrained(clip_folder)(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=prepared(pixels, SIDE), **ids)
    expected = (out.image_embeds * out.text_embeds).sum(-1)
    assert eye.fits(pixels, captions) == pytest.approx(expected.tolist(), abs=1e-5)
    np.testing.assert_allclose(eye.look(pixels), out.image_embeds.double(), atol=1e-5)


def test_pictures_are_prepared_as_clip_prepares_them() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    images = [Image.fromarray(picture.numpy()) for picture in pictures(2, 50)]
    expected = CLIPImageProcessorPil(**size)(images, return_tensors="pt").pixel_values
    torch.testing.assert_close(prepared(pictures(2, 50), SIDE), expected, atol=1e-5, rtol=0)


def test_hps_scores_are_those_of_open_clip(clip_folder: Path, tmp_path: Path) -> None:
    tokens = len(json.loads((clip_folder / "vocab.json").read_text()))
    torch.manual_seed(1)
    model = OpenClip(tokens).eval()
    file = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": model.state_dict(), "epoch": 1}, file)
    eye, pixels, captions = load_hps(file, clip_folder), pictures(3), ["a cat", "dogs", "abcdefghijklmnop"]
    ids = torch.zeros(3, PLACES, dtype=torch.long)  # open_clip pads with zeros
    for row, told in enumerate(eye.tokenizer(captions, truncation=True, max_length=PLACES).input_ids):
        ids[row, : len(told)] = torch.tensor(told)
    with torch.no_grad():
        expected = 100 * model.scores(prepared(pixels, SIDE), ids)
    assert eye.fits(pixels, captions) == pytest.approx(expected.tolist(), abs=2e-4)
    assert eye.name == "hpsv2" and expected.std() > 1


def test_inception_reads_the_published_layout(inception_file: Path) -> None:
    model = load_inception(inception_file)
    state, read = model.state_dict(), read_tensors(inception_file)
    assert all(torch.equal(state[name], value) for name, value in read.items() if not name.startswith("fc."))
    eye = InceptionEye(model)
    found = eye.look(pictures(1))
    assert found.shape == (1, 2048) and found.std() > 0 and eye.fits(pictures(1), ["a"]) == []
    assert sum(value.numel() for value in model.parameters()) == 21_785_568  # without its classifier
    assert {"Mixed_5b.branch3x3dbl_3.bn.running_var", "Mixed_7c.branch3x3_2b.conv.weight"} <= read.keys()


def test_distances_are_those_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 8)), 1.5 * rng.normal(size=(50, 8)) + 0.3
    assert published_distance(a, b) == pytest.approx(frechet_distance(a, b), rel=1e-4)


def test_coco_captions_come_one_a_picture(tmp_path: Path) -> None:
    file = tmp_path / "captions_val2017.json"
    told = [(9, 2, " second "), (3, 2, "first\n"), (5, 1, "other")]
    annotations = [{"id": i, "image_id": picture, "caption": text} for i, picture, text in told]
    images = [{"id": picture, "file_name": f"{picture:012}.jpg"} for picture in (2, 1, 7)]
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    assert read_captions(file) == ["other", "first"] and read_captions(file, 1) == ["other"]
    for wrong in ("[]", "{", '{"images": [], "annotations": []}'):
        file.write_text(wrong)
        with pytest.raises(InvalidRequest, match="captions"):
            read_captions(file)


def test_wrong_files_are_refused(tmp_path: Path, clip_folder: Path) -> None:
    file = tmp_path / "weights.pt"
    with pytest.raises(ModelUnavailable, match=r"weights\.pt"):
        read_tensors(file)
    file.write_bytes(b"nothing")
    with pytest.raises(ModelUnavailable, match="no plain tensors"):
        read_tensors(file)
    torch.save({"some.weight": torch.zeros(1)}, file)
    with pytest.raises(ModelUnavailable, match="does not fit Inception"):
        load_inception(file)
    with pytest.raises(ModelUnavailable, match="no checkpoint of open_clip"):
        load_hps(file, clip_folder)
    with pytest.raises(ModelUnavailable, match=r"config\.json"):
        load_clip(tmp_path)


class Channels:
    """An eye of three features: the mean of each colour."""

    name = "channels"

    def look(self, pixels_BHW3: Tensor) -> np.ndarray:
        return pixels_BHW3.double().mean((1, 2)).numpy()

    def fits(self, pixels_BHW3: Tensor, captions: list[str]) -> list[float]:
        return []


def test_pictures_are_held_against_a_folder_of_real_ones(tmp_path: Path) -> None:
    for place, picture in enumerate(pictures(6, 40)):
        Image.fromarray(picture.numpy()[: 36 + place]).save(tmp_path / f"{place}.png")  # not square
    real = read_pictures(tmp_path, SIDE)
    assert real.shape == (6, SIDE, SIDE, 3)
    same = against_pictures(Channels(), real, Reference(Channels().look(real)))
    assert same["FID"].value == pytest.approx(0, abs=1e-6) and same["IPR F1"].value == 1
    other = against_pictures(Channels(), real // 2, Reference(Channels().look(real)))
    assert other["FID"].value > 1000 and other["IPR precision"].value == 0
    for wrong in (tmp_path / "nothing", tmp_path):
        (tmp_path / "0.png").write_bytes(b"no picture")
        with pytest.raises(InvalidRequest, match=r"no picture"):
            read_pictures(wrong, SIDE)


def test_quality_measures_every_row(
    tmp_path: Path, clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_tiny_model(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    flags = ["--model", str(model), "--prompts", str(tmp_path / "prompts.txt"), "--images", "4"]
    assert main(["quality", *flags, "--clip", str(clip_folder), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| row | CLIP score |"
    base, exact = lines[2].split("|"), lines[3].split("|")
    assert base[2] == exact[2] and "+0.0000" in base[2]  # the same images
    assert main(["quality", *flags, "--out", str(tmp_path / "out")]) == 1
    assert main(["quality", *flags, "--inception", "some.pth"]) == 1
    assert "--reference" in capsys.readouterr().err
