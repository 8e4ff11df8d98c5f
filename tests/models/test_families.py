"""What each family makes of a prompt, and what it says when a package or a folder is missing."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from shared.errors import InvalidPrompt, ModelUnavailable
from shared.models import caption
from shared.models.families import build
from shared.models.families.chameleon import ChameleonModel, Marks
from shared.models.families.janus import JanusModel
from shared.models.families.janus import Marks as JanusMarks
from shared.models.families.llamagen import LlamaGenModel
from shared.models.t5 import T5Captions
from shared.models.tokenizer import TOKENIZER
from tests.published import CHAMELEON, CLASSES, LLAMAGEN, VOCABULARY
from tests.published_janus import JANUS

MARKS = Marks(begin=0, turn=22, image=21)


def chameleon(home: Path) -> ChameleonModel:
    torch.manual_seed(0)
    return ChameleonModel(CHAMELEON, MARKS, home)


def test_unknown_families_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"'painter'.*chameleon.*emoji.*janus.*llamagen"):
        build({"family": "painter"}, tmp_path)


def test_descriptions_round_trip(tmp_path: Path) -> None:
    janus = JanusModel(JANUS, JanusMarks(begin=8, pad=10, image=13), tmp_path)
    captioned, classes = LlamaGenModel(LLAMAGEN, tmp_path), LlamaGenModel(CLASSES, tmp_path)
    for model in (captioned, classes, chameleon(tmp_path), janus):
        described = json.loads(json.dumps(model.describe()))
        again = build(described, tmp_path)
        assert type(again) is type(model) and again.config == model.config and again.warp == model.warp
        smaller = model.with_layers(1)
        assert (smaller.config.n_layer, smaller.describe()["transformer"]["n_layer"]) == (1, 1)
        assert smaller.describe().keys() == described.keys()
        assert model.unknown_words("anything at all") == []


def test_a_class_is_a_number(tmp_path: Path) -> None:
    model = LlamaGenModel(CLASSES, tmp_path)
    rows = model.prompt_rows(" 3 ")
    table = model.gpt.cls_embedding.state_dict()["embedding_table.weight"]
    assert torch.equal(rows[:, 0], table[[3, 5]])
    for prompt in ("5", "-1", "cat", "", "1.0", "\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT ONE}"):
        with pytest.raises(InvalidPrompt, match="allowed: 0 to 4"):
            model.check_prompt(prompt)


def test_captions_are_right_aligned_with_the_last_unguided_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.randn(4, LLAMAGEN.caption_dim)

    def four(captions: T5Captions, prompt: str) -> Tensor:
        return features

    monkeypatch.setattr(T5Captions, "features", four)
    model = LlamaGenModel(LLAMAGEN, tmp_path)
    rows = model.prompt_rows("a cat")
    unguided = model.gpt.cls_embedding.state_dict()["uncond_embedding"]
    torch.testing.assert_close(rows[0], model.gpt.embed_caption(features))
    torch.testing.assert_close(rows[1], model.gpt.embed_caption(unguided[-4:]))
    assert model.starts(4) == (LLAMAGEN.prefix_len - 4,) * 2
    with pytest.raises(InvalidPrompt, match="empty"):
        model.prompt_rows(" ")


def test_the_unguided_row_of_a_chameleon_has_two_tokens(tmp_path: Path) -> None:
    model = chameleon(tmp_path)
    rows = model.rows([0, 24, 25, 22, 21])
    table = model.gpt.tok_embeddings.weight
    assert torch.equal(rows[0], table[[0, 24, 25, 22, 21]])
    assert torch.equal(rows[1, 3:], table[[0, 21]]) and not rows[1, :3].any()
    assert model.starts(5) == (CHAMELEON.prefix_len - 5, CHAMELEON.prefix_len - 2)
    with pytest.raises(InvalidPrompt, match=r"13 tokens.*up to 12"):
        model.rows([0] * 13)


def test_the_unguided_row_of_a_janus_is_padded_between_its_ends(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = JanusModel(JANUS, JanusMarks(begin=8, pad=10, image=13), tmp_path)
    rows = model.rows([8, 11, 5, 6, 0, 13])
    table = model.gpt.tok_embeddings.weight
    assert torch.equal(rows[0], table[[8, 11, 5, 6, 0, 13]])
    assert torch.equal(rows[1], table[[8, 10, 10, 10, 10, 13]])
    assert model.starts(6) == (JANUS.prefix_len - 6,) * 2  # upstream masks no pad
    with pytest.raises(InvalidPrompt, match=r"21 tokens.*up to 20"):
        model.rows([0] * 21)


def test_image_codes_of_a_janus_have_a_table_and_a_head_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    gpt = JanusModel(JANUS, JanusMarks(begin=8, pad=10, image=13), tmp_path).gpt
    ids = torch.tensor([[0, 3, 15]])
    wide = torch.nn.functional.gelu(gpt.code_embeddings.lift.fc1(gpt.code_embeddings.table.weight[ids]))
    torch.testing.assert_close(gpt.embed_tokens(ids, torch.arange(3)), gpt.code_embeddings.lift.fc2(wide))
    hidden = torch.randn(2, JANUS.dim)
    assert gpt.logits(hidden).shape == (2, JANUS.vocab_size)
    assert gpt.embed_text(torch.tensor([JANUS.token_rows - 1])).shape == (1, JANUS.dim)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelUnavailable, match=f"google/flan-t5-xl.*{tmp_path / 't5'}"):
        LlamaGenModel(LLAMAGEN, tmp_path).prompt_rows("a cat")
    with pytest.raises(ModelUnavailable, match=f"{tmp_path / 'tokenizer'}.*ciar-train convert"):
        chameleon(tmp_path).prompt_rows("a cat")

    def absent(name: str) -> ModuleType:
        raise ImportError(f"no module named {name}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ModelUnavailable, match=r"package ftfy.*pip install 'ciar\[llamagen\]'"):
        caption.clean("a cat")
    (tmp_path / TOKENIZER).parent.mkdir()
    (tmp_path / TOKENIZER).write_text("{}")
    with pytest.raises(ModelUnavailable, match=r"package tokenizers.*pip install 'ciar\[chameleon\]'"):
        chameleon(tmp_path).prompt_rows("a cat")


def test_the_tokenizer_of_the_folder_is_used(tmp_path: Path) -> None:
    file = tmp_path / TOKENIZER
    file.parent.mkdir()
    file.write_text(
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": VOCABULARY, "merges": []}})
    )
    model = chameleon(tmp_path)
    assert model.prompt_ids("ab e") == [0, 24, 25, 29, 28, 22, 21]
    assert torch.equal(model.prompt_rows("ab e"), model.rows([0, 24, 25, 29, 28, 22, 21]))


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  A Cat on a MAT. ", "a cat on a mat."),
        ("see https://example.com/a and www.example.org today", "see and today"),
        (
            "<b>bold</b> &amp; \N{LEFT DOUBLE QUOTATION MARK}quoted\N{RIGHT DOUBLE QUOTATION MARK}",
            'bold "quoted"',
        ),
        ("one_two_three_four_five picture.jpg 640x480", "one two three four five"),
        ("\u732b a cat 1234567 ab1234 @nick", "a cat"),
        ("'a dog,a cat'", "a dog, a cat"),
        ("free shipping a dash \N{EM DASH} here", "a dash - here"),
    ],
)
def test_captions_are_cleaned(text: str, cleaned: str) -> None:
    assert caption.clean_twice(text) == cleaned
