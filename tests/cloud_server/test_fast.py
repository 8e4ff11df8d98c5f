"""Every fast path against the plain one: half-width weights, packed weights, compiled forwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cloud_server import cli
from cloud_server.engine import Engine
from cloud_server.forward import Compiled, Eager, Rows
from cloud_server.loaders import loader
from cloud_server.packed import PackedLinear, pack, packable
from cloud_server.session import Job
from shared.decoding.warp import Warp
from shared.errors import InvalidRequest
from shared.models.kv_cache import KVCache
from shared.models.zoo import CloudModel, load_cloud
from tests.cloud_server.rig import base_image, draw_all, order, spoil
from tests.cloud_server.test_engine import features
from tests.tiny import build_tiny_model, full_log_probs

# torch.compile imports parts of torch that warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
T, V = 16, 32
# Of log-probabilities, mean over all ids and places. bf16 keeps 8 bits of each number, fp16 11.
TOLERANCE = {torch.bfloat16: 0.06, torch.float16: 0.008}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> CloudModel:
    return load_cloud(str(folder), folder, dtype)


# ---- half-width weights


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_half_width_distributions_are_close(folder: Path, cloud: CloudModel, dtype: torch.dtype) -> None:
    """Mean difference of log-probabilities, over 32 images; probabilities themselves are fp32."""
    half = load(folder, dtype).model
    assert half.gpt.dtype == dtype and half.gpt.rope.dtype == torch.float32
    tokens_NT = torch.randint(V, (32, T), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tokens_T in tokens_NT:
            narrow, wide = (full_log_probs(model, "a red cat", tokens_T) for model in (half, cloud.model))
            assert narrow.dtype == torch.float32
            assert (narrow - wide).abs().mean() < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_half_width_cache_gives_what_no_cache_gives(folder: Path, dtype: torch.dtype) -> None:
    """Steps and checks through the engine against one forward of the same weights without a cache."""
    cloud = load(folder, dtype)
    engine = Engine(cloud, 1)
    session = engine.open(order(cloud, 5, prefix_tokens=T))
    drawn = draw_all(engine, session)
    with torch.no_grad():
        log_p_TV = full_log_probs(cloud.model, session.order.prompt, torch.tensor(drawn))
    base = full_log_probs(load(folder).model, session.order.prompt, torch.tensor(drawn))
    assert (log_p_TV - base).abs().mean() < TOLERANCE[dtype]
    checked = Engine(cloud, 1)
    other = checked.open(order(cloud, 5))
    while len(other.tokens) < T:
        checked.run([Job(other, np.array(drawn[len(other.tokens) :][:4], dtype=np.int32))])
    agree = np.mean(np.array(other.tokens) == np.array(drawn))
    assert agree > 0.5  # one flip of a near-tie changes all that follows it


def test_features_and_folded_prompts_work_in_half_width(folder: Path) -> None:
    half = load(folder, torch.bfloat16)
    bridge = torch.randn(half.bridge_DF.shape, generator=torch.Generator().manual_seed(0))
    engine = Engine(replace(half, bridge_DF=bridge), 1, fold_prefix=True)
    session = engine.open(order(half))
    engine.run([Job(session, np.array([1, 2], np.int32), np.array([3, 4], np.int32), features([0, 1]))])
    assert len(draw_all(engine, session)) == T


# ---- packed weights


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
@pytest.mark.parametrize("rows", [1, 2, 7, 33])
def test_a_packed_product_is_the_plain_one(dtype: torch.dtype, tolerance: float, rows: int) -> None:
    noise = torch.Generator().manual_seed(rows)
    plain = nn.Linear(48, 80, bias=rows == 7).to(dtype)
    x = torch.randn(rows, 3, 48, generator=noise).to(dtype)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(plain)(x), plain(x), atol=tolerance, rtol=tolerance)


def test_packed_weights_draw_the_same_images(folder: Path, cloud: CloudModel) -> None:
    packed = load(folder)
    pack(packed.model.gpt)
    assert not [part for part in packed.model.gpt.modules() if type(part) is nn.Linear]
    engine = Engine(packed, 2)
    for seed in range(4):
        wanted = order(cloud, seed, prefix_tokens=T)
        session = engine.open(wanted)
        assert draw_all(engine, session) == base_image(cloud, wanted).tolist()
        engine.close(session)


def test_weights_that_cannot_be_packed_say_so() -> None:
    with pytest.raises(InvalidRequest, match="float32 on meta cannot be packed"):
        pack(nn.Sequential(nn.Linear(4, 4, device="meta")))


@pytest.mark.parametrize(
    ("given", "packs"), [({}, True), ({"pack_weights": False}, False), ({"compile": True}, False)]
)
def test_weights_are_packed_unless_told_or_compiled(
    folder: Path, given: dict[str, bool], packs: bool
) -> None:
    served, _ = loader("emoji")(cli.Flags(model=str(folder), models=folder, **given))
    assert isinstance(served, CloudModel)
    assert any(isinstance(part, PackedLinear) for part in served.model.gpt.modules()) == packs


def test_what_cannot_be_packed_is_served_plain_unless_told(folder: Path) -> None:
    """Not every CPU has such a layout for half width."""
    half = {"model": str(folder), "models": folder, "dtype": "fp16"}
    assert not packable(nn.Sequential(nn.Linear(4, 4, device="meta"))) and not packable(nn.Sequential())
    if packable(load(folder, torch.float16).model.gpt):
        assert loader("emoji")(cli.Flags(**half, pack_weights=True))
        return
    served, _ = loader("emoji")(cli.Flags(**half))
    assert isinstance(served, CloudModel)
    assert not any(isinstance(part, PackedLinear) for part in served.model.gpt.modules())
    with pytest.raises(InvalidRequest, match="cannot be packed"):
        loader("emoji")(cli.Flags(**half, pack_weights=True))


# ---- compiled forwards


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> CloudModel:
    """One layer, so that compiling it takes seconds."""
    return load(build_tiny_model(tmp_path_factory.mktemp("small"), layers=1, grid=8, vocab=64))


@pytest.fixture(scope="module")
def compiled(small: CloudModel) -> Iterator[Engine]:
    torch._dynamo.reset()
    engine = Engine(small, 3, compiled=True)
    assert engine.warm() == 4
    yield engine
    torch._dynamo.reset()


def compilations() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_compiled_rounds_are_the_base_token_for_token(small: CloudModel, compiled: Engine) -> None:
    """Guided and not, alone and in ragged batches, short and long: nothing is compiled a second time."""
    before, rng = compilations(), np.random.default_rng(0)
    warps = [Warp(guidance=1.5), Warp(), Warp(guidance=3.0, top_k=9)]
    orders = [order(small, seed, prompt, warp) for seed, (prompt, warp) in
              enumerate(zip(["cat", "a red dog", "a b cat"], warps, strict=True))]  # fmt: skip
    truths = [base_image(small, wanted) for wanted in orders]
    sessions = [compiled.open(wanted) for wanted in orders]
    while running := [index for index, session in enumerate(sessions) if len(session.tokens) < 64]:
        jobs = []
        for index in rng.permutation(running)[: rng.integers(1, 4)]:
            right = truths[index][len(sessions[index].tokens) :][: rng.integers(0, 12)]
            jobs.append(Job(sessions[index], spoil(right, rng.integers(0, 12), 64)))
        compiled.run(jobs)
    assert [session.tokens for session in sessions] == [truth.tolist() for truth in truths]
    assert compilations() == before
    for session in sessions:
        compiled.close(session)


def test_compiled_steps_are_the_base(small: CloudModel, compiled: Engine) -> None:
    wanted = order(small, 11, prefix_tokens=64)
    session = compiled.open(wanted)
    assert draw_all(compiled, session) == base_image(small, wanted).tolist()
    compiled.close(session)


@torch.inference_mode()
def test_compiled_code_counts_a_folded_prompt(small: CloudModel) -> None:
    """Hidden states equal the eager ones where the entry at the start counts several times."""
    torch._dynamo.reset()
    gpt, x = small.model.gpt, torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
    rows = Rows([0, 1, 3], [[8, 9, 10, 10], [20, 21, 22, 23], [8, 9, 9, 9]], [7, 7, 5], [3, 2, 1])
    caches = [KVCache(gpt.config, 4) for _ in range(2)]
    [eager] = Eager(gpt, caches[0])([x], [rows])
    [fast] = Compiled(gpt, caches[1], 4, folds=True)([x], [rows])
    torch.testing.assert_close(fast, eager, atol=1e-5, rtol=1e-5)
    for one, other in zip(caches[0].layers, caches[1].layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=1e-5)


def test_rows_are_padded_with_what_changes_nothing() -> None:
    rows = Rows([4, 5], [[7, 8], [3, 4]], [2, 2], [1, 5]).padded(3, 4)
    assert rows == ([4, 5, 5], [[7, 8, 8, 8], [3, 4, 4, 4], [3, 4, 4, 4]], [2, 2, 2], [1, 5, 5], None)


def test_without_a_compiler_the_option_fails_and_names_it(folder: Path, tmp_path: Path) -> None:
    """A real server whose path holds no program."""
    kept = {name: value for name, value in os.environ.items() if name not in ("CXX", "CC")}
    environment = {**kept, "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "cloud_server.cli", "--model", str(folder), "--port", "0", "--compile"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 1
    assert "error: --compile failed" in ended.stderr and "C++ compiler" in ended.stderr
    assert "Traceback" not in ended.stderr and "serving" not in ended.stderr.replace("serving 32", "")


def test_compiled_and_packed_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--compile", "--pack-weights"]) == 1
    assert "--compile and --pack-weights exclude each other" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_graphs_draw_the_base(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path)
    plain = load(folder)
    engine = Engine(load_cloud(str(folder), folder, device="cuda"), 2, compiled=True)
    engine.warm()
    for seed in range(4):
        wanted = order(plain, seed, prefix_tokens=T)
        session = engine.open(wanted)
        assert draw_all(engine, session) == base_image(plain, wanted).tolist()
        engine.close(session)


@pytest.mark.parametrize("shape", [(1, 64), (65,), (5, 27), (2, 96)])
def test_any_number_of_rows_is_multiplied(shape: tuple[int, ...]) -> None:
    """Beyond 64 rows they are filled up to a step; what comes back is theirs alone."""
    plain = torch.nn.Linear(24, 40)
    x = torch.randn(*shape, 24, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = PackedLinear(plain)(x)
        assert found.shape == (*shape, 40)
        torch.testing.assert_close(found, plain(x), rtol=1e-4, atol=1e-5)
