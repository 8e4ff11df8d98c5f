"""Models by steps over the real wire: exact, gated, rivals, killed and resumed, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cloud_server.cli import parse
from cloud_server.loaders import loader
from cloud_server.server import CloudServer, Settings, running
from device_client import render, step_policy
from device_client.link import CloudLink
from device_client.progress import Source
from device_client.step_drafter import StepRequest, threshold_of
from device_client.step_loop import Denoised, denoise
from device_client.step_policy import StepPolicy
from device_client.steps.cli import main
from evaluation.relay import Relay
from shared.decoding.denoising import ddim_spacing, denoising
from shared.decoding.warp import Warp
from shared.errors import InvalidDraft, InvalidPrompt, InvalidRequest, ModelMismatch
from shared.messages import Draft, Open, Sampling, Steps, no_tokens
from shared.models.by_step import StepCloud, StepPackage, load_step_cloud, load_step_package
from tests.device_client.unplugged import Unplugged, link_to
from tests.tiny_steps import CHANNELS, FEATURES, LABELS, SIDE, SPACING, STEPS, build_tiny_steps

REQUEST = StepRequest("a red house", 7, 2.0, SPACING, "ddim")
SHAPE = (CHANNELS, SIDE, SIDE)
SOMETIMES = step_policy.ciar(0.08, "interval", prefix=2, max_gap=4)
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_steps(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def spread_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that predicts variances."""
    return build_tiny_steps(tmp_path_factory.mktemp("spread"), spread=True)


@pytest.fixture(scope="module")
def cloud(folder: Path) -> StepCloud:
    return load_step_cloud(str(folder), Path("nowhere"))


