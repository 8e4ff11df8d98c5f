"""What the bundled models are trained on, and how large they are. Knows nothing of files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shared.config import CriticConfig, TransformerConfig, VQConfig
from shared.errors import InvalidRequest
from training.captions import CaptionRange
from training.scenes import SceneRange
from training.words import COLOURS

FIRST = (
    "cat", "cat face", "dog", "dog face", "rabbit face", "panda", "fox", "frog", "pig face", "penguin",
    "owl", "butterfly", "octopus", "red apple", "banana", "strawberry", "pineapple", "mushroom", "pizza",
    "ice cream", "birthday cake", "house", "rocket", "automobile", "bus", "soccer ball", "guitar", "crown",
    "balloon", "red heart", "star", "sun", "snowman", "evergreen tree", "cactus", "tulip", "sunflower",
    "ghost", "grinning face", "smiling face with sunglasses",
)  # fmt: skip
EVERYDAY = (
    *FIRST,
    # animals
    "mouse face", "cow face", "tiger face", "horse face", "monkey face", "koala", "bear", "lion", "unicorn",
    "elephant", "giraffe", "zebra", "wolf", "rooster", "chicken", "baby chick", "bird", "duck", "eagle",
    "turtle", "snake", "snail", "bug", "honeybee", "lady beetle", "fish", "tropical fish", "dolphin", "shark",
    "spouting whale", "crab", "spiral shell", "dragon face", "T-Rex", "hedgehog", "swan", "flamingo",
    # plants and weather
    "rose", "cherry blossom", "hibiscus", "deciduous tree", "palm tree", "four leaf clover", "maple leaf",
    "rainbow", "cloud", "snowflake", "fire", "droplet", "crescent moon", "full moon", "glowing star",
    # food
    "green apple", "pear", "peach", "cherries", "grapes", "watermelon", "lemon", "tangerine", "kiwi fruit",
    "tomato", "carrot", "eggplant", "ear of corn", "bread", "cheese wedge", "hamburger", "french fries",
    "hot dog", "doughnut", "cookie", "lollipop", "cupcake", "soft ice cream", "hot beverage", "egg",
    # things
    "airplane", "helicopter", "bicycle", "taxi", "police car", "fire engine", "ambulance", "tractor",
    "sailboat", "ship", "locomotive", "flying saucer", "umbrella with rain drops", "wrapped gift",
    "Christmas tree", "jack-o-lantern", "teddy bear", "basketball", "trophy", "violin", "drum", "trumpet",
    "key", "bell", "light bulb", "envelope", "camera", "television", "laptop", "scissors", "pencil",
    "backpack", "top hat", "glasses", "t-shirt", "gem stone", "castle", "tent",
    # faces
    "smiling face with heart-eyes", "winking face", "face with tears of joy", "crying face", "angry face",
    "face with tongue", "robot", "alien", "skull", "pile of poo", "clown face", "blue heart", "broken heart",
    "thumbs up",
)  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """One size of the bundled family; `concepts` None means every concept of the folder."""

    concepts: tuple[str, ...] | None
    model: TransformerConfig
    vq: VQConfig
    scenes: SceneRange = field(default_factory=SceneRange)
    critic: CriticConfig = field(default_factory=lambda: CriticConfig(width=48, dim=192))


def _tokenizer(ch: int, codebook_size: int) -> VQConfig:
    """A local encoder and a wider decoder, 8 pixels per token."""
    return VQConfig(
        ch=ch, ch_mult=(1, 2, 4), z_channels=4 * ch, codebook_size=codebook_size, codebook_dim=8,
        encoder_res=1, decoder_res=2,
        patch=2, attention=False, middle=False, encoder_norm="pixel", encoder_padding="replicate",
        linear_path=True,
    )  # fmt: skip


def _transformer(dim: int, layers: int, heads: int, ffn: int, prefix: int = 16) -> TransformerConfig:
    """A transformer over a 16 x 16 grid of 1,024 codes."""
    return TransformerConfig(
        dim=dim, n_layer=layers, n_head=heads, vocab_size=1024, grid=16, prefix_len=prefix, caption_dim=128,
        ffn_hidden=ffn, learned_positions=True,
    )  # fmt: skip


# Text, digits, dials, arrows and maps: mirrored they would be wrong, or something else.
HANDED = (
    r"button|sign\b|clock|watch|calendar|book|ledger|music|score|keyboard|number|letter|label|memo|scroll|page"
    r"|ticket|arrow|soon|money|dollar|euro|yen|pound|banknote|card|receipt|newspaper|ATM|left|right|chart"
    r"|mark\b|symbol|mahjong|currency|copyright|registered|zzz|OK|NO\b|SOON|TOP|END|BACK|ON!|hundred|medal"
    r"|dice?\b|8 ball|globe|world|\bmap\b|flag|exclamation|question|eighteen|trade|divide|placard|badge\b"
    r"|passport|customs|post|bank|hotel|hospital|store|school|police|ambulance|fire engine|taxi|bus\b|traffic"
    r"|slot machine|cassette|computer|laptop|notepad|envelope|e-mail|package|identification|moon|Statue"
)
VARIED = CaptionRange(grammar="varied", article=0.7, alias=0.35)
FIRST_SCENES = SceneRange(sizes=(112, 112, 98, 91))
EVERYDAY_SCENES = SceneRange(
    sizes=(112, 112, 112, 98), never_mirrored=HANDED, white=0.4, colours=tuple(COLOURS), held_colours=0.05,
    blends=0.25, captions=replace(VARIED, style=0.8),
)  # fmt: skip
ALL_SCENES = SceneRange(
    shift_cells=3, sizes=(112, 112, 104, 96, 88, 80), never_mirrored=HANDED, white=0.3,
    colours=tuple(COLOURS), held_colours=0.05, pairs=0.12,
    captions=CaptionRange(
        grammar="varied", words=24, article=0.7, alias=0.35, size=0.3, place=0.3, relation=0.85
    ),
)  # fmt: skip

PRESETS: dict[str, Preset] = {
    "first": Preset(FIRST, _transformer(256, 8, 4, 768), _tokenizer(32, 1024), FIRST_SCENES),
    "everyday": Preset(EVERYDAY, _transformer(256, 8, 4, 768), _tokenizer(32, 1024), EVERYDAY_SCENES),
    "all": Preset(None, _transformer(384, 10, 6, 1024, prefix=24), _tokenizer(32, 1024), ALL_SCENES),
    "tiny": Preset(
        ("cat", "dog"),
        TransformerConfig(
            dim=32, n_layer=2, n_head=2, vocab_size=64, grid=16, prefix_len=16, caption_dim=16,
            ffn_hidden=64,
            learned_positions=True,
        ),
        _tokenizer(8, 64),
        replace(ALL_SCENES, captions=replace(ALL_SCENES.captions, words=16)),
        CriticConfig(width=8, dim=32),
    ),
}  # fmt: skip


def preset(name: str) -> Preset:
    """The preset of that name. Raises InvalidRequest naming the allowed ones."""
    if name not in PRESETS:
        raise InvalidRequest(f"unknown preset {name!r}", f"allowed: {', '.join(PRESETS)}")
    return PRESETS[name]
