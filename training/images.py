"""Images the cloud draws by itself, and how device and cloud see them. Knows no gates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from shared.decoding.warp import Warp, guide, warp_logits
from shared.models.family import ImageModel
from shared.models.inter_head import DeviceModel
from training.cut import forced_rows
from training.drawn import Sequences, draw, save_whole


@torch.no_grad()
def device_interval(device: DeviceModel, prompt: str, tokens_T: Tensor, warp: Warp) -> tuple[Tensor, Tensor]:
    """Guided centres and radii [T, V] on a known image, for a device of any family."""
    hidden_2TD = forced_rows(device.base, prompt, tokens_T)
    one_row = device.config.distilled_guidance is not None or warp.guidance == 1.0
    rows_RTD = hidden_2TD[:1] if one_row else hidden_2TD
    return device.centre(rows_RTD, warp.guidance), device.radius(hidden_2TD[0])


@torch.no_grad()
def cloud_log_p(
    cloud: ImageModel, prompt: str, tokens_T: Tensor, warp: Warp, extra_TD: Tensor | None = None
) -> Tensor:
    """The cloud's guided log p [T, V] on a known image; `extra_TD` is what kept tokens tell it (eq. 6)."""
    cond_TV, uncond_TV = cloud.gpt.logits(forced_rows(cloud, prompt, tokens_T, extra_TD))
    return warp_logits(guide(cond_TV, uncond_TV, warp.guidance), warp)


def draw_images(
    cloud: ImageModel, captions: Sequence[str], first_seed: int, warp: Warp, file: Path | None
) -> Sequences:
    """One image per caption, completed as by devices, with the keyed noise, seeds counting up from the first.

    The tokens are kept in `file` for the next time; None: nowhere.
    """
    seeds = tuple(range(first_seed, first_seed + len(captions)))
    captions = tuple(map(cloud.complete, captions, seeds))
    if file is not None and file.exists():
        return Sequences(captions, load_file(file)["tokens"].long(), seeds)
    tokens_NT = draw(cloud, captions, seeds, warp)
    if file is not None:
        save_whole({"tokens": tokens_NT}, file)
    return Sequences(captions, tokens_NT.long(), seeds)