@pytest.fixture(scope="module")
def package(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StepPackage:
    """The device's side, from a folder without the cloud's weights."""
    home = tmp_path_factory.mktemp("device") / folder.name
    shutil.copytree(folder, home)
    shutil.rmtree(home / "cloud")
    return load_step_package(str(home), Path("nowhere"))


@pytest.fixture
async def server(cloud: StepCloud) -> AsyncIterator[CloudServer]:
    async with running(cloud, Settings(max_sessions=1)) as server:
        yield server


async def image(
    package: StepPackage,
    policy: StepPolicy,
    link: Relay | CloudLink | None,
    request: StepRequest = REQUEST,
) -> Denoised:
    """The last Denoised, and that every one before it grew."""
    seen = [each async for each in denoise(package, request, policy, link)]
    counts = [len(each.progress.tokens) for each in seen]
    assert counts == sorted(set(counts)) and counts[-1] == len(request.process)
    assert [each.progress.done for each in seen] == [False] * (len(seen) - 1) + [True]
    return seen[-1]


async def over(
    server: CloudServer, package: StepPackage, policy: StepPolicy, request: StepRequest = REQUEST
) -> Denoised:
    async with link_to(server) as link:
        return await image(package, policy, link, request)


@torch.inference_mode()
def alone(cloud: StepCloud, request: StepRequest = REQUEST) -> torch.Tensor:
    """What the large model draws without any wire, in fp32."""
    process, label = denoising(request.spacing, request.sampler), torch.tensor([1])
    state = process.start(request.seed, SHAPE)
    for step in range(len(process)):
        original = torch.tensor([process.original(step)])
        out, _ = cloud.model.denoised(state, original, label, request.guidance)
        eps, spread = out[:, :CHANNELS], out[:, CHANNELS:]
        state = process.back(step, state, eps, spread if spread.numel() else None, request.seed)
    return state


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
async def test_every_step_of_the_cloud_is_its_own_picture(server, cloud, package, precision: str) -> None:
    stepwise = replace(step_policy.exact(), precision=precision)
    whole = replace(step_policy.cloud_only(STEPS), precision=precision)
    drawn = [await over(server, package, policy) for policy in (stepwise, replace(stepwise, prefix=4), whole)]
    assert all(torch.equal(each.latent, drawn[0].latent) for each in drawn)
    assert torch.equal(drawn[0].latent, alone(cloud)) == (precision == "fp32")
    counters = [each.progress.counters for each in drawn]
    assert {each.cloud_forwards for each in counters} == {STEPS}
    assert [each.rounds for each in counters] == [STEPS - 1, STEPS - 4, 0]
    assert counters[0].bytes_up < STEPS * 60  # the cloud has the latent: none was sent
    assert set(drawn[2].progress.sources) == {Source.PREFIX}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
async def test_noise_on_the_way_is_keyed_too(spread_folder: Path, guidance: float) -> None:
    cloud, package = (load(str(spread_folder), Path()) for load in (load_step_cloud, load_step_package))
    request = replace(REQUEST, sampler="ddpm", spacing="6", guidance=guidance)
    truth = alone(cloud, request)
    async with running(cloud, Settings(max_sessions=1)) as server:
        for policy in (step_policy.exact(), step_policy.cloud_only(6)):
            assert torch.equal((await over(server, package, policy, request)).latent, truth)
        ours = await over(server, package, SOMETIMES, request)
    assert ours.latent.isfinite().all() and not torch.equal(ours.latent, truth)
    assert not torch.equal(truth, alone(cloud, replace(request, seed=8)))


async def test_alone_the_device_needs_nobody(package) -> None:
    drawn = await image(package, step_policy.device_only(), None)
    again = await image(package, step_policy.device_only(), None)
    assert torch.equal(drawn.latent, again.latent) and drawn.latent.isfinite().all()
    counters = drawn.progress.counters
    assert (counters.kept, counters.bytes_up, counters.cloud_forwards) == (STEPS, 0, 0)


async def test_the_device_asks_before_its_risks_grow(server, cloud, package) -> None:
    drawn = await over(server, package, SOMETIMES)
    counters, progress = drawn.progress.counters, drawn.progress
    assert 0 < counters.rounds < STEPS - 2 and counters.kept == STEPS - 1 - counters.rounds > 0
    assert counters.cloud_forwards == 1 + counters.rounds
    assert counters.judged == counters.rounds >= counters.accepted
    owed = [score for score, source in zip(progress.scores, progress.sources, strict=True) if source == 1]
    assert max(score for score in owed if score is not None) <= SOMETIMES.threshold
    assert torch.equal((await over(server, package, SOMETIMES)).latent, drawn.latent)


async def test_a_larger_budget_of_risk_asks_less(server, package) -> None:
    calls = []
    for threshold in (0.0, 0.05, 0.2, 1e9):
        policy = replace(SOMETIMES, threshold=threshold, max_gap=100)
        calls.append((await over(server, package, policy)).progress.counters.cloud_forwards)
    assert calls == sorted(calls, reverse=True) and calls[0] == STEPS and calls[-1] == 2


async def test_after_a_gap_the_device_asks_in_any_case(server, package) -> None:
    policy = replace(SOMETIMES, threshold=1e9, max_gap=3)
    sources = (await over(server, package, policy)).progress.sources
    kept = "".join("k" if source == Source.KEPT else "c" for source in sources)
    assert kept == "cckkkckkkc"


async def test_an_untrained_device_extrapolates(tmp_path: Path) -> None:
    """Its output layer is zero, so it is `extrapolate`."""
    home = build_tiny_steps(tmp_path / "untrained", trained=False)
    cloud, package = (load(str(home), Path()) for load in (load_step_cloud, load_step_package))
    async with running(cloud, Settings(max_sessions=1)) as server:
        rival = await over(server, package, step_policy.rival("extrapolate", 4))
        ours = await over(server, package, replace(step_policy.rival("reuse", 4), predictor="device"))
    assert torch.equal(rival.latent, ours.latent)
    assert rival.progress.counters.cloud_forwards == ours.progress.counters.cloud_forwards == 4


async def test_reuse_is_ddim_in_longer_strides(server, cloud, package) -> None:
    """DDIM's steps with the same noise are one step, so repeating it gains nothing over fewer steps."""
    policy = replace(step_policy.rival("reuse", 5), precision="fp32")
    drawn = await over(server, package, policy)
    process, state = REQUEST.process, REQUEST.process.start(7, SHAPE)
    kept = [*process.schedule.kept[::-1], 1.0]
    for step in range(0, STEPS, 2):
        original = torch.tensor([process.original(step)])
        with torch.inference_mode():
            out, _ = cloud.model.denoised(state, original, torch.tensor([1]), 2.0)
        here, there = (float(kept[place]) for place in (step, step + 2))
        clear = (state - (1 - here) ** 0.5 * out) / here**0.5
        state = there**0.5 * clear + (1 - there) ** 0.5 * out
    torch.testing.assert_close(drawn.latent, state, atol=1e-4, rtol=1e-4)


async def test_rivals_have_equal_calls(server, cloud, package) -> None:
    request = replace(REQUEST, spacing=ddim_spacing(4))
    few = await over(server, package, step_policy.cloud_only(len(request.process), "ddim"), request)
    assert torch.equal(few.latent, alone(cloud, request))
    rivals = [step_policy.rival(kind, 4) for kind in ("reuse", "extrapolate")]
    reused, line = [await over(server, package, rival) for rival in rivals]
    calls = [each.progress.counters.cloud_forwards for each in (few, reused, line)]
    assert calls == [len(request.process), 4, 4] and len(request.process) == 4
    assert not torch.equal(reused.latent, line.latent)


KILLS = [(step_policy.exact(), 1), (step_policy.exact(), 5), (SOMETIMES, 1), (SOMETIMES, 2)]


@pytest.mark.parametrize(("policy", "at"), KILLS)
async def test_a_killed_server_changes_no_image(cloud, package, policy: StepPolicy, at: int) -> None:
    server = CloudServer(cloud, Settings(max_sessions=1))
    await server.start()
    truth = await over(server, package, policy)
    async with link_to(server) as link:
        unplugged = Unplugged(link, cloud, server, at)
        drawn = await image(package, policy, unplugged)
        await unplugged.server.stop()
    assert torch.equal(drawn.latent, truth.latent)
    assert drawn.progress.counters.resumes == 1
    assert drawn.progress.counters.cloud_forwards == truth.progress.counters.cloud_forwards


def order(cloud: StepCloud, **changes: object) -> Open:
    sampling = Sampling("ddim", SPACING, "fp16")
    plain = Open(
        cloud.name, cloud.digest, 0, "a cat", 7, Warp(guidance=2.0), 2, "output", sampling=sampling
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"prefix_tokens": STEPS + 1}, InvalidRequest, "prefix of 11 steps"),
        ({"resume": np.array([1], np.int32)}, InvalidRequest, "draw tokens"),
        ({"acceptance": "coupled"}, InvalidRequest, "denoises"),
        ({"sampling": None}, InvalidRequest, "no sampling"),
        ({"sampling": Sampling("euler", SPACING, "fp16")}, InvalidRequest, "ddim, ddpm"),
        ({"sampling": Sampling("ddim", "ddim999", "fp16")}, InvalidRequest, "no stride"),
        ({"sampling": Sampling("ddim", "1", "fp16")}, InvalidRequest, "2 and more"),
        ({"sampling": Sampling("ddim", SPACING, "fp16", "f" * 16)}, ModelMismatch, "projection"),
        ({"codebook_size": 64}, ModelMismatch, "codes"),
        ({"prompt": "a zeppelin"}, InvalidPrompt, "no class"),
        ({"cloud_digest": "0" * 16}, ModelMismatch, "disagree"),
    ],
)
async def test_impossible_orders_are_refused(server, cloud, changes, kind, words: str) -> None:
    async with link_to(server) as link:
        with pytest.raises(kind, match=words):
            await link.open(order(cloud, **changes))


