"""The pages are true: marked blocks run, named verbs and flags exist, links lead somewhere, what is generated
is up to date. One cloud server and one REST service, with the bundled model, for all blocks."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType

import pytest
from PIL import Image
from pydantic import BaseModel

import cloud_server.cli
import cloud_server.cluster.cli
from device_client.cli import Draw, Serve
from device_client.gateway import listen
from evaluation.cli import EvalApp
from evaluation.reference.__main__ import pages
from evaluation.reference.protocol import protocol_page
from training.cli import TrainApp

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy/README.md")
MODULES = MappingProxyType(
    {
        "cloud-server": "cloud_server.cli",
        "device-client": "device_client.cli",
        "ciar-train": "training.cli",
        "ciar-eval": "evaluation.cli",
    }
)
BLOCK = re.compile(r"^```(\S+)(?: (\w+))?\n(.*?)^```$|^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
READY_S = 120.0


def blocks(page: Path, word: str) -> list[tuple[str, str]]:
    """(language, text) of the blocks of a page that are marked with a word."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(language, text) for language, marked, text, _ in found if marked == word]


@pytest.fixture(scope="module")
def ports() -> dict[str, str]:
    """Free ports in the place of those that the pages name."""
    free = {}
    for port in ("50051", "8080"):
        with listen("127.0.0.1", 0) as held:
            free[port] = str(held.getsockname()[1])
    return free


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, ports: dict[str, str]) -> Iterator[Path]:
    """A folder to run blocks in, with the commands on its PATH and the services of the pages running."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "bin").mkdir()
    for name, words in {"python": "", **{name: f"-m {module}" for name, module in MODULES.items()}}.items():
        command = folder / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        command.chmod(0o755)
    services = {text for page in PAGES for _, text in blocks(page, "service")}
    with ExitStack() as running:
        for service in [running.enter_context(process(folder, localised(text, ports))) for text in services]:
            await_ready(service)
        yield folder


def localised(text: str, ports: dict[str, str]) -> str:
    return re.sub("|".join(ports), lambda found: ports[found[0]], text)


def surroundings(folder: Path) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CIAR_")}
    path = f"{folder / 'bin'}{os.pathsep}{plain['PATH']}"
    return {**plain, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


@contextmanager
def process(folder: Path, text: str) -> Iterator[subprocess.Popen[str]]:
    """A service, ended with the block at the latest."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        ["sh", "-c", f"exec {text.strip()}"],
        cwd=folder, env=surroundings(folder), text=True, stdout=pipe, stderr=subprocess.STDOUT,
    ) as service:  # fmt: skip
        try:
            yield service
        finally:
            service.kill()


def await_ready(service: subprocess.Popen[str]) -> None:
    assert service.stdout is not None
    heard, end = [], time.monotonic() + READY_S
    while time.monotonic() < end and (line := service.stdout.readline()):
        heard.append(line)
        if "serving" in line:
            return
    raise AssertionError("".join(heard))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "runnable")], ids=str)
def test_marked_blocks_run(page: Path, desk: Path, ports: dict[str, str]) -> None:
    """A page's shell blocks in one shell, each of its programs by itself."""
    marked = blocks(page, "runnable")
    shell = "".join(text for language, text in marked if language == "bash")
    programs = [text for language, text in marked if language == "python"]
    before = set(desk.glob("*.png"))
    for command, text in [("bash -euo pipefail -c", shell), *(("python -c", text) for text in programs)]:
        words = [*command.split(), localised(text, ports)]
        done = subprocess.run(
            words, cwd=desk, env=surroundings(desk), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    drawn = set(desk.glob("*.png"))
    assert drawn > before and all(file.stat().st_size > 500 for file in drawn)
    if page.name == "README.md":  # one prompt and seed by three ways
        ways = [Image.open(desk / f"cat-{way}.png").tobytes() for way in ("rest", "openai", "python")]
        assert ways[0] == ways[1] == ways[2]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every line of a block that begins with one of our commands; continued lines are one."""
    for language, _, marked, plain in BLOCK.findall(page.read_text(encoding="utf-8")):
        text = (marked if language in ("bash", "sh") else plain).replace("\\\n", " ")
        for line in text.splitlines():
            words = line.split("#")[0].split()
            while words and "=" in words[0]:
                words = words[1:]
            if words and words[0] in (*MODULES, "ciar-ray"):
                yield words


def fields_of(words: list[str]) -> type[BaseModel]:
    """What declares the flags of a command line. Fails where there is no such verb."""
    if words[0] == "device-client":
        return Serve if words[1:2] == ["serve"] else Draw
    if words[0] in ("cloud-server", "ciar-ray"):
        return cloud_server.cli.Flags if words[0] == "cloud-server" else cloud_server.cluster.cli.Flags
    app = TrainApp if words[0] == "ciar-train" else EvalApp
    verb = app.model_fields[words[1].replace("-", "_")].annotation
    found = [kind for kind in getattr(verb, "__args__", (verb,)) if kind is not type(None)]
    return found[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_named_verbs_and_flags_exist(page: Path) -> None:
    for words in commands(page):
        if words[1:2] == ["completion"]:
            continue
        known = {name.removeprefix("as_") for name in fields_of(words).model_fields} | {"help"}
        flags = [word.partition("=")[0][2:].replace("-", "_") for word in words if word.startswith("--")]
        unknown = [flag for flag in flags if flag not in known and flag.removeprefix("no_") not in known]
        assert not unknown, f"{page.name}: {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        path, _, place = target.partition("#")
        if "://" in target:
            continue
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name}: {target}"
        if place and there.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert place in map(anchor, headings), f"{page.name}: {target}"


def anchor(heading: str) -> str:
    """What a heading's link is called, as GitHub has it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_generated_pages_are_up_to_date() -> None:
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: run `make reference`"


def test_every_field_of_the_protocol_has_a_line() -> None:
    proto = (ROOT / "proto/ciar/v1/ciar.proto").read_text(encoding="utf-8")
    page = protocol_page(proto)
    for name in re.findall(r"^ +(?:\w+ )?[\w.]+ (\w+) = \d+;", proto, re.MULTILINE):
        assert f"| `{name}` |" in page, name
    with pytest.raises(ValueError, match="reserved"):
        protocol_page(proto.replace("message Draft {", "message Draft {\n  reserved 3;"))


def test_the_first_page_is_short_and_the_index_whole() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name
