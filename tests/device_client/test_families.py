"""Published models end to end: official files, converted, cut to a pair, drawn over the real wire, decoded.

A checked image equals the cloud's own token for token (fp32; these seeds meet no ties), whatever the family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cloud_server.server import Settings, running
from device_client.link import CloudLink
from device_client.loop import Progress, Request, decode
from device_client.policy import Policy, policy_for
from device_client.render import to_image
from shared.decoding.warp import Warp
from shared.errors import CiarError, InvalidPrompt
from shared.models.families.chameleon import ChameleonModel
from shared.models.t5 import T5Captions
from shared.models.zoo import CloudModel, DevicePackage, load_cloud, load_device_package
from tests import published
from tests.published import HEADS, PIXELS, VOCABULARY
from tests.published_janus import write_janus
from training import cli
from training.base import sample

SEEDS = (0, 7, 2**63)


def features(captions: T5Captions, prompt: str) -> Tensor:
    """Stands where T5 stands: one feature vector per letter."""
    rows = [torch.randn(12, generator=torch.Generator().manual_seed(ord(letter))) for letter in prompt]
    return torch.stack(rows[: captions.limit])


def letters(model: ChameleonModel, prompt: str) -> list[int]:
    """Stands where the tokenizer stands: one token per letter."""
    text = [VOCABULARY[letter] for letter in prompt]
    return [model.marks.begin, *text, model.marks.turn, model.marks.image]


def captioned(folder: Path) -> list[str]:
    gpt, vq = published.write_llamagen(folder)
    return [str(gpt), "--family", "llamagen", "--vq", str(vq), "--heads", str(HEADS)]


def classes(folder: Path) -> list[str]:
    gpt, vq = published.write_llamagen(folder, published.CLASSES)
    return [str(gpt), "--family", "llamagen", "--vq", str(vq), "--heads", str(HEADS)]


def anole(folder: Path) -> list[str]:
    source = published.write_fair(folder / "fair", published.chameleon_state())
    return [str(source), "--family", "chameleon", "--tokens", "12"]


def swin(folder: Path) -> list[str]:
    shape = replace(published.CHAMELEON, swin_norm=True)
    source = published.write_hf(folder / "hf", published.chameleon_state(shape), shape)
    return [str(source), "--family", "chameleon", "--tokens", "12"]


def janus(folder: Path) -> list[str]:
    return [str(write_janus(folder / "janus")), "--family", "janus", "--tokens", "20"]


def janus_hf(folder: Path) -> list[str]:
    source = write_janus(folder / "janus", "hf", "safetensors")
    return [str(source), "--family", "janus", "--tokens", "20"]


FAMILIES: dict[str, tuple[Callable[[Path], list[str]], Sequence[str]]] = {
    "captions": (captioned, ("a b", "edc ba", "d")),
    "classes": (classes, ("0", "4", "2")),
    "anole": (anole, ("a b", "edcba ab", "d")),
    "swin": (swin, ("bad cab", "a", "ee")),
    "janus": (janus, ("a bad cab", "dee", "c")),
    "janus as saved by transformers": (janus_hf, ("ace", "bad:", "e e")),
}


class Pair:
    """One converted model: what the server loads, what the device loads, prompts it understands."""

    def __init__(self, folder: Path, prompts: Sequence[str]) -> None:
        self.prompts = prompts
        self.cloud: CloudModel = load_cloud(str(folder), folder)
        self.package: DevicePackage = load_device_package(str(folder), folder)

    def requests(self) -> list[Request]:
        """Every prompt with a seed, guided as the family's own programs guide; the last one unguided."""
        warps = [self.cloud.model.warp, Warp(2.0, top_k=8), Warp(1.0)]
        return [Request(p, seed, warp) for p, seed, warp in zip(self.prompts, SEEDS, warps, strict=True)]

    def base(self, request: Request) -> tuple[int, ...]:
        """The tokens the cloud draws alone, without a server."""
        return tuple(sample(self.cloud.model, [request.prompt], [request.seed], request.warp)[0].tolist())


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setattr(T5Captions, "features", features)
    monkeypatch.setattr(ChameleonModel, "prompt_ids", letters)
    write, prompts = FAMILIES[request.param]
    folder = tmp_path / "model"
    assert cli.main(["convert", *write(tmp_path), str(folder), "--pixels", str(PIXELS)]) == 0
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    assert cli.main(["cut", str(folder), "--layers", "2", "--prompts", str(tmp_path / "prompts.txt")]) == 0
    return Pair(folder, prompts)


async def draw(pair: Pair, request: Request, policy: Policy, target: str) -> Progress:
    async with CloudLink(target, retry_s=0.0) as link:
        steps = [step async for step in decode(pair.package, request, policy, link)]
    assert steps[-1].done
    return steps[-1]


async def test_checked_images_are_the_clouds_own(pair: Pair) -> None:
    accepted = kept = 0
    calibration = pair.package.calibration
    async with running(pair.cloud, Settings(max_sessions=2)) as server:
        target = f"127.0.0.1:{server.port}"
        for request in pair.requests():
            alone = await draw(pair, request, policy_for("cloud-only", calibration), target)
            assert alone.tokens == pair.base(request)
            for policy in (policy_for("exact", calibration), policy_for("exact", calibration, span=5)):
                checked = await draw(pair, request, policy, target)
                assert checked.tokens == alone.tokens
                accepted += checked.counters.accepted
            gated = await draw(
                pair, request, policy_for("ciar", calibration, cloud_budget=0.3, max_forwards=1), target
            )
            kept += gated.counters.kept
            assert_decoded(pair, alone)
    assert accepted > 0 and kept > 0


def assert_decoded(pair: Pair, image: Progress) -> None:
    """The picture is what the converted VQ makes of the tokens, rounded as the family rounds."""
    vq, grid = pair.package.vq, published.GRID
    picture = to_image(vq, image.tokens)
    assert picture.size == (PIXELS, PIXELS)
    with torch.inference_mode():
        pixels = vq.decode(torch.tensor(image.tokens).reshape(1, grid, grid))
    shift = 128 if pair.cloud.model.family == "llamagen" else 127.5
    expected = (127.5 * pixels[0] + shift).clamp(0, 255).byte().permute(1, 2, 0)
    assert picture.tobytes() == expected.contiguous().numpy().tobytes()


async def test_prompts_that_do_not_fit_are_refused_by_both_sides(pair: Pair) -> None:
    model = pair.cloud.model
    longest = model.config.prefix_len - 3
    bad = str(model.config.classes) if model.family == "llamagen" else "a" * (longest + 1)
    bad = "" if model.config.caption_dim else bad
    with pytest.raises(InvalidPrompt):
        model.prompt_rows(bad)
    async with running(pair.cloud, Settings(max_sessions=1)) as server:
        request = Request(bad, 0, Warp())
        with pytest.raises(CiarError):
            await draw(
                pair, request, policy_for("cloud-only", pair.package.calibration), f"127.0.0.1:{server.port}"
            )


def test_a_pair_that_was_not_calibrated_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    assert cli.main(["convert", *classes(tmp_path), str(folder), "--pixels", str(PIXELS)]) == 0
    assert cli.main(["cut", str(folder)]) == 0
    assert "--mode exact --span 5" in capsys.readouterr().out
    package = load_device_package(str(folder), folder)
    assert policy_for("exact", package.calibration, span=5).span == 5
    with pytest.raises(CiarError, match="no calibration"):
        policy_for("ciar", package.calibration)
    assert cli.main(["cut", str(folder), "--layers", "9"]) == 1
    assert "allowed: 1 to 3" in capsys.readouterr().err
