"""CLIP and HPSv2: how well a picture fits its caption. Needs transformers, the extra `eval`.

CLIP (Radford et al. 2021) is read from a folder as transformers saves it: config.json, model.safetensors or
pytorch_model.bin, and the tokenizer's files. HPSv2 (Wu et al. 2023) is a CLIP ViT-H/14 in a checkpoint of
open_clip; its tokenizer is CLIP's own. Pictures are square, so resizing and cutting are one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from evaluation.eyes.files import fill, read_tensors
from shared.errors import CiarError, ModelUnavailable

MEAN = (0.48145466, 0.4578275, 0.40821073)
SPREAD = (0.26862954, 0.26130258, 0.27577711)
BATCH = 16
VISION_HEAD, TEXT_HEAD = 80, 64  # widths of ViT-H/14's heads


@dataclass(frozen=True, eq=False)
class ClipEye:
    """A pair of encoders and its tokenizer; `name` is clip or hpsv2. Scores are cosines times `scale`."""

    model: Any
    tokenizer: Any
    name: str
    scale: float = 1.0

    @torch.no_grad()
    def look(self, pixels_BHW3: Tensor) -> NDArray[np.float64]:
        """Unit vectors of the common space."""
        starts = range(0, len(pixels_BHW3), BATCH)
        parts = [self._embed_pictures(pixels_BHW3[start : start + BATCH]) for start in starts]
        return np.asarray(torch.cat(parts).double())

    @torch.no_grad()
    def fits(self, pixels_BHW3: Tensor, captions: Sequence[str]) -> list[float]:
        """The score of each picture with its caption, which is cut to 77 tokens."""
        scores: list[float] = []
        for start in range(0, len(captions), BATCH):
            pictures_BD = self._embed_pictures(pixels_BHW3[start : start + BATCH])
            captions_BD = self._embed_captions(captions[start : start + BATCH])
            scores += (self.scale * (pictures_BD * captions_BD).sum(-1)).tolist()
        return scores

    def _embed_pictures(self, pixels_BHW3: Tensor) -> Tensor:
        side = self.model.config.vision_config.image_size
        states = self.model.vision_model(pixel_values=prepared(pixels_BHW3, side)).pooler_output
        return F.normalize(self.model.visual_projection(states).float(), dim=-1)

    def _embed_captions(self, captions: Sequence[str]) -> Tensor:
        longest = self.model.config.text_config.max_position_embeddings
        told = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        states = self.model.text_model(input_ids=told.input_ids, attention_mask=told.attention_mask)
        return F.normalize(self.model.text_projection(states.pooler_output).float(), dim=-1)


def prepared(pixels_BHW3: Tensor, side: int) -> Tensor:
    """What CLIP's image processor makes of square uint8 pictures: [B, 3, side, side]."""
    scaled = [
        np.asarray(Image.fromarray(picture.numpy()).resize((side, side), Image.Resampling.BICUBIC))
        for picture in pixels_BHW3
    ]
    unit = torch.from_numpy(np.stack(scaled)).float() / 255
    return ((unit - torch.tensor(MEAN)) / torch.tensor(SPREAD)).permute(0, 3, 1, 2)


def load_clip(folder: Path) -> ClipEye:
    """Read a folder of transformers. Raises ModelUnavailable for one that holds no CLIP."""
    transformers = _transformers()
    if not (folder / "config.json").is_file():
        raise ModelUnavailable(f"no config.json in {folder}", "CLIP is a folder as transformers saves it")
    try:
        model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelUnavailable(f"{folder} holds no CLIP", str(error).splitlines()[0]) from error
    return ClipEye(model.eval(), _tokenizer(folder), "clip")


def load_hps(file: Path, clip: Path) -> ClipEye:
    """Read an HPSv2 checkpoint; `clip` is the folder of CLIP's tokenizer. Raises ModelUnavailable."""
    transformers = _transformers()
    tensors = read_tensors(file)
    try:
        config, renamed = _config_of(tensors), dict(_renamed(tensors))
    except (KeyError, IndexError) as error:
        raise ModelUnavailable(f"{file} is no checkpoint of open_clip", f"without {error}") from error
    model = transformers.CLIPModel(transformers.CLIPConfig(**config))
    own = {name: value for name, value in model.state_dict().items() if name.endswith("position_ids")}
    fill(model, {**own, **renamed}, file)
    return ClipEye(model.eval(), _tokenizer(clip), "hpsv2", 100.0)


