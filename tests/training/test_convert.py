"""Official files of every layout become the same model; what does not fit is refused by name."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from shared.config import TransformerConfig
from shared.errors import CiarError, InvalidRequest, ModelMismatch, ModelUnavailable
from shared.models.checkpoint import load_model, load_vq
from shared.models.families.chameleon import ChameleonModel
from shared.models.families.janus import JanusModel
from shared.models.families.llamagen import LlamaGenModel
from shared.models.family import ImageModel
from shared.models.kv_cache import plain_window
from tests import published
from tests.published import CHAMELEON, HEADS, LLAMAGEN, PIXELS, State
from tests.published_janus import JANUS, janus_state, write_janus
from training import cli
from training.conversion import Conversion
from training.convert import convert, read_transformer
from training.sources import read_tensors

torch.set_num_threads(1)
NESTINGS: dict[str, Callable[[State], Any]] = {
    "model": lambda state: {"model": state},
    "deepspeed": lambda state: {"module": state, "step": 3},
    "lightning": lambda state: {"state_dict": state},
    "flat": lambda state: state,
    "training": lambda state: {
        "model": state, "optimizer": {"lr": 1e-4}, "steps": 7, "args": argparse.Namespace(lr=1e-4, name="t2i")
    },
    "rotary": lambda state: {"model": {**state, "freqs_cis": torch.zeros(3)}},
    "llama": lambda state: published.llama_names(published.split(state, LLAMAGEN)),
}  # fmt: skip


def llamagen(tmp_path: Path, content: object, **changes: Any) -> tuple[str, str]:
    """Convert a pickle of this content together with a VQ that fits."""
    torch.save(content, tmp_path / "gpt.pt")
    torch.save({"model": published.vq_state()}, tmp_path / "vq.pt")
    order = Conversion(tmp_path / "gpt.pt", tmp_path / "out", "llamagen", PIXELS, tmp_path / "vq.pt", HEADS)
    return convert(replace(order, **changes))


@torch.no_grad()
def hidden(model: ImageModel, ids: Tensor) -> Tensor:
    """Hidden states of table ids at the first positions of the sequence."""
    window = plain_window(torch.arange(ids.shape[1])[None], torch.zeros(1, dtype=torch.int64))
    out: Tensor = model.gpt(model.gpt.embed_text(ids), window)
    return model.gpt.logits(out)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_every_nesting_of_llamagen_is_the_same_model(tmp_path: Path, nesting: str) -> None:
    state = published.gpt_state(LLAMAGEN)
    llamagen(tmp_path, NESTINGS[nesting](state))
    model = load_model(tmp_path / "out" / "cloud")
    assert isinstance(model, LlamaGenModel)
    assert model.config == replace(LLAMAGEN, n_kv_head=HEADS)
    assert all(torch.equal(value, state[name]) for name, value in model.gpt.state_dict().items())
    assert load_vq(tmp_path / "out" / "vq").config == published.VQ


@pytest.mark.parametrize(
    "shape", [published.CLASSES, replace(LLAMAGEN, n_kv_head=2), replace(LLAMAGEN, n_layer=12)]
)
def test_shapes_are_read_off_the_tensors(tmp_path: Path, shape: TransformerConfig) -> None:
    llamagen(tmp_path, published.gpt_state(shape))
    model = load_model(tmp_path / "out" / "cloud")
    assert replace(model.config, n_kv_head=shape.n_kv_head) == shape
    assert model.config.kv_heads == shape.kv_heads


def test_weights_keep_their_precision(tmp_path: Path) -> None:
    state = {name: value.bfloat16() for name, value in published.gpt_state(LLAMAGEN).items()}
    llamagen(tmp_path, {"model": state})
    saved = load_file(tmp_path / "out" / "cloud" / "model.safetensors")
    assert all(torch.equal(saved[f"gpt.{name}"], value) for name, value in state.items())


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
@pytest.mark.parametrize("name", ["layers.1.attention.wo.weight", "norm.weight"])
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, damage: str, name: str) -> None:
    state = published.gpt_state(LLAMAGEN)
    if damage == "missing":
        del state[name]
    elif damage == "extra":
        state[name := f"{name}.scale"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(5)
    with pytest.raises(ModelUnavailable, match=name):
        llamagen(tmp_path, {"model": state})
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_converted_says_why(tmp_path: Path) -> None:
    state = published.gpt_state(LLAMAGEN)
    for changes, error, says in (
        ({"heads": None}, InvalidRequest, "width 32"),
        ({"vq": None}, ModelUnavailable, "--vq"),
        ({"pixels": PIXELS + 1}, InvalidRequest, "9 pixels"),
        ({"source": tmp_path / "nothing.pt"}, ModelUnavailable, "nothing.pt"),
        ({"source": tmp_path}, ModelUnavailable, "no weights in"),
        ({"family": "painter"}, InvalidRequest, "llamagen, chameleon, janus"),
    ):
        with pytest.raises(error, match=says):
            llamagen(tmp_path, state, **changes)
    with pytest.raises(ModelMismatch, match="24 codes, the VQ 16"):
        llamagen(tmp_path, published.gpt_state(replace(LLAMAGEN, vocab_size=24)))


class Bomb:
    """Something a pickle must not be allowed to make."""


@pytest.mark.parametrize("content", [{"model": Bomb()}, {"model": {"w": "text"}}, [1, 2], b"no pickle"])
def test_a_file_with_more_than_tensors_is_refused(tmp_path: Path, content: object) -> None:
    if isinstance(content, bytes):
        (tmp_path / "gpt.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "gpt.pt")
    with pytest.raises(ModelUnavailable, match=r"gpt\.pt"):
        read_tensors(tmp_path / "gpt.pt")


SHAPES = {
    "anole": CHAMELEON,
    "swin": replace(CHAMELEON, swin_norm=True),
    "all heads": replace(CHAMELEON, n_kv_head=HEADS),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_layout_of_chameleon_is_the_same_model(tmp_path: Path, shape: TransformerConfig) -> None:
    state = published.chameleon_state(shape)
    sources = {
        "heads": published.write_hf(tmp_path / "hf", state, shape),
        "one row": published.write_hf(tmp_path / "hf1", state, shape, norm_rows=1),
        "groups": published.write_hf(tmp_path / "hf2", state, shape, norm_rows=2),
        "fair": published.write_fair(tmp_path / "fair", state, shape),
        "fused": published.write_fair(tmp_path / "fused", state, shape, fused=True),
    }
    if not shape.swin_norm:  # nothing beside this file says so
        sources["bin"] = published.write_bin(tmp_path / "bin", state, shape)
    ids, logits = torch.randint(0, 30, (1, 20), generator=torch.Generator().manual_seed(0)), {}
    for name, source in sources.items():
        vq = sources["fair"] / "tokenizer" / "vqgan.ckpt" if name == "bin" else None
        convert(Conversion(source, tmp_path / name, "chameleon", PIXELS, vq, tokens=12))
        model = load_model(tmp_path / name / "cloud")
        assert isinstance(model, ChameleonModel)
        assert (model.marks.begin, model.marks.turn, model.marks.image) == (0, 22, 21)
        assert model.config.rope_pairs == ("halves" if name in ("heads", "one row", "groups") else "adjacent")
        logits[name] = hidden(model, ids)
        vq_model = load_vq(tmp_path / name / "vq")
        assert (vq_model.config.unit_codes, vq_model.config.pixel_shift) == (False, 127.5)
    reference = logits.pop("heads")
    assert reference.std() > 0.5
    for values in logits.values():
        torch.testing.assert_close(values, reference, atol=2e-5, rtol=0)


def test_shards_of_the_original_layout_are_joined(tmp_path: Path) -> None:
    """Two files with two heads each: the norms become a table of two rows, the rotary layout stays theirs."""
    shape = replace(CHAMELEON, q_norm_rows=2, k_norm_rows=2, swin_norm=True)
    state = published.chameleon_state(shape)
    ids = torch.randint(0, 30, (1, 20), generator=torch.Generator().manual_seed(0))
    logits = []
    for source in (
        published.write_hf(tmp_path / "hf", state, shape),
        published.write_shards(tmp_path / "two", state, shape),
    ):
        convert(Conversion(source, tmp_path / "out", "chameleon", PIXELS, tokens=12))
        model = load_model(tmp_path / "out" / "cloud")
        assert (model.config.q_norm_rows, model.config.k_norm_rows, model.config.swin_norm) == (2, 2, True)
        logits.append(hidden(model, ids))
    torch.testing.assert_close(logits[1], logits[0], atol=2e-5, rtol=0)


def test_shards_that_cannot_be_joined_are_refused(tmp_path: Path) -> None:
    shape = replace(CHAMELEON, q_norm_rows=2, k_norm_rows=2)
    source = published.write_shards(tmp_path / "two", published.chameleon_state(shape), shape)
    file = source / "models" / "7b" / "consolidated.01.pth"
    part = torch.load(file)
    torch.save({name: value for name, value in part.items() if name != "norm.weight"}, file)
    with pytest.raises(ModelUnavailable, match=r"uneven: \['norm.weight'\]"):
        read_transformer(source)
    for shard in sorted(file.parent.glob("consolidated.*")):
        torch.save({**part, "layers.0.attention.wqkv.weight": torch.zeros(2, 2)}, shard)
    with pytest.raises(ModelUnavailable, match="wqkv"):
        read_transformer(source)


def test_image_tokens_must_be_one_run_of_ids(tmp_path: Path) -> None:
    source = published.write_hf(tmp_path / "hf", published.chameleon_state())
    content = json.loads((source / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["IMGIMGAZ"], vocabulary["IMGIMGBZ"] = vocabulary["IMGIMGBZ"], vocabulary["IMGIMGAZ"]
    (source / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CiarError, match="one run of ids"):
        convert(Conversion(source, tmp_path / "out", "chameleon", PIXELS))


@pytest.mark.parametrize(
    ("layout", "kind"), [("official", "bin"), ("official", "safetensors"), ("hf", "safetensors")]
)
def test_every_layout_of_janus_is_the_same_model(tmp_path: Path, layout: str, kind: str) -> None:
    """What draws is taken, what reads pictures and writes text is left behind."""
    order = Conversion(
        write_janus(tmp_path / "in", layout, kind), tmp_path / "out", "janus", PIXELS, tokens=20
    )
    convert(order)
    model, state = load_model(tmp_path / "out" / "cloud"), published.gpt_state(JANUS)
    assert isinstance(model, JanusModel)
    assert model.config == JANUS
    assert (model.marks.begin, model.marks.pad, model.marks.image) == (8, 10, 13)
    assert model.prompt_ids(" a b ") == [8, 11, 5, 6, 0, 6, 1, 7, 7, 12, 5, 13]
    assert model.gpt.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.gpt.state_dict().items())
    vq, vq_state = load_vq(tmp_path / "out" / "vq"), published.vq_state()
    assert vq.config == replace(published.VQ, pixel_shift=127.5)
    assert all(torch.equal(value, vq_state[name]) for name, value in vq.state_dict().items())


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("gen_embed.weight", "code_embeddings.table.weight"),
        ("gen_aligner.layers.2.bias", "code_embeddings.lift.fc2.bias"),
        ("gen_head.vision_head.weight", "output.fc2.weight"),
        ("language_model.model.layers.2.mlp.up_proj.weight", "layers.2.feed_forward.w3.weight"),
        ("gen_vision_model.decoder.conv_out.bias", "decoder.conv_out.bias"),
    ],
)
def test_tensors_of_a_janus_that_do_not_fit_are_named(
    tmp_path: Path, damage: str, name: str, named: str
) -> None:
    state = janus_state()
    if damage == "missing":
        del state[name]
    elif damage == "extra":
        state[f"{name}.scale"] = torch.zeros(1)
        named = f"{named}.scale"
    else:
        state[name] = torch.zeros(5, 3, 2)
    source = write_janus(tmp_path / "in", state=state)
    with pytest.raises(CiarError, match=re.escape(named)):
        convert(Conversion(source, tmp_path / "out", "janus", PIXELS, tokens=20))
    assert not (tmp_path / "out").exists()


def test_what_is_no_janus_is_refused(tmp_path: Path) -> None:
    source = write_janus(tmp_path / "in", state=janus_state() | {"gen_aligner.layers.4.bias": torch.zeros(2)})
    order = Conversion(source, tmp_path / "out", "janus", PIXELS, tokens=20)
    with pytest.raises(ModelUnavailable, match=r"extra \['gen_aligner.layers.4.bias'\]"):
        convert(order)
    tokenizer = source / "tokenizer.json"
    content = tokenizer.read_text()
    tokenizer.write_text(content.replace("<begin_of_image>", "<begin_of_song>"))
    with pytest.raises(ModelUnavailable, match=r"no tokenizer of Janus.*<begin_of_image>"):
        convert(order)
    tokenizer.write_text(content.replace('"id": 13', '"id": 20'))
    with pytest.raises(ModelMismatch, match="ids up to 20, the transformer rows for 20"):
        convert(order)
    tokenizer.write_text(content)
    (source / "config.json").write_text('{"language_config": {"num_attention_heads": 5}}')
    with pytest.raises(InvalidRequest, match=r"5 heads.*width is 32"):
        convert(order)
    (source / "config.json").unlink()
    with pytest.raises(InvalidRequest, match=r"no config\.json.*how many heads"):
        convert(order)
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_digests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpt, vq = published.write_llamagen(tmp_path)
    flags = ["--family", "llamagen", "--vq", str(vq), "--pixels", str(PIXELS), "--heads", str(HEADS)]
    assert cli.main(["convert", str(gpt), str(tmp_path / "out"), *flags]) == 0
    assert f"{tmp_path / 'out'}: cloud " in capsys.readouterr().out
    assert cli.main(["convert", str(vq), str(tmp_path / "out2"), *flags]) == 1
    assert "missing" in capsys.readouterr().err
