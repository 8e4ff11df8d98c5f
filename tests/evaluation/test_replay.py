"""Decisions of one image, written down and taken again by a pair of another shape over the real wire."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from device_client.progress import Counters, Progress, Source, Trip
from evaluation.cli import main
from evaluation.replay import Decision, Pair, Trace, read_traces, replay, trace_of, write_traces
from shared.config import TransformerConfig
from shared.errors import InvalidRequest
from shared.models.zoo import BUNDLED, load_device_package

SHAPE = TransformerConfig(
    dim=32, n_layer=2, n_head=2, vocab_size=64, grid=4, prefix_len=8, caption_dim=16, ffn_hidden=64
)
TRACE = Trace(16, 2, "agreement", True, (Decision(2, 4, 4), Decision(0, 3, 1), Decision(3, 5, 2)))


def test_decisions_are_read_from_a_finished_image(tmp_path: Path) -> None:
    sources = [Source.PREFIX, *[Source.KEPT] * 2]
    sources += [Source.VERIFIED, Source.CORRECTED, Source.VERIFIED, Source.BONUS]
    trips = (Trip(1, 3, 0, 0, 1, 1, 1), Trip(2, 1, 0, 0, 1, 1, 1))
    image = Progress((0,) * 7, tuple(sources), (None,) * 7, Counters(7), True, trips)
    trace = trace_of(image, "entropy", features=False)
    assert trace == Trace(7, 1, "entropy", False, (Decision(2, 3, 1), Decision(0, 1, 1)))
    write_traces(tmp_path / "trace.json", {"ours": trace})
    assert read_traces(tmp_path / "trace.json") == {"ours": trace}
    (tmp_path / "trace.json").write_text('{"ours": {}}')
    often = replace(image, trips=(trips[0], replace(trips[1], cloud_forwards=8)))
    with pytest.raises(InvalidRequest, match="max-forwards 1"):
        trace_of(often, "entropy", features=False)
    with pytest.raises(InvalidRequest, match="ciar-eval trace"):
        read_traces(tmp_path / "trace.json")


async def test_another_pair_decides_the_same() -> None:
    """The replay raises where a verdict is another; forwards are the prefix's and one a round."""
    pair = Pair.random("tiny", SHAPE, torch.bfloat16, load_device_package("emoji", BUNDLED))
    base = Trace(16, 16, "never", False)
    found = await replay(pair, {"base": base, "ours": TRACE, "short": TRACE.first(8)}, 1)
    (alone,), (ours,), (short,) = found.values()
    assert (alone.tokens, alone.forwards, alone.device_s) == (16, 16, 0.0)
    assert (ours.tokens, ours.forwards) == (16, 5) and ours.device_s > 0 < ours.cloud_s
    assert (short.tokens, short.forwards) == (8, 2)  # one prefix token, one round up to the end
    assert replace(TRACE, image_tokens=8, prefix=1) == TRACE.first(8)


def test_a_replay_needs_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--trace", str(tmp_path / "trace.json")]) == 1
    assert "--random-weights" in capsys.readouterr().err