def latent(*shape: int, kind: type = np.float16) -> np.ndarray:
    return np.zeros(shape, kind)


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        (Draft(1, 2, np.array([1], np.int32)), "takes `steps`"),
        (Draft(1, 2, np.array([1], np.int32), steps=Steps(1, None)), "takes `steps`"),
        (Draft(1, 2, no_tokens(), np.array([1], np.int32), steps=Steps(1, None)), "another kind"),
        (Draft(1, 3, no_tokens(), steps=Steps(1, None)), "stands at step 2"),
        (Draft(1, 2, no_tokens(), steps=Steps(9, None)), "allowed: 1 to 8"),
        (Draft(1, 11, no_tokens(), steps=Steps(1, latent(*SHAPE))), "there are 10 steps"),
        (Draft(1, 2, no_tokens(), steps=Steps(1, latent(4, 4, 3))), "shape"),
        (Draft(1, 2, no_tokens(), steps=Steps(1, latent(*SHAPE, kind=np.float32))), "float32"),
        (Draft(1, 2, no_tokens(), steps=Steps(1, latent(*SHAPE) + np.float16(np.nan))), "finite"),
    ],
)
async def test_drafts_that_are_no_steps_are_refused(server, cloud, draft: Draft, words: str) -> None:
    async with link_to(server) as link:
        await link.open(order(cloud))
        await link.send(draft)
        with pytest.raises(InvalidDraft, match=words):
            await link.receive()


