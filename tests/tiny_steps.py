"""A complete model by steps from seeded random weights: a DiT of two blocks, a device of one, an
autoencoder of one level.

The device's output layer is no zero here, so that it says something of its own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from shared.models.by_step import BudgetTable, save_step_cloud, save_step_device, write_tables
from shared.models.families.dit import DiTConfig, DiTModel, position_table
from shared.models.families.dit_device import StepCompanion, StepDevice, cut_steps
from tests.tiny_masked import save_tiny_kl

LABELS = ("cat", "red house", "dog")
SIDE, CHANNELS, FEATURES = 4, 4, 6
STEPS, SPACING = 10, "ddim10"
CONFIG = DiTConfig(
    depth=2, dim=32, heads=2, hidden=64, patch=2, channels=CHANNELS, side=SIDE, classes=len(LABELS),
    learned_spread=False, guided=CHANNELS,
)  # fmt: skip


def build_tiny_steps(folder: Path, seed: int = 0, *, spread: bool = False, trained: bool = True) -> Path:
    """Write `cloud/`, `device/` with a table of the gate "radius", and `vae/`; return the folder.

    `trained` devices add a little of their own to what the cloud said; others repeat it.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        cloud = _cloud(replace(CONFIG, learned_spread=spread))
        digest = save_step_cloud(folder / "cloud", cloud, LABELS)
        device = cut_steps(cloud, 1, StepCompanion(digest, FEATURES))
        if trained:
            _as_if_trained(device)
        save_step_device(folder / "device", device, 0.1 * torch.randn(CONFIG.dim, FEATURES), LABELS)
        save_tiny_kl(folder / "vae", CHANNELS)
    table = BudgetTable(SPACING, "ddim", 2.0, 12, 3, (0.0, 0.05, 0.5), (1.0, 0.5, 0.3))
    write_tables(folder / "device", {"radius": [table]})
    return folder


def _cloud(config: DiTConfig) -> DiTModel:
    """Weights large enough that class, step and latent all move the output."""
    model = DiTModel(config).eval()
    for value in model.parameters():
        if value.ndim > 1:
            nn.init.normal_(value, std=0.15)
    model.pos_embed.copy_(position_table(config.dim, config.side // config.patch)[None])
    return model


def _as_if_trained(device: StepDevice) -> None:
    nn.init.normal_(device.base.final_layer.linear.weight, std=0.05)
    nn.init.normal_(device.inter_head.radius.weight, std=0.2)
    nn.init.normal_(device.said.proj.weight, std=0.1)
