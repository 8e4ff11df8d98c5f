"""The critic learns what it is shown, resumes to the bit, and fits its size."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shared.errors import InvalidPrompt, InvalidRequest, ModelUnavailable
from shared.models.checkpoint import WEIGHTS, digest
from shared.models.critic import Critic, contrastive_loss, load_critic, save_critic
from training.critic import CriticRun, CriticTrainer, pairs_of
from training.data import load_pictures
from training.presets import PRESETS, preset
from training.scenes import CANONICAL, Scenes

TINY = preset("tiny").critic


def test_a_tiny_critic_overfits_four_scenes_and_retrieves_them(artwork: Path) -> None:
    """Four scenes, each with its own caption: the loss goes to zero from ln 4."""
    scenes = Scenes(load_pictures(artwork), CANONICAL, 0)
    shown = [scenes.canonical(picture, "white") for picture in scenes.pictures]
    pixels, captions = pairs_of(shown)
    torch.manual_seed(0)
    critic = Critic(TINY, scenes.vocabulary())
    optimizer = torch.optim.AdamW(critic.parameters(), lr=3e-3)
    for _ in range(60):
        loss = contrastive_loss(critic.logits(pixels, captions))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 < math.log(4)
    assert critic.logits(pixels, captions).argmax(-1).tolist() == [0, 1, 2, 3]
    assert critic.logits(pixels, captions).argmax(0).tolist() == [0, 1, 2, 3]


def test_the_loss_is_infonce() -> None:
    assert contrastive_loss(torch.zeros(8, 8)) == pytest.approx(math.log(8))
    assert contrastive_loss(50 * torch.eye(3)) < 1e-6
    logits = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    rows, columns = (-logits.log_softmax(dim).diagonal().mean() for dim in (1, 0))
    assert contrastive_loss(logits) == pytest.approx(float((rows + columns) / 2))


def test_padding_changes_nothing_and_order_does() -> None:
    torch.manual_seed(0)
    critic = Critic(TINY, ["above", "cat", "dog"]).eval()
    alone = critic.embed_captions(["cat"])
    together = critic.embed_captions(["cat", "cat above dog"])
    torch.testing.assert_close(alone[0], together[0])
    assert (critic.embed_captions(["dog above cat"])[0] - together[1]).abs().max() > 1e-3
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(2))


def test_left_and_right_look_different() -> None:
    torch.manual_seed(0)
    pixels = torch.full((2, 128, 128, 3), 255, dtype=torch.uint8)
    pixels[0, 40:80, 10:50] = pixels[1, 40:80, 78:118] = 0
    left, right = Critic(TINY, ["cat"]).eval().embed_images(pixels)
    assert (left - right).abs().max() > 1e-2


def test_hostile_input_is_named() -> None:
    critic = Critic(TINY, ["cat"])
    with pytest.raises(InvalidPrompt, match="dog"):
        critic.embed_captions(["dog"])
    with pytest.raises(InvalidRequest, match="64"):
        critic.embed_images(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))


def test_a_critic_of_all_words_has_less_than_eight_megabytes(tmp_path: Path) -> None:
    words = [f"word{index:04d}" for index in range(2300)]
    for name in ("everyday", "all"):
        save_critic(tmp_path / name, Critic(PRESETS[name].critic, words, ["word0001"]))
        assert (tmp_path / name / WEIGHTS).stat().st_size < 8e6
        assert PRESETS[name].critic.words >= PRESETS[name].scenes.captions.words
    assert load_critic(tmp_path / "all").captions == ("word0001",)
    with pytest.raises(ModelUnavailable, match="critic folder"):
        load_critic(tmp_path)


def test_a_resumed_run_equals_an_uninterrupted_one(artwork: Path, tmp_path: Path) -> None:
    whole = CriticRun(artwork, tmp_path / "whole", preset="tiny", steps=4, batch=8, checkpoint_every=2)
    CriticTrainer(whole).train()
    run = replace(whole, out=tmp_path / "half")
    half = CriticTrainer(run)
    while half.learner.step < run.checkpoint_every:
        half.advance()
    half.save()
    torch.manual_seed(99)  # nothing may depend on global random state
    CriticTrainer(run).train()
    assert digest(tmp_path / "half/critic") == digest(tmp_path / "whole/critic")
    critic = load_critic(tmp_path / "half/critic")
    assert critic.captions and all(critic.vocabulary.known(text) for text in critic.captions)


def test_a_batch_says_each_caption_once(artwork: Path) -> None:
    scenes = Scenes(load_pictures(artwork), preset("tiny").scenes, 0)
    pixels, captions = pairs_of([scenes[index % 8] for index in range(24)])
    assert len(pixels) == len(captions) == len(set(captions)) <= 8 and "" not in captions