def _transformers() -> Any:  # noqa: ANN401 - a module that need not be there
    try:
        import transformers
    except ImportError as error:
        raise CiarError("CLIP needs transformers", "it is not here", 'pip install "ciar[eval]"') from error
    return transformers


def _tokenizer(folder: Path) -> Any:  # noqa: ANN401 - of transformers
    try:
        return _transformers().CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ModelUnavailable(f"no tokenizer in {folder}", str(error).splitlines()[0]) from error


def _layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name[len(prefix) :].split(".")[0]) for name in tensors if name.startswith(prefix))


def _config_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The shapes of an open_clip checkpoint as transformers names them."""
    patch = tensors["visual.conv1.weight"]
    width, side = patch.shape[0], patch.shape[-1]
    grid = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
    rows, text_width = tensors["token_embedding.weight"].shape
    common = int(tensors["text_projection"].shape[1])
    return {
        "projection_dim": common,
        "vision_config": {
            "hidden_size": width,
            "intermediate_size": len(tensors["visual.transformer.resblocks.0.mlp.c_fc.bias"]),
            "num_hidden_layers": _layers(tensors, "visual.transformer.resblocks."),
            "num_attention_heads": max(1, width // VISION_HEAD),
            "image_size": grid * side,
            "patch_size": side,
            "hidden_act": "gelu",
            "projection_dim": common,
        },
        "text_config": {
            "vocab_size": rows,
            "hidden_size": text_width,
            "intermediate_size": len(tensors["transformer.resblocks.0.mlp.c_fc.bias"]),
            "num_hidden_layers": _layers(tensors, "transformer.resblocks."),
            "num_attention_heads": max(1, text_width // TEXT_HEAD),
            "max_position_embeddings": len(tensors["positional_embedding"]),
            "hidden_act": "gelu",
            "bos_token_id": rows - 2,
            "eos_token_id": rows - 1,  # a caption is read at its end, in both programs
            "projection_dim": common,
        },
    }


_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "logit_scale": "logit_scale",
    **{
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in (
            ("visual.ln_pre", "vision_model.pre_layrnorm"),
            ("visual.ln_post", "vision_model.post_layernorm"),
            ("ln_final", "text_model.final_layer_norm"),
        )
        for kind in ("weight", "bias")
    },
}
_INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TOWERS = {"visual.transformer.resblocks.": "vision_model", "transformer.resblocks.": "text_model"}


def _renamed(tensors: Mapping[str, Tensor]) -> Sequence[tuple[str, Tensor]]:
    """Names and matrices of open_clip as transformers has them."""
    found: list[tuple[str, Tensor]] = []
    for name, value in tensors.items():
        if name in _NAMES:
            found.append((_NAMES[name], value))
        elif name in ("visual.proj", "text_projection"):
            tower = "visual_projection" if name == "visual.proj" else "text_projection"
            found.append((f"{tower}.weight", value.T.contiguous()))
        elif tower := next((prefix for prefix in _TOWERS if name.startswith(prefix)), ""):
            found += _inside(_TOWERS[tower], name.removeprefix(tower), value)
        elif name != "attn_mask":  # a constant
            raise KeyError(name)
    return found


def _inside(tower: str, name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """One tensor of a layer; queries, keys and values are one matrix in open_clip."""
    layer, _, rest = name.partition(".")
    place = f"{tower}.encoder.layers.{layer}"
    part, _, kind = rest.rpartition(".")
    if part == "attn" and kind.startswith("in_proj_"):
        kind = kind.removeprefix("in_proj_")
        names = (f"{place}.self_attn.{letter}_proj.{kind}" for letter in "qkv")
        return list(zip(names, value.chunk(3), strict=True))
    return [(f"{place}.{_INSIDE[part]}.{kind}", value)]
