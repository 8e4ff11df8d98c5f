"""One tiny study fills every table and draws every figure; what is in the book is not drawn again."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from device_client.progress import Counters, Progress, Trip
from device_client.progress import Source as Decider
from evaluation import columns
from evaluation.breakeven import costs, row_plot
from evaluation.campaign import Campaign, Source, Turn
from evaluation.cli import main
from evaluation.columns import Column, Sample
from evaluation.comparison import Line, TableSpec, as_csv, fill, markdown
from evaluation.metrics import Looks, Reference
from evaluation.network import PROFILES
from evaluation.page import PLOTS
from evaluation.paper import NO_VARIANT, TABLES
from evaluation.policies import BASE, CIAR, EXACT
from evaluation.positions import share_map
from evaluation.records import WARM_UPS, Book, Record, Setting, record_of
from evaluation.report import REFERENCE_SEED, Jury, make_table, numbered
from evaluation.statistics import exactly
from evaluation.sweeps import Curve, _by_formula, _crossing, parted, ranked_gates, waterfall
from shared.config import CriticConfig
from shared.errors import InvalidRequest
from shared.models.critic import Critic, save_critic
from tests.tiny import WORDS, build_tiny_model

SETTING = Setting("tiny", "cloud", "device", commit="abc", machine="a box")
COUNTERS = Counters(100, cloud_forwards=30, rounds=24, kept=40, judged=60, accepted=30, bytes_up=2000,
                    bytes_down=500, device_s=1.0, cloud_s=0.5, wait_s=0.9, total_s=2.0)  # fmt: skip


def record(seed: int = 0, **changed: object) -> Record:
    plain = Record("ours", "a cat", seed, (1, 2, 3, 4), COUNTERS, draws="d", setting=SETTING)
    return replace(plain, **changed)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of four tokens, and two prompts."""
    folder = build_tiny_model(tmp_path_factory.mktemp("study") / "tiny", grid=2)
    (folder / "prompts.txt").write_text("a cat\na dog on a blue background\n")
    return folder