async def test_a_repeated_round_gets_its_answer_again(server, cloud) -> None:
    async with link_to(server) as link:
        await link.open(order(cloud))
        answers = []
        for _ in range(2):
            await link.send(Draft(1, 2, no_tokens(), steps=Steps(3, None)))
            answers.append((await link.receive()).output)
        usage = await link.finish()
    first, again = answers
    assert first is not None and again is not None and first.state is not None
    assert np.array_equal(first.noise, again.noise) and first.noise.dtype == np.float16
    assert (usage.rounds, usage.cloud_forwards) == (1, 2 + 3)


async def test_a_session_remembers_few_answers(server, cloud) -> None:
    """A device that asks without end does not fill the server's memory."""
    async with link_to(server) as link:
        await link.open(order(cloud))
        for number in range(1, 9):
            await link.send(Draft(number, 2, no_tokens(), steps=Steps(1, latent(*SHAPE))))
            await link.receive()
        await link.send(Draft(8, 2, no_tokens(), steps=Steps(1, latent(*SHAPE))))
        await link.receive()
        await link.send(Draft(1, 2, no_tokens(), steps=Steps(1, latent(*SHAPE))))
        with pytest.raises(InvalidDraft, match="out of order"):
            await link.receive()


async def test_features_come_where_they_are_wanted(server, cloud, package) -> None:
    for projection in ("", package.projection):
        async with link_to(server) as link:
            sampling = Sampling("ddim", SPACING, "fp16", projection)
            output = (await link.open(order(cloud, sampling=sampling, prefix_tokens=1))).output
        assert output is not None and output.state is None and output.spread is None
        assert (None if output.features is None else output.features.shape) == (
            (4, FEATURES) if projection else None
        )


async def test_the_server_says_what_it_serves(server) -> None:
    async with link_to(server) as link:
        (info,) = (await link.info()).models
    assert (info.latent, info.codebook_size, info.feature_width) == (SHAPE, 0, FEATURES)


async def test_a_server_without_the_projection_is_refused(folder: Path, package, tmp_path: Path) -> None:
    home = shutil.copytree(folder, tmp_path / folder.name)
    (home / "device" / "projection.safetensors").unlink()
    async with running(load_step_cloud(str(home), Path()), Settings()) as server:
        with pytest.raises(ModelMismatch, match="this server has none"):
            await over(server, package, SOMETIMES)
        await over(server, package, step_policy.exact())


def test_the_command_finds_the_family_and_refuses_flags_without_use(folder: Path) -> None:
    loaded, sessions = loader("dit")(parse(["--model", str(folder), "--max-sessions", "3"]))
    assert isinstance(loaded, StepCloud) and (loaded.labels, sessions) == (LABELS, 3)
    with pytest.raises(InvalidRequest, match="--dtype"):
        loader("dit")(parse(["--model", str(folder), "--dtype", "bf16"]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "x"}, {"gate": "x"}, {"prefix": 0}, {"max_gap": 0}, {"threshold": float("nan")},
        {"precision": "fp8"}, {"predictor": "x"}, {"calls": 0}, {"use_cloud": False},
    ],
)  # fmt: skip
def test_impossible_policies_are_refused(wrong) -> None:
    with pytest.raises(InvalidRequest):
        replace(step_policy.ciar(1.0), **wrong)


def test_a_budget_is_looked_up(package) -> None:
    assert threshold_of(package, "radius", REQUEST, 0.4) == pytest.approx(0.275)
    for gate, request in (("interval", REQUEST), ("radius", replace(REQUEST, spacing="ddim20"))):
        with pytest.raises(InvalidRequest, match="radius on ddim10 ddim"):
            threshold_of(package, gate, request, 0.4)


def test_the_command_draws_a_picture(folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "cat.png"
    words = ["--model", str(folder), "--prompt", "a cat", "--out", str(out), "--steps", SPACING]
    assert main([*words, "--mode", "device-only"]) == 0
    assert render.read_settings(out)["counters"]["kept"] == STEPS
    assert main([*words, "--mode", "ciar"]) == 1
    assert "needs a server" in capsys.readouterr().err
    assert main([*words, "--server", "127.0.0.1:1", "--retry-s", "0", "--threshold", "0.1"]) == 3
    assert main([*words, "--seed", "-1"]) == 2
    assert main([*words, "--mode", "x"]) == 1
