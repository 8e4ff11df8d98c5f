"""The table of continuous speculative decoding, ours beside what was published. Knows nothing of how images
are drawn."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.masked import Result
from shared.decoding.continuous import TRANSPORT

# MAR's README: FID-50K of MAR-H (the cloud there) and MAR-B (the device there), 256 steps, guided. CSpD's
# abstract: speed-up of the wall time at most; MAR-H's passes follow from its settings (window 4, prefix 5 %).
FULL, SMALL, CSPD = "1.00, FID 1.55 (MAR-H)", "FID 2.31 (MAR-B)", "up to 2.33; 74 of 256 passes"
_HEAD = (
    "row", "passes", "rounds", "stand", "bound", "from the rival", "bytes up", "bytes down", "cloud ms",
    "device ms", "total ms", "speed-up", "FD-emoji", "published: speed-up",
)  # fmt: skip


def markdown(results: Sequence[Result], fd: Sequence[str]) -> str:
    """One line a row. `stand`: share of the judged tokens that stood. `bound`: how far a token that stands is
    from the cloud's own on average, at most. `from the rival`: mean distance of a token from that of the
    cloud alone in as many steps, with the same noise."""
    lines = [_line(result, results, distance) for result, distance in zip(results, fd, strict=True)]
    ruled = [_HEAD, ["---"] + ["--:"] * (len(_HEAD) - 1), *lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in ruled)


def _line(result: Result, results: Sequence[Result], distance: str) -> list[str]:
    policy, stood = result.row.policy, result.share()
    bound = f"{TRANSPORT * policy.masking.tolerance:.2f}" if policy.mode == "cspd" else ""
    counts = [f"{result.median(field):.0f}" for field in ("cloud_forwards", "rounds")]
    size = [f"{result.median(field):.0f}" for field in ("bytes_up", "bytes_down")]
    times = [f"{1000 * result.median(field):.0f}" for field in ("cloud_s", "device_s", "total_s")]
    speed = f"{results[0].median('total_s') / result.median('total_s'):.2f}"
    stand = "" if stood is None else f"{stood:.1%}"
    told = [*counts, stand, bound, _from_rival(result, results), *size, *times, speed, distance]
    return [result.row.name, *told, _published(result, results[0])]


def _from_rival(result: Result, results: Sequence[Result]) -> str:
    mine = result.row.policy.masking
    for other in results:
        policy = other.row.policy
        alike = policy.masking.steps == mine.steps and policy.masking.clip == mine.clip
        if policy.mode == "cloud-only" and alike:
            return f"{result.distance(other):.2f}"
    return ""


def _published(result: Result, first: Result) -> str:
    if result is first:
        return FULL
    return {"published": CSPD, "device-only": SMALL}.get(result.row.policy.mode, "")