def test_all_fills_every_table_and_draws_every_figure(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "results"
    ranked = [{"gate": "margin", "auroc": {"value": 0.9}, "wrong": [0.2, 0.1, 0.05, 0.02]}]
    (tmp_path / "auroc.json").write_text(json.dumps(ranked))
    flags = ["--model", str(folder), "--prompts", str(folder / "prompts.txt"), "--images", "2"]
    flags += ["--out", str(out), "--auroc", str(tmp_path / "auroc.json")]
    assert main(["all", "--quick", *flags]) == 0
    for number, spec in TABLES.items():
        with (out / f"table-{number}.csv").open() as file:
            lines = list(csv.DictReader(file))
        assert [line["row"] for line in lines] == [line.name for line in spec.lines]
        for line, read in zip(spec.lines, lines, strict=True):
            drawn = line.row is not None and not line.variant
            assert any(read[column.title] for column in spec.columns) == drawn, line.name
        assert f"## Table {number}. {spec.title}" in (out / "results.md").read_text()
    page = (out / "results.md").read_text()
    assert "ciar-eval all --model" in page and "tiny, cloud" in page and "gate always" in page
    assert "![rtt](figure-rtt.png)" in page and "(no text" not in page
    assert {file.name for file in out.glob("figure-*.png")} == {
        f"figure-{name}.png" for name in PLOTS
    }
    lines = (out / "records.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert {one["link"] for one in told} == set(PROFILES) and all(one["setting"]["machine"] for one in told)
    assert {one["setting"]["engine"] for one in told} == {"eager, weights packed"}
    assert {one["warm"] for one in told} == {True, False}
    exact = [one for one in told if one["row"] == EXACT[0].name and one["warm"]]
    base = {(one["prompt"], one["seed"], one["link"]): one for one in told if one["row"] == BASE.name}
    assert exact and all(
        one["tokens"] == base[one["prompt"], one["seed"], one["link"]]["tokens"] for one in exact
    )
    assert main(["table", "1", *flags]) == 0
    assert (out / "records.jsonl").read_text().splitlines() == lines  # nothing was drawn again


def test_a_critic_of_other_pictures_is_an_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny model draws a few pixels; the critic wants 128 a side, and says so."""
    save_critic(tmp_path / "critic", Critic(CriticConfig(width=8, dim=4), WORDS, []))
    flags = ["--model", str(folder), "--prompts", str(folder / "prompts.txt"), "--images", "1"]
    flags += ["--critic", str(tmp_path / "critic"), "--out", str(tmp_path)]
    assert main(["table", "7", *flags]) == 1
    assert "(128, 128, 3)" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_study_leaves_no_process(folder: Path, tmp_path: Path, number: int) -> None:
    words = [sys.executable, "-m", "evaluation.cli", "table", "8", "--model", str(folder)]
    words += ["--out", str(tmp_path)]
    how = {"stderr": subprocess.PIPE, "start_new_session": True, "text": True}
    signal_before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job may ignore it
    with subprocess.Popen(words, **how) as study:  # type: ignore[call-overload]
        signal.signal(signal.SIGINT, signal_before)
        assert study.stderr is not None and "cold" in study.stderr.readline() + study.stderr.readline()
        study.send_signal(number)
        study.stderr.read()
        assert study.wait(30) == 128 + number
        with pytest.raises(ProcessLookupError):
            os.killpg(study.pid, 0)  # its server and its links were of its group


def test_a_stopped_run_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    images, seen = numbered(("a cat", "a dog"), 2), []
    source = Source(str(folder), folder)
    with Campaign(source, Book(tmp_path / "records.jsonl"), seen.append) as campaign:
        first = campaign.records([Turn(BASE)], images[:1])
        assert [one.warm for one in seen] == [False] * WARM_UPS + [True]
    with Campaign(source, Book(tmp_path / "records.jsonl"), seen.append) as campaign:
        assert campaign.records([Turn(BASE)], images[:1]) == first
        assert len(seen) == WARM_UPS + 1 and not campaign._server  # nothing started
        (both,) = campaign.records([Turn(BASE)], images, warm=False)
        (again,) = campaign.records([Turn(BASE)], images)
    assert both[0] == first[0][0] and both[1].seed == 1 and not both[1].warm
    assert again[1].warm and again[1].tokens == both[1].tokens  # a cold one is no measurement of time


def judged(drawn: np.ndarray, base: np.ndarray, fits: np.ndarray, fits_base: np.ndarray) -> Sample:
    reference = Reference(np.random.default_rng(9).normal(size=(40, 3)))
    pairs = tuple(record(seed) for seed in range(len(drawn)))
    return Sample(pairs, pairs, Looks(drawn, fits, reference), Looks(base, fits_base, reference))


def test_quality_is_the_difference_to_the_base() -> None:
    """Pictures moved by 1 in each of 3 features are 3 further away; paired scores lose their noise."""
    base, noise = np.random.default_rng(1).normal(size=(40, 3)), np.random.default_rng(2).normal(size=40)
    same = judged(base, base, noise, noise)
    assert columns.DISTANCE_CHANGE.figure(same) == columns.SCORE_CHANGE.figure(same) == exactly(0.0)
    centred = base - base.mean(0) + np.random.default_rng(9).normal(size=(40, 3)).mean(0)
    moved = judged(centred + 1, centred, noise + 0.5, noise)
    change, better = columns.DISTANCE_CHANGE.figure(moved), columns.SCORE_CHANGE.figure(moved)
    assert change is not None and change.value == pytest.approx(3.0) and change.low > 1 > 0
    assert better is not None and (better.low, better.high) == pytest.approx((0.5, 0.5))
    few = judged(base[:3], base[:3], noise[:3], noise[:3])
    assert columns.F1.figure(few) is None and columns.DISTANCE.figure(few) is not None
    assert columns.DISTANCE.figure(judged(base[:1], base[:1], noise[:1], noise[:1])) is None


class Colours:
    """An eye of three features, the mean of each colour; every picture fits as well."""

    name = "colours"

    def look(self, pixels_BHW3: Tensor) -> np.ndarray:
        return pixels_BHW3.double().mean((1, 2)).numpy()

    def fits(self, pixels_BHW3: Tensor, captions: list[str]) -> list[float]:
        return [0.5] * len(captions)


def test_a_jury_holds_rows_against_other_pictures_of_the_base(folder: Path, tmp_path: Path) -> None:
    images, spec = numbered(("a cat", "a dog"), 4), TABLES[2]
    lines = tuple(line for line in spec.lines if line.row in (BASE, EXACT[0]))
    with Campaign(Source(str(folder), folder), Book(tmp_path / "records.jsonl")) as campaign:
        filled, body = make_table(replace(spec, lines=lines), campaign, Jury(Colours()), images)
        others = campaign.book.find(_other(campaign, images[0]), warm=False)
    (_, base), (_, exact) = body
    assert not isinstance(base, str) and base == exact and all(figure is not None for figure in base)
    assert others is not None and others.tokens and "Fewer pictures" in filled.notes[-1]


def _other(campaign: Campaign, image: tuple[str, int]) -> tuple[str, str, int, str]:
    return campaign._draws(Turn(BASE)), image[0], REFERENCE_SEED + image[1], "loopback"


def test_a_book_drops_a_torn_line_and_refuses_others(tmp_path: Path) -> None:
    path = tmp_path / "deep/records.jsonl"
    book = Book(path)
    book.add(record())
    assert record_of(json.loads(path.read_text())) == record() == Book(path).find(record().key, warm=True)
    with path.open("a") as file:
        file.write('{"row": "torn')
    book = Book(path)
    book.add(record(1, warm=False))
    assert len(Book(path)) == 2 and len(path.read_text().splitlines()) == 2
    assert book.find(record(1).key, warm=True) is None and book.find(record(1).key, warm=False)
    path.write_text('{"row": "old"}\n')
    with pytest.raises(InvalidRequest, match="line 1"):
        Book(path)


def test_what_is_drawn_differs_with_all_that_matters() -> None:
    policy, warp = {"gate": "entropy"}, {"guidance": 2.0}
    plain = SETTING.draws(policy, warp)
    assert plain == replace(SETTING, commit="other", machine="another").draws(policy, warp)
    changes = [{"cloud_digest": "x"}, {"device_digest": "x"}, {"engine": "compiled"}, {"threads": 2}]
    others = [replace(SETTING, **change).draws(policy, warp) for change in changes]  # type: ignore[arg-type]
    others += [SETTING.draws({"gate": "margin"}, warp), SETTING.draws(policy, {"guidance": 3.0})]
    assert len({plain, *others}) == 7


def test_columns_are_the_methods_counters() -> None:
    cheap = replace(COUNTERS, total_s=1.0, wait_s=0.7)
    sample = Sample((record(0, counters=cheap), record(1, tokens=(1, 2, 0, 0))), (record(0), record(1)))
    values = {
        column.title: column.figure(sample).value  # type: ignore[union-attr]
        for column in (columns.SPEED_UP, columns.STEPS, columns.CALLS, columns.LOCAL, columns.ACCEPTED)
    }
    assert values == pytest.approx(
        {"speed-up": 2 / 1.5, "steps": 100 / 30, "calls %": 0.3, "local %": 0.4, "accepted %": 0.5}
    )
    assert columns.identical(sample).value == 0.5 and columns.differing(sample).value == 0.25
    assert columns.measured_share(sample).value == pytest.approx((0.2 + 0.4) / 3.0)
    assert columns.distance(sample) is None and columns.score(sample) is None
    idle = Sample((record(counters=replace(COUNTERS, cloud_s=0.0)),), (record(),))
    assert columns.per_cloud_second(idle) is None
    sustained = columns.per_cloud_second(sample)
    assert sustained is not None and sustained.value == pytest.approx(1 / COUNTERS.cloud_s)


def test_communication_is_counted_as_the_paper_counts() -> None:
    """25 exchanges (24 rounds and the opening) are 50 messages; 2,500 B are 1 ms at 20 Mb/s."""
    told_s = columns.communication_s(record(), PROFILES["4g"])
    assert told_s == pytest.approx(50 * 0.050 + 0.001) and columns.computing_s(record()) == pytest.approx(1.6)
    share = columns.accounted_share(Sample((record(link="4g"),), (record(link="4g"),)))
    assert share is not None and share.value == pytest.approx(2.501 / 4.101)
    silent = record(counters=replace(COUNTERS, rounds=0, bytes_up=0, bytes_down=0))
    assert columns.communication_s(silent, PROFILES["4g"]) == 0


def test_a_table_shows_ours_beside_the_papers_and_says_what_is_missing() -> None:
    why = "not built yet"
    lines = (Line("ours", CIAR, {"speed-up": "2.5"}), Line("theirs", why=why), Line("other", why=why))
    calls = Column("calls %", lambda sample: exactly(0.304), scale=100)
    spec = TableSpec(1, "A table", lines, (calls,), ("speed-up",))
    body = fill(spec, {0: Sample((), ()), 1: why, 2: why})
    text = markdown(spec, body).splitlines()
    assert text[2] == "| row | calls % | paper: speed-up |" and text[4] == "| ours | 30.4 | 2.5 |"
    assert text[5] == "| theirs | - | - |" and text[-1] == "- theirs, other: not built yet."
    rows = as_csv(spec, body).splitlines()
    assert rows[1:3] == ["ours,loopback,0.304,0.304,0.304,2.5", "theirs,loopback,,,,"]


def test_every_line_of_every_table_is_drawn() -> None:
    assert sorted(TABLES) == list(range(1, 9))
    for spec in TABLES.values():
        assert all(set(line.paper) <= set(spec.paper) and line.link in PROFILES for line in spec.lines)
        assert all(line.row is not None for line in spec.lines)
        assert len({line.name for line in spec.lines}) == len(spec.lines)
    assert "--variants" in NO_VARIANT


def test_break_even_is_where_the_lines_cross() -> None:
    base = Curve("base", tuple((0.005 * n, exactly(1.0 + 0.005 * n)) for n in range(41)))
    ours = Curve("ours", tuple((0.005 * n, exactly(0.5 + 10 * 0.005 * n)) for n in range(41)))
    assert _crossing(base, ours) == "up to 55.6 ms of round trip"  # 0.5 / 9
    fast, slow = (Curve("", tuple((x, exactly(y)) for x, _ in base.points)) for y in (0.1, 9.0))
    assert _crossing(base, fast).startswith("up to 200 ms")
    assert _crossing(base, slow) == "at no round trip"


def test_break_even_by_the_time_of_a_step() -> None:
    """Per token: 0.3 forwards, as long as a step of 10 ms, 0.24 rounds, 10 ms of device: none at 10 ms."""
    base = [record(counters=replace(COUNTERS, cloud_forwards=100, cloud_s=1.0, total_s=3.0))]
    ours = [record(counters=replace(COUNTERS, cloud_s=0.3))]
    cost = costs(ours, base)
    assert (cost.forwards, cost.longer, cost.rounds, cost.device_s) == pytest.approx((0.3, 1.0, 0.24, 0.01))
    assert cost.round_trip_s(0.010) < 0 and cost.round_trip_s(0.040) == pytest.approx(0.018 / 0.24)
    slow = [record(link="4g", counters=replace(COUNTERS, total_s=9.0))]
    plot = row_plot("ours", [(base, ours), (base, slow)])
    line, faster, slower = plot.curves
    assert line.points[10][1].value == 0 and line.points[40][1].value == pytest.approx(75)
    assert faster.points == ((10.0, exactly(0.0)),) and slower.points == ((10.0, exactly(100.0)),)


def test_shares_by_position() -> None:
    kept, verified, corrected = Decider.KEPT, Decider.VERIFIED, Decider.CORRECTED
    sources = np.array([[kept, verified, verified, kept], [kept, corrected, verified, verified]])
    found = share_map("accepted", sources, {verified}, (verified, corrected))
    assert found.counts.tolist() == [[0, 2], [2, 1]] and found.mean == pytest.approx(0.8)
    assert np.isnan(found.shares[0, 0]) and found.shares[0, 1] == 0.5 and found.shares[1, 1] == 1


def test_a_waterfall_is_the_time_of_an_image() -> None:
    def step(device_s: float, cloud_s: float, wait_s: float) -> Progress:
        counters = replace(COUNTERS, device_s=device_s, cloud_s=cloud_s, wait_s=wait_s)
        return Progress((), (), (), counters, False)

    found = waterfall([step(0.0, 0.2, 0.3), step(0.5, 0.2, 0.3), step(0.6, 0.3, 0.7)])
    assert [(part.who, round(part.start_s, 6), round(part.end_s, 6)) for part in found] == [
        ("cloud", 0.0, 0.2), ("network", 0.2, 0.3), ("device", 0.3, 0.8), ("device", 0.8, 0.9),
        ("cloud", 0.9, 1.0), ("network", 1.0, 1.3),
    ]  # fmt: skip


def test_a_waterfall_of_overlapping_rounds_is_no_longer_than_the_image() -> None:
    """The device drew for 0.5 s of a trip of 0.6 s with 0.4 s of model time: the 0.1 s it waited is the way
    back. Who waits from the middle of a trip misses the first of the model's time."""
    assert parted(0.1, 0.4, 0.6) == pytest.approx((0.0, 0.1))
    assert parted(0.3, 0.4, 0.6) == pytest.approx((0.2, 0.1))
    assert parted(0.6, 0.4, 0.6) == pytest.approx((0.4, 0.2)) == parted(0.6, 0.4, 0.0)

    def step(device_s: float, cloud_s: float, wait_s: float, *trips: Trip) -> Progress:
        counters = replace(COUNTERS, device_s=device_s, cloud_s=cloud_s, wait_s=wait_s)
        return Progress((), (), (), counters, False, trips)

    first, void = Trip(1, 4, 0.1, 0.3, 0.9, cloud_s=0.4), Trip(2, 4, 0.5, 0.8, None)
    found = waterfall([step(0.0, 0.2, 0.3), step(0.6, 0.6, 0.4, first, void)])
    assert [(part.who, round(part.start_s, 6), round(part.end_s, 6)) for part in found] == [
        ("cloud", 0.0, 0.2), ("network", 0.2, 0.3), ("device", 0.3, 0.9), ("network", 0.9, 1.0),
    ]  # fmt: skip


def test_rounds_in_flight_are_counted_by_the_clock_alone() -> None:
    """Twice as much model time as waiting: computing is all there was, and nothing is told by formula."""
    hidden = replace(COUNTERS, cloud_s=1.8)
    flags = {"policy": {"in_flight": 4}}
    ours = record(counters=hidden, flags=flags, link="4g")
    sample = Sample((ours,), (record(link="4g"),))
    assert columns.computing_s(ours) == hidden.total_s and columns.measured_s(sample).value == 0
    assert columns.accounted_share(sample) is None and columns.accounted_s(sample) is None
    assert not _by_formula("ours", [ours]).points and _by_formula("base", [record()]).points
    assert ours.pipelined and not record().pipelined


def test_curves_of_another_verb_are_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "auroc.json"
    with pytest.raises(InvalidRequest, match="--auroc"):
        ranked_gates(file)
    short = '[{"gate": "margin", "auroc": {"value": 0.9}, "wrong": [0.2]}]'
    for wrong in (short, '[{"gate": "margin"}]', "{"):
        file.write_text(wrong)
        with pytest.raises(InvalidRequest, match=r"auroc\.json"):
            ranked_gates(file)


def test_numbered_images_have_a_seed_each() -> None:
    assert numbered(("a", "b"), 3) == [("a", 0), ("b", 1), ("a", 2)]
    assert np.unique([seed for _, seed in numbered(("a",), 5)]).size == 5


@pytest.mark.parametrize(
    ("flags", "status", "says"),
    [
        (["table", "9"], 2, "9"),
        (["plot", "pie"], 2, "pie"),
        (["table", "1", "--model", "dalle"], 1, "unknown model 'dalle'"),
        (["table", "1", "--prompts", "nowhere.txt"], 1, "nowhere.txt"),
        (["plot", "auroc"], 1, "--auroc"),
        (["link", "--profile", "3g", "--to", "host:1"], 1, "5g, 4g, wifi, loopback"),
        (["link", "--to", "nowhere"], 1, "host:port"),
    ],
)
def test_bad_flags(
    flags: list[str], status: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if flags[0] == "link" else ["--out", str(tmp_path)]
    assert main([*flags, *out]) == status
    assert says in capsys.readouterr().err


def test_a_variant_draws_with_the_models_own_cloud(tmp_path: Path) -> None:
    """Its folder has another name than what the server serves, and no cloud."""
    model = build_tiny_model(tmp_path / "pair")
    for part in ("device", "vq"):
        shutil.copytree(model / part, tmp_path / "variants" / "layers-2" / part)
    source = Source(str(model), tmp_path, tmp_path / "variants")
    assert source.has("layers-2") and not source.has("layers-3")
    turns = [Turn(EXACT[0]), Turn(EXACT[0], variant="layers-2")]
    with Campaign(source, Book(tmp_path / "records.jsonl"), smoke=True) as campaign:
        ours, theirs = campaign.records(turns, [("a cat", 1)])
    assert ours[0].tokens == theirs[0].tokens
