"""Trees grown on the device and judged over the real wire; and images that the cloud draws alone."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import AsyncIterator

import numpy as np
import pytest
import torch

from cloud_server.server import CloudServer, Settings, running
from device_client.drafter import Drafter, Step
from device_client.link import CloudLink
from device_client.loop import Progress, Request, Source, decode
from device_client.owned import Owned
from device_client.policy import Policy, policy_for
from device_client.shape import Tree
from device_client.tree import grow
from shared.decoding.acceptance import Relaxation
from shared.decoding.tree import ancestors
from shared.errors import CiarError, InvalidRequest
from shared.messages import Draft, Open, Opened, Usage, Verdict
from shared.models.zoo import CloudModel, DevicePackage
from tests.tiny import WARP, full_log_probs

GRID = 6

TOKENS = 36
REQUEST = Request("a red cat", 5, WARP)
SHAPES = [
    Tree(2, 1, 1),
    Tree(3, 3, 1),
    Tree(8, 2, 3),
    Tree(24, 4, 6),
    Tree(60, 10, 6),
    Tree(6, 1, 6),
    Tree(12, 16, 16),
]


@pytest.fixture
async def server(cloud_model: CloudModel) -> AsyncIterator[CloudServer]:
    async with running(cloud_model, Settings(max_sessions=8)) as server:
        yield server


class Witness(CloudLink):
    """A link that remembers what went over it."""

    usage: Usage | None = None

    async def finish(self) -> Usage:
        """As CloudLink."""
        self.usage = await super().finish()
        return self.usage


async def run(package: DevicePackage, request: Request, policy: Policy, server: CloudServer) -> Progress:
    """The finished image; its counters are those of the cloud."""
    async with Witness(f"127.0.0.1:{server.port}", retry_s=0.0) as link:
        image = [step async for step in decode(package, request, policy, link)][-1]
    counters = image.counters
    assert link.usage is not None
    told = (counters.cloud_forwards, counters.rounds, counters.judged, counters.accepted)
    assert told == (link.usage.cloud_forwards, link.usage.rounds, link.usage.judged, link.usage.accepted)
    assert counters.accepted == image.sources.count(Source.VERIFIED)
    return image


def with_tree(package: DevicePackage, shape: Tree, **changes: object) -> Policy:
    return policy_for("exact", package.calibration, tree=shape, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("guidance", [1.5, 1.0])
async def test_trees_of_any_shape_draw_the_base(
    package: DevicePackage, server: CloudServer, guidance: float
) -> None:
    """All shapes at a time, so that trees share forwards; the device has one guidance row or two."""
    request = dataclasses.replace(REQUEST, warp=dataclasses.replace(WARP, guidance=guidance))
    base = await run(package, request, policy_for("cloud-only", package.calibration), server)
    policies = [with_tree(package, shape) for shape in SHAPES]
    images = await asyncio.gather(*(run(package, request, policy, server) for policy in policies))
    for shape, image in zip(SHAPES, images, strict=True):
        assert image.tokens == base.tokens, shape
        assert image.counters.cloud_forwards == image.counters.rounds < TOKENS
        assert image.counters.judged <= shape.nodes * image.counters.rounds
        assert {Source.CORRECTED, Source.BONUS} >= set(image.sources) - {Source.VERIFIED}


async def test_a_wide_tree_needs_fewer_rounds_than_a_chain(
    package: DevicePackage, server: CloudServer
) -> None:
    chain = await run(package, REQUEST, with_tree(package, Tree(6, 1, 6)), server)
    bushy = await run(package, REQUEST, with_tree(package, Tree(24, 4, 6)), server)
    assert bushy.counters.rounds < chain.counters.rounds


async def test_trees_go_with_a_gate_and_a_prefix(package: DevicePackage, server: CloudServer) -> None:
    """Kept tokens ride along as catch-up in front of the tree, with their features."""
    policy = policy_for("ciar", package.calibration, gate="margin", threshold=-1.5, tree=Tree(12, 3, 4))
    image = await run(package, REQUEST, policy, server)
    assert {Source.PREFIX, Source.KEPT, Source.VERIFIED} <= set(image.sources)
    again = await run(package, REQUEST, policy, server)
    assert again.tokens == image.tokens


async def test_greedy_trees_draw_the_greedy_base(package: DevicePackage, server: CloudServer) -> None:
    base = await run(
        package, REQUEST, policy_for("cloud-only", package.calibration, acceptance="greedy"), server
    )
    image = await run(package, REQUEST, with_tree(package, Tree(8, 2, 4), acceptance="greedy"), server)
    assert image.tokens == base.tokens


@pytest.mark.parametrize(("alone", "window"), [("jacobi", 8), ("sjd", 8), ("rows", 2)])
async def test_the_cloud_draws_alone_over_the_wire(
    package: DevicePackage, server: CloudServer, alone: str, window: int
) -> None:
    base = await run(package, REQUEST, policy_for("cloud-only", package.calibration), server)
    policy = policy_for("cloud-only", package.calibration, alone=alone, window=window)
    image = await run(package, REQUEST, policy, server)
    assert image.counters.cloud_forwards < TOKENS and image.counters.rounds == 0
    assert set(image.sources) == {Source.PREFIX}
    assert (image.tokens == base.tokens) == (alone == "jacobi")


async def test_a_prefix_drawn_by_jacobi_is_the_prefix(package: DevicePackage, server: CloudServer) -> None:
    plain = policy_for("ciar", package.calibration, prefix_rate=0.5, alone="", max_forwards=1)
    quick = dataclasses.replace(plain, alone="jacobi", window=12)
    one, other = [await run(package, REQUEST, policy, server) for policy in (plain, quick)]
    assert one.tokens == other.tokens and one.sources == other.sources
    assert other.counters.cloud_forwards < one.counters.cloud_forwards


def grown(package: DevicePackage, shape: Tree, length: int) -> tuple[list[int], Step, list[Step], np.ndarray]:
    """A tree behind `length` tokens, and the step it was grown from."""
    drafter = Drafter(package, REQUEST.prompt, REQUEST.seed, dataclasses.replace(WARP, guidance=1.0))
    tokens = np.random.default_rng(1).integers(0, 32, length).tolist()
    step = drafter.step(tokens)
    return tokens, step, *grow(drafter, step, length, TOKENS, shape)


def joint(package: DevicePackage, tokens: list[int], path: list[int]) -> float:
    """log q of a path behind tokens, from a forward without a cache."""
    whole = [*tokens, *path]
    padded = torch.tensor([*whole, *[0] * (TOKENS - len(whole))])
    with torch.no_grad():
        log_q = full_log_probs(
            package.model.base, REQUEST.prompt, padded, dataclasses.replace(WARP, guidance=1.0)
        )
    rows = log_q[len(tokens) : len(whole)]
    return float(rows.gather(1, torch.tensor(path)[:, None]).sum())


@pytest.mark.parametrize("shape", [Tree(7, 2, 4), Tree(20, 3, 4)])
def test_a_tree_holds_the_likeliest_paths(package: DevicePackage, shape: Tree) -> None:
    """Against a beam scored by whole forwards: no path left out is likelier than one kept."""
    tokens, _, span, parents = grown(package, shape, 4)
    assert len(span) == shape.nodes
    paths = [[span[n].token for n in [*above, node]] for node, above in enumerate(ancestors(parents))]
    assert len({tuple(path) for path in paths}) == len(paths), "siblings differ"
    values = {tuple(path): joint(package, tokens, path) for path in paths}
    beam: list[tuple[int, ...]] = [()]
    for _ in range(shape.depth):
        wider = {
            (*path, token): joint(package, tokens, [*path, token]) for path in beam for token in range(32)
        }
        offered = {
            path: value
            for path, value in wider.items()
            if sum(other > value for key, other in wider.items() if key[:-1] == path[:-1]) < shape.width
        }
        assert all(
            value <= min(values.values()) + 1e-4 for path, value in offered.items() if path not in values
        )
        beam = sorted(offered, key=lambda path: -offered[path])[: shape.width]


def test_the_likeliest_path_lies_in_the_first_columns(package: DevicePackage) -> None:
    _, step, span, parents = grown(package, Tree(20, 3, 4), 4)
    assert parents[0] == 0 and span[0].token == int(step.log_q_1V.argmax())
    assert span[0].score == step.score and math.isnan(span[1].score)


@pytest.mark.parametrize("length", [TOKENS - 1, TOKENS - 2, TOKENS - 5])
def test_a_tree_ends_with_the_image(package: DevicePackage, length: int) -> None:
    _, _, span, parents = grown(package, Tree(24, 4, 6), length)
    assert len(span) == len(parents) == TOKENS - length
    assert max(len(above) for above in ancestors(parents)) < TOKENS - length


@pytest.mark.parametrize(
    "changes",
    [{"guesses": True}, {"max_forwards": 2}, {"in_flight": 2}, {"acceptance": "rejection"}],
)
def test_what_trees_do_not_go_with_is_refused(package: DevicePackage, changes: dict) -> None:
    with pytest.raises(InvalidRequest, match="tree"):
        policy_for("exact", package.calibration, **{"guesses": False, "tree": Tree(), **changes})


@pytest.mark.parametrize("wrong", [{"nodes": 1}, {"nodes": 65}, {"width": 0}, {"depth": 17}])
def test_impossible_trees_are_refused(wrong: dict) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        Tree(**wrong)


@pytest.mark.parametrize(
    ("accepted", "path"),
    [(1, ()), (2, (0,)), (2, (1, 0)), (2, (0, 7)), (1, (2,))],
)
def test_a_path_that_cannot_be_is_nonsense(accepted: int, path: tuple[int, ...]) -> None:
    order = Open("m", "", 32, "a cat", 0, WARP, 0, "coupled")
    owned = Owned(order)
    owned.begin(Opened("s", TOKENS, np.zeros(0, np.int32), 0, 0.0))
    parents = np.array((0, 0, 1), dtype=np.int32)
    owned.pending.append(Draft(1, 0, np.array((4, 5, 6), dtype=np.int32), parents=parents))
    with pytest.raises(CiarError, match="path"):
        owned.settle(Verdict(1, accepted, 3, 0.0, path=np.array(path, dtype=np.int32)))


async def test_relaxed_trees_strike_further(package: DevicePackage, server: CloudServer) -> None:
    """LANTERN on the tree: a child near the token drawn stands as well."""
    strict = await run(package, REQUEST, with_tree(package, Tree(8, 2, 4)), server)
    relaxation = Relaxation(31, 1.0)  # any code may stand in
    policy = with_tree(package, Tree(8, 2, 4), acceptance="relaxed", relaxation=relaxation)
    image = await run(package, REQUEST, policy, server)
    assert image.counters.cloud_forwards < strict.counters.cloud_forwards
    assert image.tokens != strict.tokens
