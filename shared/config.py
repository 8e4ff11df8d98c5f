"""Shapes of models as frozen dataclasses, and settings from TOML. An unknown or missing key is an error.
Knows nothing of torch."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from shared.errors import InvalidRequest

ConfigT = TypeVar("ConfigT")


def from_dict(kind: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    """Build the dataclass `kind` from parsed JSON or TOML; lists become tuples.

    Raises InvalidRequest naming unknown and missing keys and the allowed ones.
    """
    known = {item.name: item for item in fields(cast(Any, kind))}
    unknown = sorted(values.keys() - known.keys())
    required = {
        name for name, item in known.items() if item.default is MISSING and item.default_factory is MISSING
    }
    missing = sorted(required - values.keys())
    if unknown or missing:
        raise InvalidRequest(
            f"{kind.__name__}: unknown keys {unknown}, missing keys {missing}", f"allowed: {sorted(known)}"
        )
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def read_settings(file: Path, allowed: Collection[str]) -> dict[str, Any]:
    """The settings in a TOML file, named like the flags, with - or _ in them.

    Raises InvalidRequest for a file that cannot be read and for names that are no flags.
    """
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"--config {file} cannot be read", str(error.strerror)) from None
    except ValueError as error:  # no UTF-8, or no TOML
        raise InvalidRequest(f"--config {file} is no TOML", str(error)) from None
    settings = {name.replace("-", "_"): value for name, value in found.items()}
    if unknown := sorted(settings.keys() - set(allowed)):
        names = ", ".join(sorted(name.replace("_", "-") for name in allowed))
        raise InvalidRequest(f"--config {file} sets {unknown}", f"allowed: {names}")
    return settings


def config_file(argv: Sequence[str], variable: str | None) -> Path | None:
    """The file `--config` names, or else the environment variable; None for neither."""
    for place, word in enumerate(argv):
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
        if word == "--config" and place + 1 < len(argv):
            return Path(argv[place + 1])
    return Path(variable) if variable else None


def to_dict(config: Any) -> dict[str, Any]:  # noqa: ANN401 - any of the dataclasses here
    """The JSON form of a config; `from_dict` inverts it."""
    return asdict(config)


def wrong_values(errors: Iterable[Mapping[str, Any]]) -> str:
    """What a validator says of settings, in one line: each name, its value, and what was expected."""
    return "; ".join(f"{'.'.join(map(str, e['loc']))} {e['input']!r}: {e['msg']}" for e in errors)


@dataclass(frozen=True)
class TransformerConfig:
    """A transformer of LLaMA blocks that draws a square grid of tokens behind a prefix. The defaults are
    LlamaGen's: captions in front, 2-D RoPE; Chameleon and Janus differ in the fields below `rope_base`.

    Raises InvalidRequest for a rotary layout that does not exist.
    """

    dim: int
    n_layer: int
    n_head: int
    vocab_size: int  # V, image codes
    grid: int  # image tokens per side; T = grid * grid
    prefix_len: int  # P, text rows in front of the image
    caption_dim: int  # width of caption features; 0: the prefix is no caption
    ffn_hidden: int
    n_kv_head: int | None = None  # None: as many as heads
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    learned_positions: bool = False  # add a learned vector per image position (not in upstream LlamaGen)
    classes: int = 0  # > 0: the prefix is one of so many classes; one more row is the unguided class
    token_rows: int = 0  # rows of a token table that text and image share; 0: image codes alone
    image_start: int = 0  # its row of image code 0
    code_width: int = 0  # width of a table of image codes alone, lifted to D by two layers; 0: no such table
    head_hidden: int = 0  # width between the two layers of the head; 0: the head is one linear map
    rope_axes: int = 2  # 2: row and column of the grid, prefix rows are zero; 1: place in the sequence
    rope_pairs: Literal["adjacent", "halves"] = "adjacent"  # which components turn together
    q_norm_rows: int = 0  # rows of the LayerNorm over each head's query; 0: none
    k_norm_rows: int = 0  # the same of the key
    swin_norm: bool = False  # normalise what a block adds, not what it reads

    def __post_init__(self) -> None:
        if self.rope_axes not in (1, 2) or self.rope_pairs not in ("adjacent", "halves"):
            what = f"rotary layout {self.rope_axes} axes, {self.rope_pairs!r} pairs"
            raise InvalidRequest(f"there is no {what}", "allowed: 1 or 2 axes, 'adjacent' or 'halves'")

    @property
    def head_dim(self) -> int:
        """Width of one head; a multiple of 4 for 2-D RoPE."""
        return self.dim // self.n_head

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    @property
    def image_tokens(self) -> int:
        """T."""
        return self.grid * self.grid

    @property
    def positions(self) -> int:
        """Prefix rows plus image tokens: the length of caches and rotary tables."""
        return self.prefix_len + self.image_tokens


@dataclass(frozen=True)
class VQConfig:
    """A LlamaGen-shaped VQ tokenizer; the defaults of `norm` and `padding` are upstream's."""

    ch: int
    ch_mult: tuple[int, ...]  # width of each resolution level, highest resolution first
    z_channels: int
    codebook_size: int
    codebook_dim: int
    encoder_res: int = 2
    decoder_res: int = 3
    patch: int = 1  # pixels folded into channels before the first convolution
    attention: bool = True  # at the lowest resolution and in the middle
    middle: bool = True
    encoder_norm: str = "group"  # group | pixel (per-pixel RMS: keeps the encoder local)
    encoder_padding: Literal["zeros", "replicate"] = "zeros"  # zeros | replicate
    norm_groups: int = 32
    linear_path: bool = False  # a linear map from patch to feature and back beside the stack
    unit_codes: bool = True  # codes are compared and decoded on the unit sphere
    pixel_shift: float = 128.0  # uint8 = 127.5 x + shift, truncated; Chameleon's is 127.5

    @property
    def factor(self) -> int:
        """Pixels per token and side."""
        return int(self.patch * 2 ** (len(self.ch_mult) - 1))


@dataclass(frozen=True)
class CriticConfig:
    """An image-text encoder pair over 128 px pictures and a closed vocabulary."""

    width: int  # channels at the highest resolution, doubled twice
    dim: int  # width of the common space and of the text encoder
    layers: int = 2  # of the text encoder
    heads: int = 4
    words: int = 32  # words of a caption at most


@dataclass(frozen=True)
class DeviceConfig:
    """What the Inter-Head adds to a transformer."""

    cloud_digest: str  # the cloud weights this device was distilled from
    feature_width: int = 32  # d_f
    radius_max: float = 8.0
    distilled_guidance: float | None = None  # None: two guidance rows per step
    heads: int = 1  # Inter-Heads
    combine: str = "ensemble"  # how several become one interval: shared.decoding.heads
