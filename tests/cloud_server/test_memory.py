"""How many images fit: sizes against real tensors, refusals with numbers, limits read from real files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cloud_server import cli, memory
from cloud_server.engine import ROWS, Engine
from shared.errors import CiarError, InvalidRequest
from shared.models.kv_cache import KVCache
from shared.models.shapes import SHAPES
from shared.models.zoo import load_cloud

MIB = 2**20


def tensor_bytes(cache: KVCache) -> int:
    return sum(store.nbytes for layer in cache.layers for store in (layer.keys, layer.values))


@pytest.mark.parametrize("name", memory.DTYPES)
def test_weights_and_cache_are_what_is_allocated(folder: Path, name: str) -> None:
    dtype = memory.DTYPES[name]
    wants = memory.need(folder, dtype, "cpu")
    model = load_cloud(str(folder), folder, dtype).model
    assert wants.weights == sum(value.nbytes for value in model.state_dict().values())
    assert 3 * wants.cache == tensor_bytes(KVCache(model.config, 3 * ROWS, dtype))
    assert wants.session > wants.cache > 0
    assert wants.encoder == 0


def test_a_session_of_llamagen_xl() -> None:
    """180 KiB per token and row in bf16, 376 positions, two rows."""
    cache, work = memory.session_need(SHAPES["llamagen-xl-256"], torch.bfloat16)
    assert cache == 2 * 376 * 180 * 1024
    assert 0 < work < cache
    assert memory.session_need(SHAPES["anole"], torch.bfloat16)[0] == 2 * 1152 * 512 * 1024


def test_a_text_encoder_counts_where_it_lies(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "model"
    home.mkdir()
    (home / "cloud").symlink_to(folder / "cloud")
    (home / "t5").mkdir()
    sizes = {"encoder.block": 32, "shared.weight": 4, "decoder.block": 9}
    tensors = {name: torch.zeros(size).half() for name, size in sizes.items()}
    save_file(tensors, home / "t5" / "model.safetensors")
    assert memory.need(home, torch.float32, "cpu").encoder == 4 * (32 + 4)
    assert memory.need(home, torch.float32, "cuda").encoder == 0


WANTS = memory.Need(weights=100 * MIB, encoder=20 * MIB, cache=8 * MIB, work=2 * MIB)


@pytest.mark.parametrize(
    ("usable", "asked", "served"),
    [(1000, None, 32), (1000, 50, 50), (150, None, 3), (150, 3, 3), (130, 1, 1)],
)
def test_as_many_as_asked_or_as_fit(usable: int, asked: int | None, served: int) -> None:
    assert memory.sessions(WANTS, usable * MIB, asked) == served


@pytest.mark.parametrize(
    ("usable", "asked", "says"),
    [
        (150, 4, ["4 sessions would need 160 MiB, and 150 MiB may be used", "--max-sessions 3 would fit"]),
        (129, None, ["one session would need 130 MiB", "10 MiB per session", "narrower --dtype"]),
        (50, 2, ["weights 100 MiB, text encoder 20 MiB"]),
    ],
)
def test_what_does_not_fit_is_refused_with_numbers(usable: int, asked: int | None, says: list[str]) -> None:
    with pytest.raises(CiarError) as refused:
        memory.sessions(WANTS, usable * MIB, asked)
    assert all(part in str(refused.value) for part in says), refused.value


def test_the_server_refuses_what_it_could_never_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights of a terabyte, in a file with holes: only its header can be read."""
    (tmp_path / "cloud").mkdir()
    (tmp_path / "cloud" / "config.json").write_bytes((folder / "cloud" / "config.json").read_bytes())
    size = 10**12
    entry = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = json.dumps({"gpt.output.weight": entry}).encode()
    file = tmp_path / "cloud" / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(file, 8 + len(header) + size)
    assert cli.main(["--model", str(tmp_path), "--port", "0", "--dtype", "bf16"]) == 1
    said = capsys.readouterr().err
    assert f"weights {size / 2 / MIB:,.0f} MiB" in said
    assert "one session would need" in said and "per session" in said and "--memory-fraction" in said


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


MEMINFO = "MemTotal:       2000 kB\nMemFree: 10 kB\nMemAvailable:   1000 kB\n"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"proc/meminfo": MEMINFO}, 1_024_000),
        (  # version 2: the parent's limit is the narrower one; dropped file cache is free
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/box/job\n",
                "groups/box/memory.max": "700000\n",
                "groups/box/memory.current": "500000\n",
                "groups/box/memory.stat": "anon 1\ninactive_file 100000\n",
                "groups/box/job/memory.max": "max\n",
                "groups/box/job/memory.current": "400000\n",
            },
            300_000,
        ),
        (  # version 1, its limit seen at the root of a container
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n",
                "groups/memory/memory.limit_in_bytes": "600000",
                "groups/memory/memory.usage_in_bytes": "350000",
            },
            250_000,
        ),
        (  # more used than allowed
            {
                "proc/self/cgroup": "0::/\n",
                "groups/memory.max": "10",
                "groups/memory.current": "20",
            },
            0,
        ),
    ],
)
def test_free_memory_is_what_the_narrowest_limit_leaves(
    files: dict[str, str], free: int, tmp_path: Path
) -> None:
    write(tmp_path, files)
    assert memory.free_memory(tmp_path / "proc", tmp_path / "groups") == free


def test_this_machine_tells_its_free_memory() -> None:
    assert 2**20 < memory.usable_bytes(0.5, "cpu") <= memory.free_memory() < 2**50


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="does not tell"):
        memory.free_memory(tmp_path, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--device", "cuda"]) == 1
    assert "--device cuda is not there" in capsys.readouterr().err


def test_an_engine_holds_no_more_than_was_promised(folder: Path) -> None:
    """Every tensor an engine owns: the model's and its cache's."""
    cloud = load_cloud(str(folder), folder, torch.bfloat16)
    engine = Engine(cloud, 5)
    wants = memory.need(folder, torch.bfloat16, "cpu")
    held = sum(value.nbytes for value in cloud.model.state_dict().values())
    held += sum(tensor_bytes(value) for value in vars(engine).values() if isinstance(value, KVCache))
    assert held == wants.weights + 5 * wants.cache
    assert isinstance(cloud.model, nn.Module)
