"""Models by scales over the real wire: exact, CoDe, gated, killed and resumed, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cloud_server.cli import parse
from cloud_server.loaders import loader
from cloud_server.server import CloudServer, Settings, running
from device_client import render, scale_policy
from device_client.cloud import Request
from device_client.link import CloudLink
from device_client.loop import Source
from device_client.progress import Progress
from device_client.scale_loop import decode_scales
from device_client.scale_policy import ScalePolicy
from device_client.scales.cli import main
from evaluation.relay import Relay
from shared.decoding.scales import AskRule, drawn, scale_noise
from shared.errors import InvalidDraft, InvalidPrompt, InvalidRequest, ModelMismatch
from shared.messages import Draft, Open, Tokens, Verdict
from shared.models.by_scale import ScaleCloud, ScalePackage, load_scale_cloud, load_scale_package
from shared.models.families.var import VARModel
from shared.models.families.var_run import ScaleRun
from tests.device_client.unplugged import Unplugged, link_to
from tests.tiny_scales import CODES, LABELS, SCALES, TOKENS, WARP, build_tiny_scales

REQUEST = Request("a red house", 7, WARP)
OFFSETS = (0, 1, 5, 14, 30)
SOMETIMES = ScalePolicy("ciar", 1, "margin", bad=0.3, ask=AskRule(share=0.25, debt=9.0, until=4))
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_scales(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cloud(folder: Path) -> ScaleCloud:
    return load_scale_cloud(str(folder), Path("nowhere"))


@pytest.fixture(scope="module")
def package(folder: Path) -> ScalePackage:
    return load_scale_package(str(folder), Path("nowhere"))


@pytest.fixture
async def server(cloud: ScaleCloud) -> AsyncIterator[CloudServer]:
    async with running(cloud, Settings(max_sessions=1)) as server:
        yield server


async def image(package: ScalePackage, policy: ScalePolicy, link: Relay | CloudLink | None) -> Progress:
    """The last Progress, and that every earlier one grew by whole scales."""
    seen = [progress async for progress in decode_scales(package, REQUEST, policy, link)]
    assert all(len(progress.tokens) in OFFSETS for progress in seen)
    assert [progress.done for progress in seen] == [False] * (len(seen) - 1) + [True]
    return seen[-1]


async def over(server: CloudServer, package: ScalePackage, policy: ScalePolicy) -> Progress:
    async with link_to(server) as link:
        return await image(package, policy, link)


@torch.inference_mode()
def alone(cloud: ScaleCloud, model: VARModel, begun: tuple[int, ...] = (), seed: int = 7) -> tuple[int, ...]:
    """What one model draws behind whole scales, without any wire."""
    run = ScaleRun(model, cloud.quantizer, torch.tensor([1]), WARP.guidance - 1)
    tokens = list(begun)
    for scale, side in enumerate(SCALES):
        if len(tokens) <= OFFSETS[scale]:
            noise = scale_noise([seed], scale, side * side, CODES)
            tokens += drawn(run.logits(), WARP, noise)[0].tolist()
        run.push(torch.tensor([tokens[OFFSETS[scale] : OFFSETS[scale + 1]]]))
    return tuple(tokens)


async def test_everything_verified_is_the_clouds_own_image(server, cloud, package) -> None:
    truth = alone(cloud, cloud.model)
    assert truth != alone(cloud, package.model.base)
    always = replace(scale_policy.exact(), mode="ciar")
    for policy in (scale_policy.exact(), *(replace(always, prefix=count) for count in (1, 3))):
        progress = await over(server, package, policy)
        assert progress.tokens == truth
        counters = progress.counters
        assert counters.cloud_forwards == len(SCALES)
        assert counters.rounds == len(SCALES) - policy.prefix and counters.kept == 0
        assert counters.judged == TOKENS - OFFSETS[policy.prefix] > counters.accepted > 0
        assert progress.sources.count(Source.CORRECTED) == counters.judged - counters.accepted
    whole = await over(server, package, scale_policy.cloud_only(len(SCALES)))
    assert whole.tokens == truth and set(whole.sources) == {Source.PREFIX}


@pytest.mark.parametrize("prefix", [1, 2, 3])
async def test_code_is_one_hand_over(server, cloud, package, prefix: int) -> None:
    progress = await over(server, package, scale_policy.code(prefix))
    begun = alone(cloud, cloud.model)[: OFFSETS[prefix]]
    assert progress.tokens == alone(cloud, package.model.base, begun)
    counters = progress.counters
    assert (counters.cloud_forwards, counters.rounds) == (prefix, 0)
    assert counters.kept == TOKENS - OFFSETS[prefix]


async def test_alone_the_device_needs_nobody(cloud, package) -> None:
    progress = await image(package, scale_policy.device_only(), None)
    assert progress.tokens == alone(cloud, package.model.base)
    assert progress.counters.bytes_up == progress.counters.cloud_forwards == 0


@pytest.mark.parametrize("verdict", ["all", "bad"])
async def test_where_it_is_unsure_the_device_asks(server, cloud, package, verdict: str) -> None:
    policy = replace(SOMETIMES, verdict=verdict)
    progress = await over(server, package, policy)
    counters = progress.counters
    assert 0 < counters.rounds < len(SCALES) - 1 and counters.kept > 0
    assert counters.cloud_forwards == 1 + counters.rounds  # one pass for all scales that were skipped
    assert counters.tokens_up <= TOKENS - OFFSETS[1]
    assert (await over(server, package, policy)).tokens == progress.tokens
    last = max(place for place, source in enumerate(progress.sources) if source is not Source.KEPT)
    scale = next(index for index, offset in enumerate(OFFSETS) if offset > last) - 1
    judged = progress.tokens[OFFSETS[scale] : OFFSETS[scale + 1]]
    begun = progress.tokens[: OFFSETS[scale]]
    own = alone(cloud, cloud.model, begun)[OFFSETS[scale] : OFFSETS[scale + 1]]
    assert (judged == own) == (verdict == "all")


KILLS = [(scale_policy.exact(), 2), (scale_policy.exact(), 4), (SOMETIMES, 1)]


@pytest.mark.parametrize(("policy", "at"), KILLS)
async def test_a_killed_server_changes_no_image(cloud, package, policy: ScalePolicy, at: int) -> None:
    server = CloudServer(cloud, Settings(max_sessions=1))
    await server.start()
    truth = await over(server, package, policy)
    async with link_to(server) as link:
        unplugged = Unplugged(link, cloud, server, at)
        progress = await image(package, policy, unplugged)
        await unplugged.server.stop()
    assert progress.tokens == truth.tokens
    assert progress.counters.resumes == 1


def order(cloud: ScaleCloud, **changes: object) -> Open:
    plain = Open(cloud.name, cloud.digest, CODES, "a cat", 7, WARP, prefix_tokens=5, acceptance="all")
    return replace(plain, **changes)  # type: ignore[arg-type]


def ids(*tokens: int) -> Tokens:
    return np.array(tokens, dtype=np.int32)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"prefix_tokens": 4}, InvalidRequest, "whole scales"),
        ({"resume": ids(1, 2)}, InvalidRequest, "whole scales"),
        ({"resume": ids(CODES)}, InvalidRequest, "holds token"),
        ({"acceptance": "coupled"}, InvalidRequest, "judges no scales"),
        ({"alone": "jacobi", "window": 4}, InvalidRequest, "token after token"),
        ({"prompt": "a zeppelin"}, InvalidPrompt, "no class"),
        ({"cloud_digest": "0" * 16}, ModelMismatch, "disagree"),
    ],
)
async def test_impossible_orders_are_refused(server, cloud, changes, kind, words: str) -> None:
    async with link_to(server) as link:
        with pytest.raises(kind, match=words):
            await link.open(order(cloud, **changes))


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        (Draft(1, 4, ids(*range(9)), bad=np.zeros(9, bool)), "base 4"),
        (Draft(1, 5, ids(*range(8)), bad=np.zeros(8, bool)), "one whole scale"),
        (Draft(1, 5, ids(*range(16)), ids(1, 2), bad=np.zeros(16, bool)), "one whole scale"),
        (Draft(1, 5, ids(*[CODES] * 9), bad=np.zeros(9, bool)), "holds token"),
        (Draft(1, 5, ids(*range(9)), parents=ids(*range(9))), "another kind"),
    ],
)
async def test_drafts_that_are_no_scale_are_refused(server, cloud, draft: Draft, words: str) -> None:
    async with link_to(server) as link:
        await link.open(order(cloud))
        await link.send(draft)
        with pytest.raises(InvalidDraft, match=words):
            await link.receive()


async def test_a_repeated_round_gets_its_verdict_again(server, cloud) -> None:
    async with link_to(server) as link:
        await link.open(order(cloud))
        draft = Draft(1, 5, ids(*range(9)), bad=np.zeros(9, bool))
        first = await ask(link, draft)
        again = await ask(link, draft)
        usage = await link.finish()
    assert first.patch is not None and again.patch is not None
    assert np.array_equal(first.patch.tokens, again.patch.tokens)
    assert (usage.rounds, usage.judged) == (1, 9)


async def ask(link: CloudLink, draft: Draft) -> Verdict:
    await link.send(draft)
    return await link.receive()


async def test_a_hand_over_has_twelve_bits_a_token(server, package) -> None:
    """CoDe's message: the frame is the packed tokens and a few fields."""
    sizes = []
    for prefix in (1, 3):
        progress = await over(server, package, scale_policy.code(prefix))
        sizes.append(progress.counters.bytes_down)
    assert sizes[1] - sizes[0] <= (14 - 1) * 1.5 + 8


