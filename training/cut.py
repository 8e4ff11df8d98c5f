"""`ciar-train cut`: a device model from the first layers of any cloud, without training. Knows no pictures.

It takes the cloud's text, embeddings, first layers, last norm and head; radii start small and say nothing
yet. What it drafts is checked like any draft, so images of mode exact are the cloud's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from shared.config import DeviceConfig
from shared.decoding.calibration import Calibration
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest
from shared.models.checkpoint import WEIGHTS, digest, load_model, read_config, save_device
from shared.models.families import build
from shared.models.family import ImageModel
from shared.models.inter_head import DeviceModel
from shared.models.kv_cache import plain_window
from shared.models.zoo import CALIBRATION, write_calibration
from training.base import sample
from training.calibrate import Scores, fit, score_image

SPAN, PREFIX_RATE = 5, 0.06
HEAD_SPREAD = 0.3  # of a further head's random weights to those it starts from


@dataclass(frozen=True)
class Cut:
    """What to cut. Raises InvalidRequest for a number of layers the cloud does not have.

    model    model folder; its `device/` is written
    prompts  one image is drawn by the cloud for each, and the gates are calibrated on them; none: no gate is
    seed     of the first of these images
    """

    model: Path
    layers: int = 1
    prompts: tuple[str, ...] = ()
    seed: int = 0


def cut(order: Cut) -> str:
    """Write `device/` and return its digest. Raises ModelUnavailable where there is no cloud."""
    cloud_folder, folder = order.model / "cloud", order.model / "device"
    device = with_radii(first_layers(cloud_folder, order.layers), DeviceConfig(digest(cloud_folder)))
    written = save_device(folder, device)
    write_calibration(folder / CALIBRATION, calibrate(order, cloud_folder, device))
    return written


def first_layers(cloud: Path, layers: int) -> ImageModel:
    """The cloud model without its later layers; their weights are never read."""
    config = read_config(cloud, "cloud")
    with torch.device("meta"):
        whole = build(config, cloud.parent)
    _check_layers(whole, layers)
    base = whole.with_layers(layers)
    with safe_open(cloud / WEIGHTS, "pt") as file, torch.no_grad():
        for name, value in base.state_dict().items():
            value.copy_(file.get_tensor(name))
    return base.eval()


def _check_layers(cloud: ImageModel, layers: int) -> None:
    if not 0 < layers <= cloud.config.n_layer:
        raise InvalidRequest(f"the cloud has no {layers} layers", f"allowed: 1 to {cloud.config.n_layer}")


def with_radii(base: ImageModel, config: DeviceConfig) -> DeviceModel:
    """A device model around `base`; radii start small, and further centres near the first one."""
    device = DeviceModel(base, config)
    for head in (device.inter_head, *device.whole_heads):
        nn.init.normal_(head.radius.weight, std=0.01)
        nn.init.constant_(head.radius.bias, -2.0)
    output = base.gpt.output
    for whole in device.whole_heads:
        if not isinstance(output, nn.Linear):
            what = f"a model of family {base.family!r} takes one Inter-Head"
            why = "its head is no single matrix to begin others at"
            raise InvalidRequest(what, why, "leave --heads at 1")
        nn.init.normal_(whole.centre.weight, std=HEAD_SPREAD * output.weight.std().item())
        whole.centre.weight.data.add_(output.weight.detach())
    return device.eval()


def cut_device(cloud: ImageModel, layers: int, config: DeviceConfig) -> DeviceModel:
    """A device initialised from a loaded cloud's text, embeddings, first layers, norm and head.

    Raises InvalidRequest for a number of layers the cloud does not have.
    """
    _check_layers(cloud, layers)
    base, state = cloud.with_layers(layers), cloud.state_dict()
    base.load_state_dict({name: state[name] for name in base.state_dict()})
    return with_radii(base, config)


@torch.no_grad()
def calibrate(order: Cut, cloud_folder: Path, device: DeviceModel) -> Calibration:
    """Fit every gate on images the cloud draws under its family's own warp."""
    warp, owner = device.base.warp, device.config.cloud_digest
    if not order.prompts:
        return Calibration(owner, warp, SPAN, PREFIX_RATE, {})
    cloud = load_model(cloud_folder)
    seeds = range(order.seed, order.seed + len(order.prompts))
    whole = map(cloud.complete, order.prompts, seeds)
    scored = [_score(cloud, device, *each, warp) for each in zip(whole, seeds, strict=True)]
    names = scored[0][0]
    scores = {name: np.stack([image[name] for image, _ in scored]) for name in names}
    return fit(scores, np.stack([agree for _, agree in scored]), owner, warp, SPAN, PREFIX_RATE)


def _score(
    cloud: ImageModel, device: DeviceModel, prompt: str, seed: int, warp: Warp
) -> tuple[Scores, NDArray[np.bool_]]:
    tokens_T = sample(cloud, [prompt], [seed], warp)[0]
    hidden_2TD = forced_rows(device.base, prompt, tokens_T)
    centre_TV = device.centre(hidden_2TD, warp.guidance)
    return score_image(seed, centre_TV, device.radius(hidden_2TD[0]), tokens_T, warp)


def forced_rows(model: ImageModel, prompt: str, tokens_T: Tensor, extra_TD: Tensor | None = None) -> Tensor:
    """Hidden states [2, T, D] that judge every place of a known image: the prompt's row, the unguided one.

    extra_TD  is added to the embeddings of the tokens (eq. 6)
    """
    rows_2ND = model.prompt_rows(prompt)
    length, count = rows_2ND.shape[1], len(tokens_T) - 1
    first = model.config.prefix_len - length
    x_TD = model.gpt.embed_tokens(tokens_T[:-1], torch.arange(count))
    if extra_TD is not None:
        x_TD = x_TD + extra_TD[:-1]
    positions_2S = torch.arange(first, first + length + count).expand(2, -1)
    window = plain_window(positions_2S, torch.tensor(model.starts(length)))
    hidden_2SD: Tensor = model.gpt(torch.cat([rows_2ND, x_TD.expand(2, -1, -1)], 1), window)
    return hidden_2SD[:, length - 1 :]


def read_prompts(file: Path | None, images: int) -> tuple[str, ...]:
    """The first `images` lines of a file; none without one. Raises InvalidRequest where it is missing."""
    if file is None:
        return ()
    if not file.is_file():
        raise InvalidRequest(f"there is no file {file}", "it holds one prompt a line")
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line)[:images]
