"""The command line as a person meets it: what works, what is refused and how, what a program can read."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import httpx
import pytest
from PIL import Image

from device_client import cli, watch, wish
from device_client.loop import Source
from device_client.policy import MODES
from device_client.render import read_settings
from shared.models.zoo import DevicePackage
from tests.tiny import build_tiny_model

ROOT = Path(__file__).parents[2]
GRID = 6


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny_model(tmp_path_factory.mktemp("tiny"), grid=GRID))


@pytest.fixture(scope="module")
def server(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cloud server in a process of its own: host:port."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "cloud_server.cli", "--model", model, "--port", "0"]
    with (
        log.open("w") as sink,
        subprocess.Popen(command, cwd=ROOT, stderr=sink, env=environment()) as process,
    ):
        try:
            yield f"127.0.0.1:{port_in(log, process)}"
        finally:
            process.terminate()


def port_in(log: Path, process: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        if match := re.search(r"serving .* on [^ ]+:(\d+)", log.read_text()):
            return match[1]
        time.sleep(0.05)
    raise AssertionError(f"no server: {log.read_text()}")


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("CIAR_")}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Calls main with these arguments, in an empty folder, with no CIAR_ variables but the given ones."""
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def call(*args: str, **variables: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["device-client", *args])
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        try:
            status = cli.main()
        except SystemExit as leaving:
            assert isinstance(leaving.code, int)
            status = leaving.code
        return Ran(status, *capsys.readouterr())

    return call


@pytest.fixture
def alone(run: Run, model: str) -> Run:
    """`run` without a cloud."""
    return lambda *args, **variables: run("--model", model, "--mode", "device-only", *args, **variables)


def test_one_picture(run: Run, model: str, server: str) -> None:
    ran = run("--prompt", "a red cat", "--server", server, "--model", model)
    assert (ran.status, ran.err) == (0, "")
    assert "image.png: 'a red cat', seed 0, mode ciar" in ran.out
    assert "cloud call rate" in ran.out and "bytes up" in ran.out and "comm share" in ran.out
    settings = read_settings(Path("image.png"))
    assert settings["prompt"] == "a red cat" and settings["policy"]["gate"] == "entropy"
    assert settings["counters"]["cloud_forwards"] > 0


@pytest.mark.parametrize("mode", ["ciar", "exact", "cloud-only"])
def test_json_is_all_there_is_on_stdout(run: Run, model: str, server: str, mode: str) -> None:
    ran = run(
        "--prompt", "cat", "--server", server, "--model", model, "--mode", mode, "--json", "--map", "map.png"
    )
    answer = json.loads(ran.out)
    assert (ran.status, answer["out"], answer["map"], answer["settings"]["mode"]) == (
        0,
        "image.png",
        "map.png",
        mode,
    )
    counters = answer["counters"]
    assert counters["image_tokens"] == GRID * GRID
    assert counters["call_rate"] == counters["cloud_forwards"] / GRID**2
    assert Path("map.png").exists()
    assert len(answer["trips"]) == counters["rounds"]
    assert all(0 < trip["sent_s"] < trip["arrived_s"] < counters["total_s"] for trip in answer["trips"])


def test_exact_mode_draws_what_the_cloud_would(run: Run, model: str, server: str) -> None:
    for mode in ("exact", "cloud-only"):
        run("--prompt", "a dog", "--server", server, "--model", model, "--mode", mode, "--out", f"{mode}.png")
    pixels = []
    for mode in ("exact", "cloud-only"):
        with Image.open(f"{mode}.png") as image:
            pixels.append(image.tobytes())
    assert pixels[0] == pixels[1]


def test_every_option_arrives(run: Run, model: str, server: str) -> None:
    options = (
        "--gate entropy --threshold -0.5 --span adaptive --prefix-rate 0.25 --acceptance greedy --seed 9 "
        "--guidance 2 --temperature 0.9 --top-k 7 --top-p 0.8 --deadline-s 9 --retry-s 1 --threads 1 "
        "--in-flight 3 --max-forwards 2 --guesses --offline finish"
    )
    ran = run("--prompt", "cat", "--server", server, "--model", model, "--json", *options.split())
    settings = json.loads(ran.out)["settings"]
    assert settings["warp"] == {"guidance": 2.0, "temperature": 0.9, "top_k": 7, "top_p": 0.8}
    policy = settings["policy"]
    assert (policy["gate"], policy["threshold"], policy["acceptance"]) == ("entropy", -0.5, "greedy")
    assert (policy["in_flight"], policy["max_forwards"], policy["guesses"]) == (3, 2, True)
    assert policy["offline"] == "finish"
    assert (policy["prefix_rate"], settings["seed"]) == (0.25, 9) and policy["adaptive_floor"] > 0


