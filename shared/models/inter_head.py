"""The device model: a small transformer, its Inter-Heads and phi. Knows nothing of gates or of the wire.

Inter-Head (eq. 3): centre c = W_c h, radius r = softplus(W_r h) clamped to r_max; the logit interval is [c -
r, c + r]. Feature (eq. 5): f = phi([h ; s]) with s the compressed interval of
`shared.decoding.intervals.summarise`. Of several heads the first has the transformer's output layer as W_c.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.config import DeviceConfig
from shared.decoding.heads import check_combination, combine_centres, combine_radii
from shared.decoding.intervals import SUMMARY_WIDTH, inter_fuse, summarise
from shared.decoding.warp import guide
from shared.errors import InvalidRequest
from shared.models.family import ImageModel

MAX_HEADS = 16


class InterHead(nn.Module):
    """The radius half of the head; the centre half is the transformer's own output layer."""

    def __init__(self, dim: int, vocab_size: int, radius_max: float) -> None:
        super().__init__()
        self.radius_max = radius_max
        self.radius = nn.Linear(dim, vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> radii [..., V] in [0, r_max], fp32 (eq. 3)."""
        return F.softplus(self.radius(hidden).float()).clamp(max=self.radius_max)


class WholeInterHead(InterHead):
    """An Inter-Head with a centre half of its own: every one but the first."""

    def __init__(self, dim: int, vocab_size: int, radius_max: float) -> None:
        super().__init__(dim, vocab_size, radius_max)
        self.centre = nn.Linear(dim, vocab_size, bias=False)


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
    """`base` and the Inter-Heads give centres and radii, `phi` makes features. It needs nothing from the
    cloud. Raises InvalidRequest for a number or combination of heads that is not allowed.

    Shapes: R guidance rows, H heads; T positions may be several dimensions.
    """

    def __init__(self, base: ImageModel, config: DeviceConfig) -> None:
        super().__init__()
        if not 1 <= config.heads <= MAX_HEADS:
            raise InvalidRequest(f"{config.heads} heads are not allowed", f"allowed: 1 to {MAX_HEADS}")
        check_combination(config.combine)
        self.config, self.base = config, base
        sizes = base.config.dim, base.config.vocab_size, config.radius_max
        self.inter_head = InterHead(*sizes)
        self.other_heads = nn.ModuleList(WholeInterHead(*sizes) for _ in range(config.heads - 1))
        self.phi = Phi(base.config.dim, config.feature_width)

    def centres(self, hidden: Tensor) -> Tensor:
        """Logits of every head, one guidance row: [..., D] -> fp32 [H, ..., V]."""
        others: list[Tensor] = [head.centre(hidden).float() for head in self.whole_heads]
        return torch.stack([self.base.gpt.logits(hidden), *others])

    def radii(self, hidden: Tensor) -> Tensor:
        """Radii of every head: [..., D] -> fp32 [H, ..., V]."""
        return torch.stack([head(hidden) for head in (self.inter_head, *self.other_heads)])

    @property
    def whole_heads(self) -> list[WholeInterHead]:
        """All heads but the first."""
        return [head for head in self.other_heads if isinstance(head, WholeInterHead)]

    def guided_centres(self, hidden_RTD: Tensor, guidance: float) -> Tensor:
        """Guided logits of every head from one or two guidance rows: fp32 [H, T, V]."""
        logits_HRTV = self.centres(hidden_RTD)
        if logits_HRTV.shape[1] == 1:
            return logits_HRTV[:, 0]
        return guide(logits_HRTV[:, 0], logits_HRTV[:, 1], guidance)

    def centre(self, hidden_RTD: Tensor, guidance: float) -> Tensor:
        """The centre of the combined interval, a guided logit: [R, T, D] -> fp32 [T, V] (SPEC section 2)."""
        return combine_centres(self.config.combine, self.guided_centres(hidden_RTD, guidance))

    def radius(self, hidden_TD: Tensor) -> Tensor:
        """The radius of the combined interval, of the conditional row: [T, D] -> fp32 [T, V]."""
        radii_HTV = self.radii(hidden_TD)
        if len(radii_HTV) == 1:
            return radii_HTV[0]
        return combine_radii(self.config.combine, self.centres(hidden_TD), radii_HTV)

    def feature(self, hidden_TD: Tensor, centre_TV: Tensor, radius_TV: Tensor, log_q_TV: Tensor) -> Tensor:
        """Interval features [T, d_f] of tokens the device keeps (eq. 5)."""
        feature_TF: Tensor = self.phi(hidden_TD, summarise(inter_fuse(centre_TV, radius_TV), log_q_TV))
        return feature_TF


def quantise_features(feature_TF: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with one fp16 scale per row: codes int8 [T, d_f], scale fp16 [T]."""
    scale_T = (feature_TF.abs().amax(-1) / 127).clamp(min=1e-6).half()
    codes = (feature_TF / scale_T.float()[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scale_T
