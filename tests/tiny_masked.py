"""A complete model of continuous tokens: the golden MAR of sixteen tokens of four numbers, whose head was
fitted a little, a device cut from it whose head was moved a little, and an autoencoder of one level.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from evaluation.parity.mar import load
from shared.models.by_mask import save_masked_cloud, save_masked_device
from shared.models.checkpoint import save_folder
from shared.models.families.mar import MARModel
from shared.models.generators import describe_kl
from shared.models.kl_vae import KLVAE, KLConfig

GOLDEN = Path(__file__).parent / "models" / "golden" / "mar"
TOKENS, WIDTH = 16, 4
LABELS = ("cat", "red house", "dog", "cow", "tree", "car", "sun", "fish", "bird", "star")


def build_tiny_masked(folder: Path, seed: int = 0, moved: float = 1e-3) -> Path:
    """Write `cloud/`, `device/` and `vae/`; return the folder. `moved` is how far the device's head is from
    the cloud's, as a share of its weights."""
    config = json.loads((GOLDEN / "golden.json").read_text())["config"]
    with TemporaryDirectory() as scratch:
        cloud = load(GOLDEN / "mar.safetensors", config, Path(scratch))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        digest = save_masked_cloud(folder / "cloud", cloud, LABELS)
        device = cut(cloud)
        for value in device.diffloss.parameters():
            value *= 1 + moved * torch.randn_like(value)
        save_masked_device(folder / "device", device, digest, LABELS)
        save_tiny_kl(folder / "vae", WIDTH)
    return folder


def save_tiny_kl(folder: Path, latent: int) -> None:
    """Write an autoencoder of latents of so many numbers, two pixels each."""
    shape = KLConfig(
        ch=32, ch_mult=(1, 1), z_channels=4, latent=latent, encoder_res=1, decoder_res=1, encoder_attention=()
    )
    save_folder(folder, describe_kl(shape), KLVAE(shape).state_dict(), torch.float32)


def cut(cloud: MARModel) -> MARModel:
    """The cloud with the first block of each of its towers alone."""
    towers = (replace(tower, depth=1) for tower in (cloud.config.encoder, cloud.config.decoder))
    encoder, decoder = towers
    device = MARModel(replace(cloud.config, encoder=encoder, decoder=decoder))
    known = cloud.state_dict()
    device.load_state_dict({name: known[name] for name in device.state_dict()})
    return device.eval()