def test_the_dials_of_gates_pacing_and_relaxation_arrive(run: Run, model: str, server: str) -> None:
    ask = ("--prompt", "cat", "--server", server, "--model", model, "--json")
    for pacing in ("fixed", "budget", "early", "cost"):
        ran = run(*ask, "--policy", pacing, "--cloud-budget", "0.2", "--gate", "agreement")
        policy = json.loads(ran.out)["settings"]["policy"]
        assert (policy["pacing"], policy["budget"], policy["gate"]) == (pacing, 0.2, "agreement")
    bounds = ["--acceptance", "relaxed", "--relax-k", "3", "--relax-delta", "0.2", "--relax-lambda", "2"]
    policy = json.loads(run(*ask, *bounds, "--gate", "discrete(4)", "--threshold", "1").out)["settings"][
        "policy"
    ]
    assert policy["relaxation"] == {"k": 3, "delta": 0.2, "multiple": 2.0} and policy["gate"] == "discrete(4)"
    policy = json.loads(run(*ask, "--acceptance", "relaxed").out)["settings"]["policy"]
    assert policy["relaxation"] == {"k": 10, "delta": 0.1, "multiple": 0.0}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--mode exact --tree 12", {"tree": {"nodes": 12, "width": 4, "depth": 6}, "guesses": False}),
        ("--mode cloud-only --alone jacobi --window 8", {"alone": "jacobi", "window": 8}),
        ("--mode cloud-only --alone rows --window 2", {"alone": "rows", "window": 2}),
    ],
)
def test_trees_and_what_the_cloud_draws_alone_are_options(
    run: Run, model: str, server: str, options: str, told: dict[str, object]
) -> None:
    command = ("--prompt", "cat", "--server", server, "--model", model, "--json", "--threads", "1")
    found = json.loads(run(*command, *options.split()).out)
    assert told.items() <= found["settings"]["policy"].items()
    assert found["counters"]["cloud_forwards"] < found["counters"]["image_tokens"]


def test_flags_beat_the_environment(alone: Run) -> None:
    ran = alone("--prompt", "cat", "--seed", "5", "--json", CIAR_SEED="4", CIAR_TOP_K="3", CIAR_OUT="env.png")
    answer = json.loads(ran.out)
    assert (answer["settings"]["seed"], answer["settings"]["warp"]["top_k"], answer["out"]) == (
        5,
        3,
        "env.png",
    )


def test_quiet_says_nothing(alone: Run) -> None:
    assert alone("--prompt", "a cat unicorn", "--quiet") == Ran(0, "", "")
    assert Path("image.png").exists()


def test_ignored_words_are_named(alone: Run) -> None:
    ran = alone("--prompt", "a purple cat unicorn")
    assert (
        ran.status == 0 and ran.err == "note: ignoring words the model does not know: 'purple', 'unicorn'\n"
    )


def test_guidance_the_device_did_not_learn_is_noted(alone: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    load = cli.load_device_package

    def distilled(name: str, models: Path) -> DevicePackage:
        package = load(name, models)
        package.model.config = replace(package.model.config, distilled_guidance=2.0)
        return package

    monkeypatch.setattr(cli, "load_device_package", distilled)
    assert "learned guidance 2; at 3 " in alone("--prompt", "cat", "--guidance", "3").err
    assert alone("--prompt", "cat", "--guidance", "2").err == ""


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], '--prompt is missing. try device-client --prompt "a cat" --server host:50051'),
        (["--prompt"], "argument --prompt: expected one argument. see device-client --help"),
        (["--promt", "cat"], "unrecognized arguments: --promt cat. did you mean --prompt? "),
        (["--prompt", "cat", "dog"], "unrecognized arguments: dog"),
        (["--prompt", "cat", "--map", "image.png"], "--out and --map are both 'image.png'"),
        (["--prompt", "cat", "--map", "a.png", "--compare", "a.png"], "--map and --compare are both 'a.png'"),
        (["--prompt", "cat", "--prompts", "file"], "--prompt and --prompts exclude each other"),
        (["--prompt", "cat", "--mode", "device-only", "--compare", "b.png"], "--compare needs a server"),
        (["--prompts", "no-such", "--server", "x:1"], "--prompts 'no-such' cannot be read: "),
        (["--prompt", "cat"], "mode ciar needs a server. try device-client --prompt"),
        (["--prompt", "cat", "--seed", "-1"], "--seed '-1': input should be greater than or equal to 0"),
        (["--prompt", "cat", "--seed", str(2**64)], "0 to 18446744073709551615"),
        (
            ["--prompt", "cat", "--mode", "magic"],
            "--mode 'magic': input should be 'ciar', 'exact', 'cloud-only' or",
        ),
        (["--prompt", "cat", "--gate", "x"], "--gate 'x': allowed: interval, margin, "),
        (["--prompt", "cat", "--acceptance", "x"], "--acceptance 'x': allowed: coupled, "),
        (["--prompt", "cat", "--span", "many"], "--span 'many': "),
        (["--prompt", "cat", "--span", "0"], "1 to 64, or adaptive"),
        (["--prompt", "cat", "--cloud-budget", "2"], "above 0, up to 1"),
        (["--prompt", "cat", "--top-p=nan"], "--top-p 'nan': "),
        (
            ["--prompt", "cat", "--policy", "x"],
            "--policy 'x': input should be 'fixed', 'budget', 'early' or 'cost'",
        ),
        (["--prompt", "cat", "--gate", "discrete(1)"], "--gate 'discrete(1)': allowed: 2 to 64"),
        (["--prompt", "cat", "--relax-k", "0"], "--relax-k '0': "),
        (["--prompt", "cat", "--relax-delta", "2"], "--relax-delta '2': "),
        (["--prompt", "cat", "--promise", "1"], "--promise '1': "),
        (["serve", "--http-port", "99999"], "--http-port '99999': "),
        (["serve", "--prompt", "cat"], "see device-client serve --help"),
    ],
)
def test_a_wrong_command_line_exits_with_2(run: Run, args: list[str], says: str) -> None:
    ran = run(*args)
    assert (ran.status, ran.out) == (2, "") and ran.err.startswith("error: ") and says in ran.err
    assert "Traceback" not in ran.err


