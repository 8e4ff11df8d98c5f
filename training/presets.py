"""What the bundled models are trained on. Knows nothing of files."""

from __future__ import annotations

from dataclasses import dataclass

from shared.config import TransformerConfig, VQConfig
from shared.errors import InvalidRequest

EVERYDAY = (
    "cat", "cat face", "dog", "dog face", "rabbit face", "panda", "fox", "frog", "pig face", "penguin",
    "owl", "butterfly", "octopus", "red apple", "banana", "strawberry", "pineapple", "mushroom", "pizza",
    "ice cream", "birthday cake", "house", "rocket", "automobile", "bus", "soccer ball", "guitar", "crown",
    "balloon", "red heart", "star", "sun", "snowman", "evergreen tree", "cactus", "tulip", "sunflower",
    "ghost", "grinning face", "smiling face with sunglasses",
)  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """One size of the bundled family; `concepts` None means every concept of the folder."""

    concepts: tuple[str, ...] | None
    model: TransformerConfig
    vq: VQConfig


def _tokenizer(ch: int, codebook_size: int) -> VQConfig:
    """A local encoder and a wider decoder, 8 pixels per token."""
    return VQConfig(
        ch=ch, ch_mult=(1, 2, 4), z_channels=4 * ch, codebook_size=codebook_size, codebook_dim=8,
        encoder_res=1, decoder_res=2,
        patch=2, attention=False, middle=False, encoder_norm="pixel", encoder_padding="replicate",
        linear_path=True,
    )  # fmt: skip


PRESETS: dict[str, Preset] = {
    "everyday": Preset(
        EVERYDAY,
        TransformerConfig(
            dim=256, n_layer=8, n_head=4, vocab_size=1024, grid=16, prefix_len=16, caption_dim=128,
            ffn_hidden=768,
            learned_positions=True,
        ),
        _tokenizer(32, 1024),
    ),
    "all": Preset(
        None,
        TransformerConfig(
            dim=384, n_layer=10, n_head=6, vocab_size=1024, grid=16, prefix_len=16, caption_dim=128,
            ffn_hidden=1024,
            learned_positions=True,
        ),
        _tokenizer(32, 1024),
    ),
    "tiny": Preset(
        ("cat", "dog"),
        TransformerConfig(
            dim=32, n_layer=2, n_head=2, vocab_size=64, grid=16, prefix_len=16, caption_dim=16,
            ffn_hidden=64,
            learned_positions=True,
        ),
        _tokenizer(8, 64),
    ),
}  # fmt: skip


def preset(name: str) -> Preset:
    """The preset of that name. Raises InvalidRequest naming the allowed ones."""
    if name not in PRESETS:
        raise InvalidRequest(f"unknown preset {name!r}", f"allowed: {', '.join(PRESETS)}")
    return PRESETS[name]
