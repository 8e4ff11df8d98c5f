"""Clones in the layouts of the real repositories become a picture folder that training reads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.errors import InvalidRequest
from tests.training.clones import write_clones
from training.artwork import is_heldout, keeps, make_artwork, normalise
from training.cli import main
from training.clones import CLONES, STYLES, Name, concept_of, render_svg, slug, unicode_name
from training.data import load_pictures


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All five clones."""
    return write_clones(tmp_path_factory.mktemp("clones"))


def flags(clones: dict[str, Path], out: Path) -> list[str]:
    """The command line of the verb."""
    sources = [word for name, path in clones.items() for word in ("--source", f"{name}={path}")]
    return ["artwork", *sources, "--out", str(out)]


def test_every_layout_becomes_pictures(
    clones: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(clones, tmp_path)) == 0
    assert "16 pictures (noto 2, 3d 2, " in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert {row["key"] for row in rows} == {f"{s}/{c}" for s in STYLES for c in ("1f408", "1f415")}
    by_key = {row["key"]: row for row in rows}
    cat = by_key["twemoji/1f408"]
    assert (cat["name"], cat["tags"], cat["license"]) == ("cat", ["pet"], "CC-BY-4.0")
    assert "Twitter" in cat["attribution"] and cat["orig"] == "packages/svgmoji__twemoji/svg/1F408.svg"
    assert (
        "Ranks.com" in by_key["emojitwo/1f415"]["attribution"] and by_key["emojitwo/1f415"]["orig"] == "dog"
    )
    assert all(row["split"] == ("heldout" if is_heldout(row["key"], 8) else "train") for row in rows)
    written = {path.relative_to(tmp_path).with_suffix("").as_posix() for path in tmp_path.rglob("*.webp")}
    assert written == set(by_key)


def test_artwork_is_centred_and_scaled(clones: dict[str, Path], tmp_path: Path) -> None:
    make_artwork(clones, tmp_path)
    pictures = load_pictures(tmp_path)
    for picture in pictures:
        rows, columns = np.nonzero(picture.rgba[..., 3] > 8)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert max(height, width) == 112 and (width > height) == (picture.name == "cat"), picture.key
        assert abs(rows.min() + rows.max() - 127) <= 1 and abs(columns.min() + columns.max() - 127) <= 1
    ink = {picture.style: tuple(picture.rgba[64, 64]) for picture in pictures if picture.name == "dog"}
    assert ink["noto"] == (255, 0, 0, 255) and ink["twemoji"] == (0, 128, 128, 255)
    assert ink["emojitwo"] == (255, 192, 203, 255)


def test_only_some_clones_are_enough(clones: dict[str, Path], tmp_path: Path) -> None:
    summary = make_artwork({name: clones[name] for name in ("svgmoji", "noto-emoji")}, tmp_path)
    assert summary.pictures == {"noto": 2, "twemoji": 2, "blob": 2}
    # The snowman is drawn by one style only.
    assert not (tmp_path / "blob/2603.webp").exists()


def test_what_cannot_be_drawn_is_named(clones: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(clones["svgmoji"], tmp_path / "svgmoji")
    (broken / "packages/svgmoji__blob/svg/1F408.svg").write_text("<svg")
    summary = make_artwork({"svgmoji": broken, "noto-emoji": clones["noto-emoji"]}, tmp_path / "out")
    assert summary.failed == ("blob/1f408",) and "not drawn: blob/1f408" in str(summary)


def test_the_commit_of_a_clone_is_recorded(clones: dict[str, Path], tmp_path: Path) -> None:
    clone = shutil.copytree(clones["noto-emoji"], tmp_path / "noto-emoji")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "art"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, "-C", str(clone), *command], check=True)
    make_artwork({"svgmoji": clones["svgmoji"], "noto-emoji": clone}, tmp_path / "out")
    row = json.loads((tmp_path / "out/captions.jsonl").read_text().splitlines()[0])
    assert row["source"].startswith("googlefonts/noto-emoji@") and len(row["source"].split("@")[1]) == 10


def test_wrong_sources_are_named(
    clones: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidRequest, match="openmoji"):
        make_artwork({**clones, "openmoji": tmp_path}, tmp_path / "out")
    with pytest.raises(InvalidRequest, match="holds the names"):
        make_artwork({"fxemoji": clones["fxemoji"]}, tmp_path / "out")
    with pytest.raises(InvalidRequest, match="no fxemoji artwork"):
        make_artwork({"svgmoji": clones["svgmoji"], "fxemoji": tmp_path}, tmp_path / "out")
    assert main(flags({"svgmoji": tmp_path}, tmp_path / "out")) == 1
    assert "emoji.json" in capsys.readouterr().err


def test_without_resvg_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(InvalidRequest, match=r"ciar\[artwork\]"):
        render_svg("<svg/>")


def test_selection() -> None:
    thing = Name("thing", (), (), 3, 1)
    kept = ("1f408", "1f468-200d-1f9b0", "1f9d1-200d-1f91d-200d-1f9d1", "1f46a")
    dropped = ("1f44b-1f3fb", "1f1e9-1f1ea", "0023-20e3", "1f550", "1f9b0", "1f468-200d-1f469-200d-1f466")
    assert all(keeps(concept, thing) for concept in kept)
    assert not any(keeps(concept, thing) for concept in dropped)
    assert not keeps("1f500", Name("shuffle tracks button", (), (), 8, 88))


def test_names_of_files_and_concepts() -> None:
    assert concept_of("1F3C3-200D-2642-FE0F") == concept_of("1f3c3_200d_2642") == "1f3c3-200d-2642"
    assert concept_of("a9") == "00a9" and concept_of("zero_keycap") is None
    assert slug("Mrs. Claus") == "mrs-claus"
    wheel = unicode_name("1f6de")
    assert wheel is not None and wheel.name == "wheel"
    assert unicode_name("0030") is None and unicode_name("1f408-200d-2b1b") is None
    assert set(CLONES) == {"noto-emoji", "fluentui-emoji-unicode", "svgmoji", "icon-sets", "fxemoji"}


def test_an_invisible_picture_is_none() -> None:
    assert normalise(Image.new("RGBA", (32, 32))) is None
