"""The families this program can run: one file each, listed here by the name in `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import ModelUnavailable
from shared.models.families.chameleon import ChameleonModel
from shared.models.families.emoji import EmojiModel
from shared.models.families.janus import JanusModel
from shared.models.families.llamagen import LlamaGenModel
from shared.models.family import ImageModel

FAMILIES: Mapping[str, type[ImageModel]] = {
    kind.family: kind for kind in (EmojiModel, LlamaGenModel, ChameleonModel, JanusModel)
}


def build(config: dict[str, Any], home: Path) -> ImageModel:
    """The model a `config.json` describes, weights not loaded. Raises ModelUnavailable for an unknown
    family."""
    kind = FAMILIES.get(str(config.get("family")))
    if kind is None:
        name = config.get("family")
        raise ModelUnavailable(f"unknown model family {name!r}", f"allowed: {sorted(FAMILIES)}")
    return kind.build(config, home)
