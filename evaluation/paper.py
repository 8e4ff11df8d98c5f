"""The tables of the CIAR paper and what it reports in them (arXiv 2603.25463), as values.

Three numbers are the paper's own (3 discrete(k), 6 heads, 7 losses); the others are in its order of telling.
The paper's figures are of LlamaGen I where nothing else is said.
"""

from __future__ import annotations

from types import MappingProxyType

from evaluation import columns as c
from evaluation.comparison import Line, Matched, TableSpec
from evaluation.policies import (
    BASE,
    CIAR,
    CIAR_ONWARD,
    EAGLE,
    EXACT,
    LANTERN,
    LANTERN_TREE,
    PARALLEL,
    PUBLISHED,
    SCD,
    SCD_WIDE,
    SJD,
    Row,
    early,
)

EQUAL_BUDGET = 0.30  # cloud forwards per token at which gates are compared
LINKS = ("5g", "wifi", "4g")
_FEW = 0.15  # cloud forwards per token at which `ciar` is asked to be fast

DEVICE_ONLY = Row("device only", "device-only")
CODE = Row("CoDe 0.3", "ciar", MappingProxyType({**PUBLISHED, "gate": "never", "prefix_rate": 0.3}))
SPECULATION = Row(
    "speculation, span 5",
    "ciar",
    MappingProxyType(
        {**PUBLISHED, "gate": "always", "span": 5, "prefix_rate": 0.0, "acceptance": "rejection"}
    ),
)
_DIALLED = Row(
    "ciar, interval 20 %",
    "ciar",
    MappingProxyType({"gate": "interval", "cloud_budget": 0.2, "pacing": "budget", "max_forwards": 1}),
)
NO_VARIANT = "needs a device model of that kind: --variants FOLDER"


def _told(**figures: str) -> MappingProxyType[str, str]:
    return MappingProxyType({title.replace("_", " "): value for title, value in figures.items()})


SPEED = ("speed-up", "steps", "cloud call %")
QUALITY = ("FID", "CLIP", "HPSv2", "F1")


def _speed(speed_up: str, steps: str, calls: str) -> MappingProxyType[str, str]:
    return MappingProxyType(dict(zip(SPEED, (speed_up, steps, calls), strict=True)))


def _quality(*figures: str) -> MappingProxyType[str, str]:
    return MappingProxyType(dict(zip(QUALITY, figures, strict=True)))


MAIN = TableSpec(
    1,
    "Speed, steps and cloud calls",
    (
        Line("base (cloud only)", BASE, _speed("1.00", "1.00", "100")),
        Line("device only", DEVICE_ONLY),
        Line("CoDe 0.3", CODE, _speed("2.04", "2.73", "30.0")),
        Line("speculation, span 5", SPECULATION),
        Line("EAGLE-2", EAGLE, _speed("1.02", "1.16", "87.0")),
        Line("LANTERN", LANTERN, _speed("1.66", "2.01", "50.1")),
        Line("LANTERN on the tree", LANTERN_TREE),
        Line("Entropy-Lens", Matched("entropy", EQUAL_BUDGET), _speed("1.70", "2.05", "52.3")),
        Line("SCD (cloud alone)", SCD),
        Line("SCD, window 24 (cloud alone)", SCD_WIDE),
        Line("SJD (cloud alone)", SJD),
        Line("row-parallel (cloud alone)", PARALLEL),
        Line("exact (ours)", EXACT[0]),
        Line("exact, 1 forward (ours)", EXACT[2]),
        Line("ciar (ours)", CIAR, _speed("2.53", "3.00", "30.4")),
        Line("ciar, 15 % early (ours)", early(_FEW)),
    ),
    (
        c.SPEED_UP, c.STEPS, c.CALLS, c.LOCAL, c.ACCEPTED, c.IDENTICAL, c.DIFFERING, c.SECONDS,
        c.CLOUD_SECONDS, c.PER_CLOUD_SECOND, c.BYTES_UP, c.BYTES_DOWN,
    ),
    SPEED,
    (
        "Speed-up is the median time of an image of the base over that of the row, both warm, over loopback.",
        "Steps are tokens per cloud forward; the paper's are not, for its gated rows, and do not compare.",
        "LlamaGen II and Anole in the paper, CIAR: 2.13 / 2.83 / 34.5 and 1.87 / 3.29 / 29.9.",
    ),
)  # fmt: skip
JUDGED = TableSpec(
    2,
    "Quality of the same rows",
    (
        Line("base (cloud only)", BASE, _quality("23.69", ".3161", "22.74", ".6097")),
        Line("device only", DEVICE_ONLY),
        Line("CoDe 0.3", CODE),
        Line("speculation, span 5", SPECULATION),
        Line("LANTERN", LANTERN),
        Line("LANTERN on the tree", LANTERN_TREE),
        Line("SJD (cloud alone)", SJD),
        Line("row-parallel (cloud alone)", PARALLEL),
        Line("exact (ours)", EXACT[0]),
        Line("ciar (ours)", CIAR, _quality("24.25", ".3159", "22.48", ".5997")),
        Line("ciar, 15 % early (ours)", early(_FEW)),
    ),
    (
        c.DISTANCE, c.DISTANCE_CHANGE, c.SCORE, c.SCORE_CHANGE, c.PRECISION, c.RECALL, c.F1, c.IDENTICAL,
        c.DIFFERING,
    ),
    QUALITY,
    (
        "FD-emoji, P, R, F1 and score are of the bundled critic's features: no FID and no CLIP score; they "
        "compare only with each other. `ciar-eval quality` measures the real ones where their weights are.",
        "Intervals are of the difference to our base on the same prompts and seeds.",
    ),
)  # fmt: skip
DISCRETE = TableSpec(
    3,
    "Interval against sets of k sampled distributions",
    (
        Line("discrete(8)", Matched("discrete", EQUAL_BUDGET)),
        Line("interval", Matched("interval", EQUAL_BUDGET)),
    ),
    (c.CALLS, c.DIFFERING, c.DISTANCE_CHANGE, c.SECONDS),
)
GATES = TableSpec(
    4,
    "Gates at equal budget",
    (
        Line("random", Matched("random", EQUAL_BUDGET), _told(FID="30.2")),
        Line("Entropy-Lens", Matched("entropy", EQUAL_BUDGET), _told(FID="24.6")),
        Line("SoftmaxCorr", Matched("softmax", EQUAL_BUDGET), _told(FID="31.1")),
        Line("interval (the paper's)", Matched("interval", EQUAL_BUDGET), _told(FID="24.2")),
        Line("margin (ours)", Matched("margin", EQUAL_BUDGET)),
        Line("agreement (ours)", Matched("agreement", EQUAL_BUDGET)),
    ),
    (c.CALLS, c.LOCAL, c.DIFFERING, c.DISTANCE, c.DISTANCE_CHANGE, c.SCORE_CHANGE),
    ("FID",),
    ("Spans of 5; each threshold is settled on images of its own, for 30 % of the forwards.",),
)


