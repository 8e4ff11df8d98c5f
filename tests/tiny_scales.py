"""A complete model by scales from seeded random weights: a VAR of two blocks, a device of one, four scales.

The device has the cloud's first block and head, so that both draw the same token here and there.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from shared.config import VQConfig
from shared.decoding.warp import Warp
from shared.models.by_scale import (
    SHARES,
    THRESHOLDS,
    Companion,
    cut_scales,
    save_scale_cloud,
    save_scale_device,
)
from shared.models.checkpoint import save_folder
from shared.models.families.var import VARConfig, VARModel
from shared.models.families.var_vae import ScaleVQ, ScaleVQConfig
from shared.models.generators import describe_scale_vq

SCALES, CODES, WIDTH = (1, 2, 3, 4), 64, 8
TOKENS = sum(side * side for side in SCALES)
LABELS = ("cat", "red house", "dog")
WARP = Warp(guidance=2.0, top_k=40, top_p=0.95)
_VQ = VQConfig(
    ch=8, ch_mult=(1, 1), z_channels=8, codebook_size=CODES, codebook_dim=WIDTH, encoder_res=1, decoder_res=1,
    attention=False, middle=False, norm_groups=4, unit_codes=False,
)  # fmt: skip


def build_tiny_scales(folder: Path, seed: int = 0) -> Path:
    """Write `cloud/`, `device/` with thresholds of the gate "margin", and `vae/`; return the folder."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        cloud = _model(2)
        digest = save_scale_cloud(folder / "cloud", cloud, LABELS)
        device = cut_scales(cloud, 1, Companion(digest))
        save_scale_device(folder / "device", device, LABELS)
        maps = ScaleVQConfig(SCALES, filters=2)
        weights = ScaleVQ(_VQ, maps).state_dict()
        save_folder(folder / "vae", describe_scale_vq(_VQ, maps), weights, torch.float32)
    evenly = [2.0 * (share / SHARES - 1) for share in range(SHARES + 1)]
    (folder / "device" / THRESHOLDS).write_text(json.dumps({"margin": [evenly] * len(SCALES)}))
    return folder


def _shape(depth: int) -> VARConfig:
    return VARConfig(
        depth=depth, dim=32, heads=2, classes=len(LABELS), vocab_size=CODES, code_dim=WIDTH, scales=SCALES,
        hidden=64,
    )  # fmt: skip


def _model(depth: int) -> VARModel:
    """Weights large enough that class, maps and place all move the logits."""
    model = VARModel(_shape(depth)).eval()
    for name, value in model.named_parameters():
        if value.ndim > 1 and not name.endswith("scale_mul_1H11"):
            nn.init.normal_(value, std=0.2 if name.startswith("head.") else 0.5)
    return model
