"""The tables of models by scales, ours beside what was published. Knows nothing of how images are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluation.scales import Result
from shared.models.families.var import VARConfig

# CoDe, table 1 (ImageNet 256, batch 64, no decoder), tuned: seconds, GB, FID; the base is VAR-d30.
CODE_PUBLISHED: Mapping[str, tuple[float, float, float]] = {
    "cloud alone": (3.62, 39.2, 1.95),
    "CoDe N = 9": (2.97, 28.8, 1.94),
    "CoDe N = 8": (2.11, 21.0, 1.98),
    "CoDe N = 7": (1.60, 19.9, 2.11),
    "CoDe N = 6": (1.27, 19.9, 2.27),
}
# CIAR, table 10: FID, speed-up; CoDe's speed there is against d30, the others' against d24.
CIAR_PUBLISHED: Mapping[str, tuple[float, float]] = {
    "cloud alone": (2.11, 1.0),
    "CoDe N = 6": (2.26, 2.90),
    "CIAR, interval": (2.34, 2.60),
}
KV_BYTES = 8  # a key and a value, fp32
GUIDED = 2
_MIB = 2**20


def cache_mib(config: VARConfig, scales: int, batch: int) -> float:
    """Keys and values of the first scales, by formula."""
    return GUIDED * batch * config.offsets[scales] * config.depth * config.dim * KV_BYTES / _MIB


def markdown(
    results: Sequence[Result], shapes: Sequence[tuple[VARConfig, VARConfig]], fd: Sequence[str]
) -> str:
    """One table of what was measured, one of the caches, with the published figures; `shapes` of cloud and
    device by row."""
    base = results[0]
    head = ["row", "passes", "rounds", "bytes up", "bytes down", "cloud ms", "device ms", "total ms"]
    head += ["speed-up", "equal tokens", "FD-emoji", "CoDe: s, GB, FID, speed-up", "CIAR: FID, speed-up"]
    lines = [_measured(result, base, distance) for result, distance in zip(results, fd, strict=True)]
    caches = [_cache(result, *pair) for result, pair in zip(results, shapes, strict=True)]
    cached = ["row", "cloud KV MiB, 1 image", "device KV MiB", "cloud KV, 64 images", "device KV, 64"]
    cached += ["cloud process MiB", "device process MiB"]
    return _table(head, lines) + "\n" + _table(cached, caches)


def _measured(result: Result, base: Result, distance: str) -> list[str]:
    name, total_s = result.row.name, result.median("total_s")
    counted = ("cloud_forwards", "rounds", "bytes_up", "bytes_down")
    counts = [f"{result.median(field):.0f}" for field in counted]
    times = [f"{1000 * result.median(field):.1f}" for field in ("cloud_s", "device_s", "total_s")]
    speed = f"{base.median('total_s') / total_s:.2f}"
    return [name, *counts, *times, speed, f"{result.like(base):.1%}", distance, _code(name), _ciar(name)]


def _code(name: str) -> str:
    if (key := name.removesuffix(", tuned")) not in CODE_PUBLISHED:
        return ""
    seconds, size, fid = CODE_PUBLISHED[key]
    return f"{seconds}, {size}, {fid}, {CODE_PUBLISHED['cloud alone'][0] / seconds:.2f}"


def _ciar(name: str) -> str:
    return "{}, {:.2f}".format(*CIAR_PUBLISHED[name]) if name in CIAR_PUBLISHED else ""


def _cache(result: Result, cloud: VARConfig, device: VARConfig) -> list[str]:
    """The cloud holds the scales up to the last one it saw; the device, where it draws at all, holds all."""
    policy, scales = result.row.policy, len(cloud.scales)
    asks = policy.use_cloud and policy.gate != "never"
    above = min(policy.ask.until, scales) if asks else policy.prefix
    below = scales if policy.prefix < scales else 0
    sizes = [
        f"{cache_mib(config, count, batch):.2f}"
        for batch in (1, 64)
        for config, count in ((cloud, above), (device, below))
    ]
    return [result.row.name, *sizes, f"{result.cloud_mib:.0f}", f"{result.device_mib:.0f}"]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    ruled = [head, ["---"] + ["--:"] * (len(head) - 1), *lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in ruled)
