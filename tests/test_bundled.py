"""The weights in the box: they belong together, fit their size, and keep the promises the README makes.

The server is a process of its own. Equality is exact up to fp32 ties, which these seeds do not meet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from device_client.loop import Progress, Source
from device_client.policy import policy_for
from device_client.render import to_image
from device_client.wish import request_for
from evaluation.run import cloud_server, draw
from shared.models.zoo import BUNDLED, DevicePackage, load_cloud, load_device_package

MEGABYTE = 2**20
NOWHERE = Path("nowhere")
CAT = ("a cat", 3)


@pytest.fixture(scope="module")
def package() -> DevicePackage:
    torch.set_num_threads(1)
    return load_device_package("emoji", NOWHERE)


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with cloud_server("emoji") as target:
        yield target


def drawn(
    package: DevicePackage, target: str, request: tuple[str, int], mode: str, **overrides: Any
) -> Progress:
    """The finished image of a (prompt, seed)."""
    policy = policy_for(mode, package.calibration, **overrides)
    return asyncio.run(draw(package, target, request_for(package, *request), policy))


def test_weights_are_small_and_belong_together(package: DevicePackage) -> None:
    size = sum(path.stat().st_size for path in (BUNDLED / "emoji").rglob("*") if path.is_file())
    assert size <= 40 * MEGABYTE
    cloud = load_cloud("emoji", NOWHERE)
    assert package.cloud_digest == cloud.digest
    assert package.model.base.config.n_layer == 1 < cloud.model.config.n_layer
    assert (BUNDLED / "emoji" / "NOTICE.md").is_file()


@pytest.mark.parametrize(("prompt", "seed"), [("a cat", 3), ("a red apple on a pink background", 11)])
def test_verified_images_equal_the_base(package: DevicePackage, target: str, prompt: str, seed: int) -> None:
    base = drawn(package, target, (prompt, seed), "cloud-only")
    exact = drawn(package, target, (prompt, seed), "exact")
    assert exact.tokens == base.tokens
    assert exact.counters.cloud_forwards <= 0.45 * exact.counters.image_tokens
    assert max(exact.counters.bytes_up, exact.counters.bytes_down) < 3_000
    once = drawn(package, target, (prompt, seed), "exact", max_forwards=1)
    assert max(once.counters.bytes_up, once.counters.bytes_down) < 3_000
    busy = drawn(package, target, (prompt, seed), "exact", in_flight=4, max_forwards=2)
    assert once.tokens == busy.tokens == base.tokens
    assert exact.counters.rounds < busy.counters.rounds < once.counters.rounds
    for span in (1, 5, 16):
        assert drawn(package, target, (prompt, seed), "ciar", gate="always", span=span).tokens == base.tokens


def test_the_gate_decides_between_the_device_and_the_cloud(package: DevicePackage, target: str) -> None:
    plain = drawn(package, target, CAT, "ciar", gate="never", alone="")
    assert plain.counters.cloud_forwards == 15 and plain.counters.kept == 241
    alone = drawn(package, target, CAT, "ciar", gate="never")
    assert alone.tokens == plain.tokens and alone.counters.cloud_forwards < 15
    for gate in ("interval", "margin"):
        counters = drawn(package, target, CAT, "ciar", gate=gate, cloud_budget=0.12).counters
        assert alone.counters.cloud_forwards < counters.cloud_forwards < 128 and 0 < counters.kept < 241
        assert counters.bytes_up < 12_000 and counters.bytes_down < 4_000


def test_the_picture_has_a_background_and_an_object(package: DevicePackage, target: str) -> None:
    last = drawn(package, target, ("a cat", 0), "ciar")
    image = to_image(package.vq, last.tokens)
    assert image.size == (128, 128) and set(last.sources) >= {Source.PREFIX, Source.KEPT}
    low, high = image.convert("L").getextrema()
    assert isinstance(low, int) and isinstance(high, int) and high - low > 100
