"""The table of models by steps. Knows nothing of how images are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional as F

from evaluation.diffusion import Result
from evaluation.small_pictures import for_critic
from shared.models.critic import Critic

HEAD = (
    "row", "calls", "rounds", "bytes up", "bytes down", "cloud ms", "device ms", "total ms", "latent error",
    "pixel error", "PSNR dB", "critic", "published: FID, speed-up",
)  # fmt: skip
# CIAR, table 10 (DiT-XL, ImageNet 256): speeds are ratios of steps, without network and decoder.
PUBLISHED: Mapping[str, str] = {
    "cloud-only": "2.27, 1.00", "DDIM, 25 calls": "3.18, 2.00", "DDIM, 20 calls": "3.81, 2.50",
    "DDIM, 12 calls": "7.80, 4.17", "ciar": "2.32, 4.90",
}  # fmt: skip
_MOST_DB = 99.0


def likeness(results: Sequence[Result], critic: Critic | None) -> list[str]:
    """The mean cosine between what the critic sees in each row's pictures and in the first one's."""
    if critic is None:
        return ["-"] * len(results)
    with torch.no_grad():
        seen = [critic.embed_images(for_critic(result.pixels_NHW3)) for result in results]
    return [f"{float(F.cosine_similarity(mine, seen[0]).mean()):.3f}" for mine in seen]


def markdown(results: Sequence[Result], critic: Critic | None) -> str:
    """One line a row; the first row is what all are compared with. Counts are means, times medians."""
    pairs = zip(results, likeness(results, critic), strict=True)
    lines = [_line(result, results[0], cell) for result, cell in pairs]
    ruled = [HEAD, ("---", *["--:"] * (len(HEAD) - 1)), *lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in ruled)


def psnr_db(error: float) -> float:
    """Of a root mean square error of pixels; at most 99."""
    return min(20 * math.log10(255 / error), _MOST_DB) if error else _MOST_DB


def _line(result: Result, base: Result, cell: str) -> tuple[str, ...]:
    counts = [f"{result.mean(name):.1f}" for name in ("cloud_forwards", "rounds")]
    counts += [f"{result.mean(name):.0f}" for name in ("bytes_up", "bytes_down")]
    times = [f"{1000 * result.median(name):.1f}" for name in ("cloud_s", "device_s", "total_s")]
    pixels = result.pixel_error(base)
    off = [f"{result.latent_error(base):.4f}", f"{pixels:.2f}", f"{psnr_db(pixels):.1f}"]
    return (result.row.name, *counts, *times, *off, cell, _published(result))


def _published(result: Result) -> str:
    """Of CIAR beside its own gate."""
    name = "ciar" if result.row.name.startswith("ciar, interval") else result.row.name
    return PUBLISHED.get(name, "")
