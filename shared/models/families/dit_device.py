"""The small companion of a DiT: one block that predicts how the cloud's noise has changed since it was asked.

The change is added to where the line through the cloud's last two outputs leads, or to the last one where
there is no other, and the output layer begins as zero: an untrained device extrapolates. The Inter-Head's
radius says how far off the centre may be. Both are counted in how far the line has led: where it led nowhere
yet there is little to mend, and a device that is never quite right must not mend more. Beside the latent it
is shown that line and the cloud's last hidden state, projected. Without a cloud both are zero.

Shapes: B rows, C channels, H the side of the latent, N patches, D width, F features a patch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from shared.decoding.denoising import Guess
from shared.decoding.diffusion import STEPS
from shared.errors import InvalidRequest
from shared.models.families.dit import DiTConfig, DiTModel, PatchEmbedding, unpatched
from shared.models.inter_head import InterHead
from shared.models.vit import TimeEmbedding

RADIUS_AT_FIRST = -2.0  # what the softplus of an untrained radius is given
NOBODY = 2 * STEPS  # the step of an anchor that no cloud gave


@dataclass(frozen=True)
class StepCompanion:
    """What a device adds to a DiT: whose it is, features a patch that it wants, how far its radius goes."""

    cloud_digest: str
    features: int = 32
    radius_max: float = 4.0


@dataclass(frozen=True, eq=False)
class Anchor:
    """What the cloud said last: the original step [B], guided noise [B, C, H, W], features [B, N, F], the
    place of the variance where the model has one; and the noise a change is added to (None: the last)."""

    step_B: Tensor
    eps: Tensor
    features: Tensor
    spread: Tensor | None = None
    line: Tensor | None = None


class StepDevice(nn.Module):
    """A DiT of few blocks around the cloud's last output."""

    def __init__(self, config: DiTConfig, companion: StepCompanion) -> None:
        super().__init__()
        self.companion, self.base = companion, DiTModel(config)
        self.said = PatchEmbedding(config)
        self.seen = nn.Linear(companion.features, config.dim, bias=False)
        self.gap_embedder, self.guidance = TimeEmbedding(config.dim), nn.Linear(1, config.dim)
        self.inter_head = InterHead(config.dim, config.patch**2 * config.channels, companion.radius_max)

    @property
    def config(self) -> DiTConfig:
        """The shape of the latent and of the blocks."""
        return self.base.config

    def forward(
        self, x_BCHH: Tensor, step_B: Tensor, labels_B: Tensor, scale_B: Tensor, anchor: Anchor
    ) -> Guess:
        """Guided noise and radii of latents at original steps, in one row an image whatever the guidance."""
        base, config = self.base, self.config
        gap_B = (anchor.step_B - step_B).clamp(max=STEPS)
        c_BD = base.t_embedder(step_B) + base.y_embedder(labels_B) + self.gap_embedder(gap_B)
        c_BD = c_BD + self.guidance(scale_B[:, None])
        begun = anchor.eps if anchor.line is None else anchor.line
        x_BTD = base.x_embedder(x_BCHH) + base.pos_embed + self.said(begun) + self.seen(anchor.features)
        for block in base.blocks:
            x_BTD = block(x_BTD, c_BD)
        normed_BTD = base.final_layer.normed(x_BTD, c_BD)
        led_B = (begun - anchor.eps).square().mean((1, 2, 3), keepdim=True).sqrt()
        unit_B = torch.where(led_B > 0, led_B, 1.0)
        out = unpatched(base.final_layer.linear(normed_BTD).float(), config)
        change = unit_B * out[:, : config.channels]
        radius = unit_B * unpatched(self.inter_head(normed_BTD), config)
        spread = out[:, config.channels :] if config.learned_spread else None
        if spread is not None and anchor.spread is not None:
            spread = spread + anchor.spread
        return Guess(begun + change, radius, anchor.eps, spread)

    def nobody(self, rows: int) -> Anchor:
        """What a device without a cloud begins from."""
        config = self.config
        latent = torch.zeros(rows, config.channels, config.side, config.side)
        patches = (config.side // config.patch) ** 2
        features = torch.zeros(rows, patches, self.companion.features)
        spread = latent if config.learned_spread else None
        return Anchor(torch.full((rows,), NOBODY), latent, features, spread)


def cut_steps(cloud: DiTModel, layers: int, companion: StepCompanion) -> StepDevice:
    """The cloud's embeddings and first blocks, with an output layer of zeros. Raises InvalidRequest.

    Such a device extrapolates, whatever it is shown.
    """
    if not 1 <= layers <= cloud.config.depth:
        what = f"{layers} layers of {cloud.config.depth}"
        raise InvalidRequest(what, f"allowed: 1 to {cloud.config.depth}")
    device, known = StepDevice(replace(cloud.config, depth=layers), companion), cloud.state_dict()
    device.base.load_state_dict({name: known[name] for name in device.base.state_dict()})
    with torch.no_grad():
        for part in (device.base.final_layer.linear, device.said.proj, device.guidance):
            part.weight.zero_()
            assert part.bias is not None
            part.bias.zero_()
        device.inter_head.radius.weight.zero_()
        device.inter_head.radius.bias.fill_(RADIUS_AT_FIRST)
        last = device.gap_embedder.mlp[-1]
        assert isinstance(last, nn.Linear)
        last.weight.zero_()
        last.bias.zero_()
    return device