def test_a_wrong_variable_is_named(run: Run) -> None:
    ran = run("--prompt", "cat", CIAR_THREADS="0", CIAR_SERVER="x:1")
    assert ran.status == 2 and ran.err.startswith("error: CIAR_THREADS '0': input should be greater")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "cat " * 2500], "the prompt has 10000 characters. allowed: 1 to 1000"),
        (["--prompt", "zzz"], "no word of 'zzz'"),
        (["--prompt", "cat", "--out", "no/cat.png"], "there is no folder 'no'"),
        (["--prompt", "cat", "--out", "cat.jpg"], "allowed endings: .png"),
        (["--prompt", "cat", "--map", "."], "cannot write '.'"),
        (["--prompt", "cat", "--gate", "interval", "--mode", "exact"], "gate cannot be set in mode 'exact'"),
        (["--prompt", "cat", "--threshold", "1", "--cloud-budget", "0.5"], "exclude each other"),
        (["--prompt", "cat", "--relax-k", "5"], "relax_k mean nothing to 'coupled'"),
        (["--prompt", "cat", "--policy", "budget", "--threshold", "1"], "policy 'budget' with threshold 1.0"),
        (["--prompt", "cat", "--policy", "cost", "--mode", "exact"], "pacing cannot be set in mode 'exact'"),
        (["--prompt", "cat", "--promise", "0.1"], "promise 0.1 is not calibrated"),
        (["--prompt", "cat", "--model", "no-such"], "unknown model 'no-such'"),
        (["--prompt", "cat", "--server", "localhost"], "server 'localhost' is not host:port"),
    ],
)
def test_a_refusal_exits_with_1_before_any_network(run: Run, model: str, args: list[str], says: str) -> None:
    begun = time.monotonic()
    ran = run("--model", model, "--server", "192.0.2.1:9", *args)
    assert time.monotonic() - begun < 3, "nobody is asked"
    assert (ran.status, ran.out) == (1, "") and ran.err.startswith("error: ") and says in ran.err
    assert ran.err.count("\n") == 1


def test_no_server_is_said_with_the_next_step(run: Run, model: str) -> None:
    ran = run("--prompt", "cat", "--model", model, "--server", "127.0.0.1:1", "--retry-s", "0")
    assert ran.status == 3 and ran.err.startswith("error: no cloud server at 127.0.0.1:1")
    assert "cloud-server --model" in ran.err and not list(Path().iterdir())


@pytest.mark.parametrize("args", [["--help"], ["serve", "--help"]])
def test_help_has_examples_and_every_flag(run: Run, args: list[str]) -> None:
    ran = run(*args)
    assert ran.status == 0 and "examples:\n  device-client " in ran.out
    kind = cli.Serve if "serve" in args else cli.Draw
    for name in kind.model_fields:
        assert f"--{name.removeprefix('as_').replace('_', '-')}" in ran.out


