"""What interval features are worth to a cloud, measured on sequences with the device's own tokens.

Knows nothing of servers: the cloud and the device are run side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import InvalidRequest
from shared.models.families.emoji import EmojiModel
from shared.models.zoo import CloudModel, DevicePackage
from training.images import draw_images
from training.listening import Bridge, Effect, Pair
from training.standing_in import Keeping

FIRST_SEED = 20_000  # images that nothing was trained or calibrated on
_CHUNK = 8


@dataclass(frozen=True)
class Asked:
    """How many images, and of each the share of tokens that the device keeps by `gate`."""

    prompts: Sequence[str]
    images: int
    share: float
    gate: str


def features_effect(cloud: CloudModel, package: DevicePackage, asked: Asked) -> Effect:
    """KL and differing draws without and with features, behind the tokens the device kept.

    Raises InvalidRequest for a family without words, a share out of range and an unknown gate.
    """
    model, warp = cloud.model, package.calibration.warp
    if not isinstance(model, EmojiModel):
        raise InvalidRequest(f"features of family {model.family!r} are not measured", "allowed: emoji")
    keeping = Keeping(asked.gate, asked.share, asked.share)
    bridge = Bridge(package.model, model.config.dim).eval()
    bridge.weight.weight.data.copy_(cloud.bridge_DF)
    captions = tuple(itertools.islice(itertools.cycle(asked.prompts), asked.images))
    images = draw_images(model, captions, FIRST_SEED, warp, None)
    return Pair(model, package.model, warp, keeping).effect(bridge, images, asked.share, _CHUNK)