def _variants(number: int, title: str, lines: dict[str, tuple[str, dict[str, str]]]) -> TableSpec:
    """A table of device models: the line's name, its folder, the paper's figures."""
    told = tuple(dict.fromkeys(title for _, figures in lines.values() for title in figures))
    return TableSpec(
        number,
        title,
        tuple(
            Line(name, _DIALLED, MappingProxyType(figures), variant=folder)
            for name, (folder, figures) in lines.items()
        ),
        (c.SPEED_UP, c.CALLS, c.DIFFERING, c.DISTANCE, c.DISTANCE_CHANGE, c.SECONDS),
        told,
        (
            "The interval gate, every image held to 20 % of the forwards.",
            "Lines but the first are of one `ciar-train ablate`: trained alike, shorter than the model.",
        ),
    )


LAYERS = _variants(
    5,
    "Layers of the device model",
    {
        "the model itself, 1 layer": ("", {}),
        "1 layer": ("whole", {"cloud call %": "30.4", "speed-up": "2.53"}),
        "2 layers": ("layers-2", {"cloud call %": "27.1", "speed-up": "2.54"}),
        "3 layers": ("layers-3", {"cloud call %": "26.1", "speed-up": "2.19"}),
        "5 layers": ("layers-5", {"cloud call %": "25.7", "speed-up": "2.14"}),
    },
)
HEADS = _variants(
    6,
    "Inter-Heads",
    {
        "the model itself, 1 head": ("", {}),
        "1 head": ("whole", {"cloud call %": "30.4"}),
        "2 heads": ("heads-2", {}),
        "3 heads": ("heads-3", {}),
        "5 heads": ("heads-5", {"cloud call %": "28.4"}),
        "5 heads, voting": ("heads-5-voting", {}),
    },
)
LOSSES = _variants(
    7,
    "Terms of the loss",
    {
        "the model itself": ("", {}),
        "all": ("whole", {"FID": "24.2"}),
        "without centre": ("without-centre", {"FID": "25.3"}),
        "without upper": ("without-upper", {"FID": "47.9"}),
        "without lower": ("without-lower", {"FID": "25.3"}),
        "without anchor": ("without-anchor", {"FID": "68.6"}),
    },
)
_PAPER_NETWORK = {
    "5g": {"ciar": ("1.678", "24.7", "6.794"), "LANTERN": ("4.425", "27.6", "16.023")},
    "4g": {"ciar": ("8.174", "62.7", "13.035")},
    "wifi": {"ciar": ("3.344", "39.8", "8.411")},
}
NETWORK = ("comm s", "comm %", "total s")


def _network(link: str, row: str) -> MappingProxyType[str, str]:
    figures = _PAPER_NETWORK[link].get(row, ())
    return MappingProxyType(dict(zip(NETWORK, figures, strict=False)))


LINKED = TableSpec(
    8,
    "Over shaped links",
    tuple(
        Line(f"{name}, {link}", row, _network(link, name), link)
        for link in LINKS
        for name, row in (
            ("base", BASE),
            ("LANTERN", LANTERN),
            ("SCD", SCD),
            ("row-parallel", PARALLEL),
            ("exact", EXACT[0]),
            ("exact, 1 forward", EXACT[2]),
            ("ciar", CIAR),
            ("ciar, 8 forwards", CIAR_ONWARD),
        )
    ),
    (
        c.SPEED_UP, c.SECONDS, c.ROUNDS, c.BYTES_UP, c.BYTES_DOWN, c.TOLD_S, c.TOLD_SHARE, c.MEASURED_S,
        c.MEASURED_SHARE,
    ),
    NETWORK,
    (
        "5g 300 Mb/s 10 ms, wifi 100 Mb/s 20 ms, 4g 20 Mb/s 50 ms, one way: a proxy between the two.",
        "By formula: each message costs delay + size / rate, computing is measured. Measured: the clock's "
        "waiting less the cloud model's time.",
    ),
)  # fmt: skip
TABLES = {spec.number: spec for spec in (MAIN, JUDGED, DISCRETE, GATES, LAYERS, HEADS, LOSSES, LINKED)}
