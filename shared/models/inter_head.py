"""The device model: a one-layer transformer, the Inter-Head and phi. Knows nothing of gates or of the wire.

Inter-Head (eq. 3): centre c = W_c h, radius r = softplus(W_r h) clamped to r_max; the logit interval is [c -
r, c + r]. Feature (eq. 5): f = phi([h ; s]) with s the compressed interval of
`shared.decoding.intervals.summarise`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.config import DeviceConfig
from shared.decoding.intervals import SUMMARY_WIDTH, inter_fuse, summarise
from shared.models.family import ImageModel


class InterHead(nn.Module):
    """The radius half of the head; the centre half is the transformer's own output layer."""

    def __init__(self, dim: int, vocab_size: int, radius_max: float) -> None:
        super().__init__()
        self.radius_max = radius_max
        self.radius = nn.Linear(dim, vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> radii [..., V] in [0, r_max], fp32 (eq. 3)."""
        return F.softplus(self.radius(hidden).float()).clamp(max=self.radius_max)


class Phi(nn.Module):
    """f = phi([h ; s]): what the cloud is told about a token that the device kept (eq. 5)."""

    def __init__(self, dim: int, feature_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim + SUMMARY_WIDTH, 2 * feature_width)
        self.fc2 = nn.Linear(2 * feature_width, feature_width)

    def forward(self, hidden_TD: Tensor, summary_TS: Tensor) -> Tensor:
        """[T, D], [T, S] -> [T, d_f]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(torch.cat([hidden_TD, summary_TS], dim=-1))))
        return out


class DeviceModel(nn.Module):
    """`base` draws centres, `inter_head` gives radii, `phi` makes features. It needs nothing from the
    cloud."""

    def __init__(self, base: ImageModel, config: DeviceConfig) -> None:
        super().__init__()
        self.config, self.base = config, base
        self.inter_head = InterHead(base.config.dim, base.config.vocab_size, config.radius_max)
        self.phi = Phi(base.config.dim, config.feature_width)

    def feature(self, hidden_TD: Tensor, centre_TV: Tensor, radius_TV: Tensor, log_q_TV: Tensor) -> Tensor:
        """Interval features [T, d_f] of tokens the device keeps (eq. 5)."""
        feature_TF: Tensor = self.phi(hidden_TD, summarise(inter_fuse(centre_TV, radius_TV), log_q_TV))
        return feature_TF


def quantise_features(feature_TF: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with one fp16 scale per row: codes int8 [T, d_f], scale fp16 [T]."""
    scale_T = (feature_TF.abs().amax(-1) / 127).clamp(min=1e-6).half()
    codes = (feature_TF / scale_T.float()[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scale_T