async def test_the_server_says_what_it_serves(server) -> None:
    async with link_to(server) as link:
        (info,) = (await link.info()).models
    assert (info.scales, info.image_tokens, info.feature_width) == (SCALES, TOKENS, 0)


def test_the_command_finds_the_family_and_refuses_flags_without_use(folder: Path) -> None:
    flags = parse(["--model", str(folder), "--max-sessions", "3"])
    loaded, sessions = loader("var")(flags)
    assert (loaded.labels, sessions) == (LABELS, 3)
    with pytest.raises(InvalidRequest, match="--compile"):
        loader("var")(parse(["--model", str(folder), "--compile"]))


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "x"}, {"gate": "x"}, {"prefix": -1}, {"bad": 2.0}, {"verdict": "x"}, {"use_cloud": False}],
)
def test_impossible_policies_are_refused(wrong) -> None:
    with pytest.raises(InvalidRequest):
        replace(scale_policy.ciar(), **wrong)


def test_the_command_draws_a_picture(folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "cat.png"
    words = ["--model", str(folder), "--prompt", "a cat", "--out", str(out)]
    assert main([*words, "--mode", "device-only"]) == 0
    assert render.read_settings(out)["counters"]["kept"] == TOKENS
    assert main([*words, "--mode", "code"]) == 1
    assert "needs a server" in capsys.readouterr().err
    assert main([*words, "--server", "127.0.0.1:1", "--retry-s", "0", "--prefix", "1"]) == 3
    assert main([*words, "--seed", "-1"]) == 2


async def test_a_gate_without_thresholds_is_refused(server, package) -> None:
    with pytest.raises(InvalidRequest, match="var-device"):
        await over(server, package, scale_policy.ciar(1, "entropy"))
