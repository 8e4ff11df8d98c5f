"""A cloud that hears interval features of the device's tokens, and what that is worth. Knows no training.

phi is on the device's side (eq. 5), W on the cloud's (eq. 6). Features are rounded to int8, as they travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.decoding.warp import Warp, guide, warp_logits
from shared.models.families.emoji import EmojiModel
from shared.models.inter_head import DeviceModel, quantise_features
from training.drawn import Sequences
from training.engine import Engine
from training.forcing import embedded_hidden, guidance_rows
from training.standing_in import Keeping, Replayed, replay
from training.teacher import teacher_probabilities


class Bridge(nn.Module):
    """phi and W; W starts at zero, so an untrained bridge changes nothing."""

    def __init__(self, device: DeviceModel, cloud_width: int) -> None:
        super().__init__()
        self.phi = device.phi
        self.weight = nn.Linear(device.config.feature_width, cloud_width, bias=False)
        nn.init.zeros_(self.weight.weight)

    def forward(self, replayed: Replayed) -> Tensor:
        """What is added to the cloud's embeddings, zero where nothing was kept: [B, T, D]."""
        kept = replayed.kept_BT
        feature_NF = self.phi(replayed.hidden_BTD[kept], replayed.summary_BTS[kept])
        added = replayed.hidden_BTD.new_zeros(*kept.shape, self.weight.out_features)
        added[kept] = self.weight(rounded(feature_NF))
        return added


def rounded(feature_NF: Tensor) -> Tensor:
    """Features as the cloud reads them, int8 times a scale; gradients pass as if nothing was rounded."""
    codes, scale_N = quantise_features(feature_NF.detach())
    return feature_NF + (codes.float() * scale_N.float()[:, None] - feature_NF).detach()


def cloud_logits(
    cloud: EmojiModel, captions: Sequence[str], replayed: Replayed, added_BTD: Tensor | None, guidance: float
) -> Tensor:
    """The cloud's guided logits at every place of sequences with the device's tokens: fp32 [B, T, V].

    Both guidance rows hear of the features, as in the cloud server.
    """
    tokens_BT = replayed.tokens_BT[:, :-1]
    x_BTD = cloud.gpt.embed_tokens(tokens_BT, torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT))
    if added_BTD is not None:
        x_BTD = x_BTD + added_BTD[:, :-1].to(x_BTD.dtype)
    prefix, starts = guidance_rows(cloud, captions, 2)
    cond, uncond = cloud.gpt.logits(embedded_hidden(cloud, prefix, starts, x_BTD.repeat(2, 1, 1))).chunk(2)
    return guide(cond, uncond, guidance)


def divergence(logits_BTV: Tensor, target_BTV: Tensor, heard_BT: Tensor) -> Tensor:
    """Mean KL(target || softmax) in nats over the places that a kept token stands before."""
    kl_BT = F.kl_div(logits_BTV.log_softmax(-1), target_BTV, reduction="none").sum(-1)
    return kl_BT[heard_BT].mean()


class Heard(NamedTuple):
    """Images as the device replayed them, and the cloud's distributions [B, T, V] of its own sequences."""

    captions: Sequence[str]
    own_BT: Tensor
    replayed: Replayed
    target_BTV: Tensor


class Effect(NamedTuple):
    """Of the places behind kept tokens: KL in nats to the cloud's own distribution, and the share of draws
    unlike its own token, without and with features."""

    kl_without: float
    kl_with: float
    differ_without: float
    differ_with: float


@dataclass(frozen=True)
class Pair:
    """A frozen cloud, its device and the warp both draw under."""

    cloud: EmojiModel
    device: DeviceModel
    warp: Warp
    keeping: Keeping
    engine: Engine = field(default_factory=Engine)

    @torch.no_grad()
    def hear(self, images: Sequences, picked: Sequence[int], shares: Sequence[float]) -> Heard:
        """Replay the picked images, of each of which the device keeps its share."""
        captions = [images.captions[row] for row in picked]
        own_BT = images.tokens_NT[list(picked)].to(self.engine.device)
        seeds = [images.seeds[row] for row in picked]
        with self.engine.here():
            replayed = replay(self.device, captions, own_BT, seeds, self.keeping, shares, self.warp)
        target = teacher_probabilities(self.cloud, captions, own_BT, self.warp.guidance, self.engine)
        return Heard(captions, own_BT, replayed, target)

    def effect(self, bridge: Bridge, images: Sequences, share: float, batch: int) -> Effect:
        """What features change on images of which the device keeps `share`: means over batches."""
        found = []
        for start in range(0, len(images), batch):
            picked = range(start, min(start + batch, len(images)))
            heard = self.hear(images, picked, [share] * len(picked))
            found.append(self._effect(bridge, heard))
        return Effect(*torch.tensor(found).mean(0).tolist())

    @torch.no_grad()
    def _effect(self, bridge: Bridge, heard: Heard) -> Effect:
        replayed, behind = heard.replayed, heard.replayed.heard_BT
        kl, differ = [], []
        for added in (None, bridge(replayed)):
            with self.engine.here():
                logits = cloud_logits(self.cloud, heard.captions, replayed, added, self.warp.guidance)
            kl.append(divergence(logits, heard.target_BTV, behind).item())
            drawn_BT = (warp_logits(logits, self.warp) + replayed.noise_BTV).argmax(-1)
            differ.append((drawn_BT != heard.own_BT)[behind].float().mean().item())
        return Effect(*kl, *differ)
