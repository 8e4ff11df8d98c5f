"""Images the cloud draws by itself, and how device and cloud see them. Knows no gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.decoding.warp import Warp, guide, warp_logits
from shared.models.family import ImageModel
from shared.models.inter_head import DeviceModel
from training.base import sample
from training.cut import forced_rows

IMAGES_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Images:
    """Captions, seeds, tokens [N, T]."""

    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    tokens_NT: Tensor

    def part(self, first: int, end: int) -> Images:
        """Images first .. end - 1."""
        return Images(self.captions[first:end], self.seeds[first:end], self.tokens_NT[first:end])


@torch.no_grad()
def device_interval(device: DeviceModel, prompt: str, tokens_T: Tensor, warp: Warp) -> tuple[Tensor, Tensor]:
    """Guided centres and radii [T, V] on a known image, for a device of any family."""
    hidden_2TD = forced_rows(device.base, prompt, tokens_T)
    logits_2TV = device.base.gpt.logits(hidden_2TD)
    one_row = device.config.distilled_guidance is not None or warp.guidance == 1.0
    centre_TV = logits_2TV[0] if one_row else guide(logits_2TV[0], logits_2TV[1], warp.guidance)
    return centre_TV, device.inter_head(hidden_2TD[0])


@torch.no_grad()
def cloud_log_p(cloud: ImageModel, prompt: str, tokens_T: Tensor, warp: Warp) -> Tensor:
    """The cloud's guided log p [T, V] on a known image."""
    cond_TV, uncond_TV = cloud.gpt.logits(forced_rows(cloud, prompt, tokens_T))
    return warp_logits(guide(cond_TV, uncond_TV, warp.guidance), warp)


def draw_images(
    cloud: ImageModel, captions: Sequence[str], first_seed: int, warp: Warp, file: Path | None
) -> Images:
    """One image per caption with the keyed noise, seeds counting up from `first_seed`.

    The tokens are kept in `file` for the next time; None: nowhere.
    """
    seeds = tuple(range(first_seed, first_seed + len(captions)))
    if file is not None and file.exists():
        return Images(tuple(captions), seeds, load_file(file)["tokens"].long())
    chunks = [slice(start, start + IMAGES_AT_ONCE) for start in range(0, len(captions), IMAGES_AT_ONCE)]
    tokens_NT = torch.cat([sample(cloud, captions[chunk], seeds[chunk], warp) for chunk in chunks])
    if file is not None:
        save_file({"tokens": tokens_NT.to(torch.int32)}, file)
    return Images(tuple(captions), seeds, tokens_NT)