@pytest.mark.parametrize("mode", ["ciar", "exact"])
def test_a_comparison_shows_both_and_what_differs(run: Run, model: str, server: str, mode: str) -> None:
    wish = ("--prompt", "a dog", "--server", server, "--model", model, "--mode", mode)
    ran = run(*wish, "--json", "--compare", "both.png")
    versus = json.loads(ran.out)["compare"]
    assert versus["counters"]["cloud_forwards"] == GRID**2 and versus["out"] == "both.png"
    assert (versus["differing"] == 0) == (mode == "exact")
    with Image.open("both.png") as both, Image.open("image.png") as image:
        assert both.width > 3 * image.width and both.height > image.height
        red = sum(count for count, colour in both.getcolors(2**16) or [] if colour == (0xD5, 0x5E, 0x00))
        assert bool(red) == bool(versus["differing"])
    table = run(*wish, "--compare", "both.png").out
    assert "both.png: beside the cloud alone" in table
    assert re.search(rf"tokens that differ +{versus['differing']} ", table)


def test_prompts_come_from_a_file(alone: Run) -> None:
    Path("prompts.txt").write_text("# animals\na cat\n\n  a dog  \n")
    ran = alone("--prompts", "prompts.txt", "--out", "it.png", "--map", "who.png", "--json")
    answers = [json.loads(line) for line in ran.out.splitlines()]
    assert [(answer["out"], answer["settings"]["prompt"]) for answer in answers] == [
        ("it-001.png", "a cat"),
        ("it-002.png", "a dog"),
    ]
    assert read_settings(Path("it-002.png"))["prompt"] == "a dog" and Path("who-002.png").exists()


@pytest.mark.parametrize(
    ("text", "status", "says"), [("cat\nzzz\n", 1, "no word of 'zzz'"), ("# none\n", 2, "holds no prompt")]
)
def test_an_impossible_prompt_in_a_file_is_said_first(alone: Run, text: str, status: int, says: str) -> None:
    Path("prompts.txt").write_text(text)
    ran = alone("--prompts", "prompts.txt")
    assert (
        ran.status == status
        and says in ran.err
        and [path.name for path in Path().iterdir()] == ["prompts.txt"]
    )


def test_a_watched_picture_stays_in_the_terminal(alone: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch.HALF not in alone("--prompt", "a cat", "--watch").err, "no terminal"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    err = alone("--prompt", "a cat", "--watch").err
    last = err.rpartition("\x1b[2K")[2]
    assert last.count(watch.HALF) > 200
    with Image.open("image.png") as image:
        red, green, blue = image.convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    assert f"38;2;{red};{green};{blue};48;2" in last


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("--mode e", "exact"),
        ("--gate soft", "softmax"),
        ("--pre", "--prefix-rate"),
        ("s", "serve"),
        ("serve --http-p", "--http-port"),
        ("serve --prom", ""),
    ],
)
def test_bash_completes(run: Run, line: str, offers: str) -> None:
    script = run("completion", "bash").out
    words = line.split()
    ask = (
        f"COMP_WORDS=(device-client {line}); COMP_CWORD={len(words)}; _device_client; echo ${{COMPREPLY[@]}}"
    )
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == (offers, "")


def test_other_shells_complete_as_well(run: Run) -> None:
    for shell in ("zsh", "fish"):
        script = run("completion", shell).out
        assert "watch" in script and "cloud-only" in script and "http-port" in script
    ran = run("completion", "tcsh")
    assert ran.status == 1 and "allowed: bash, zsh, fish" in ran.err


def test_version(run: Run) -> None:
    assert run("--version") == Ran(0, f"device-client {wish.release()}\n", "")


def test_the_words_of_the_wish_are_those_of_the_policy() -> None:
    assert get_args(wish.Mode) == MODES
    assert len(Source) == 6


def test_an_interrupt_exits_with_130(model: str, tmp_path: Path) -> None:
    """192.0.2.1 is nobody (RFC 5737): the command waits for it until it is interrupted."""
    command = [sys.executable, "-m", "device_client.cli", "--prompt", "a cat unicorn"]
    command += ["--server", "192.0.2.1:9", "--model", model, "--out", str(tmp_path / "cat.png")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("note: ")  # the plan stands, the network is next
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert (process.returncode, said) == (130, "interrupted\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_serve_draws_until_it_is_told_to_stop(model: str, number: signal.Signals, status: int) -> None:
    command = [sys.executable, "-m", "device_client.cli", "serve", "--model", model, "--http-port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        ready = re.search(r"at (http://127\.0\.0\.1:\d+)", process.stdout.readline())
        assert ready is not None
        answer = httpx.post(f"{ready[1]}/generate", json={"prompt": "cat", "mode": "device-only"}, timeout=30)
        process.send_signal(number)
    assert (answer.status_code, process.returncode) == (200, status)
