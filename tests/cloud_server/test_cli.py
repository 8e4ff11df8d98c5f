"""`cloud-server`: what it says, and the status it ends with."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cloud_server import cli

COMMAND = [sys.executable, "-m", "cloud_server.cli"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--model", "nope"], ["unknown model 'nope'", "models with weights here"]),
        (["--model", "anole"], ["weights of model 'anole'", "GAIR/Anole-7b-v0.1", "ciar-train convert"]),
        (
            ["--model", "janus-pro-1b"],
            ["weights of model 'janus-pro-1b'", "deepseek-ai/Janus-Pro-1B", "--family janus --pixels 384"],
        ),
        (
            ["--model", "janus-pro-7b"],
            ["Janus-Pro 7B", "deepseek-ai/Janus-Pro-7B", "ciar-train convert Janus-Pro-7B"],
        ),
        (["--port", "70000"], ["--port 70000 is out of range", "0 to 65535"]),
        (["--metrics-port", "-1"], ["--metrics-port -1 is out of range"]),
    ],
)
def test_an_error_is_one_sentence(
    argv: list[str], says: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--models", str(tmp_path), *argv]) == 1
    written = capsys.readouterr()
    assert written.err.startswith("error: ")
    assert all(part in written.err for part in says)
    assert "Traceback" not in written.err + written.out


def test_missing_weights_name_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--models", str(tmp_path), "--model", "anole"]) == 1
    assert str(tmp_path / "anole") in capsys.readouterr().err


def test_a_port_in_use(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["--model", str(folder), "--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--max-sessions", "x"], "--max-sessions (or CIAR_MAX_SESSIONS) 'x'"),
        (["--max-sessions", "0"], "greater than or equal to 1"),
        (["--port", "1.5"], "--port (or CIAR_PORT) '1.5'"),
    ],
)
def test_a_value_without_sense(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("argv", "status", "says"), [(["--bogus"], 2, "unrecognized arguments: --bogus")])
def test_an_unknown_flag(argv: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == status
    assert says in capsys.readouterr().err


def test_help_names_every_flag_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for name in cli.Flags.model_fields:
        assert f"--{name.replace('_', '-')} " in text
    assert "cloud-server --model emoji --port 50051" in text


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIAR_MAX_SESSIONS", "3")
    monkeypatch.setenv("CIAR_PORT", "1000")
    flags = cli.parse(["--port", "2000"])
    assert (flags.max_sessions, flags.port, flags.host) == (3, 2000, "127.0.0.1")


def test_folding_prompts_is_a_switch() -> None:
    assert cli.parse(["--fold-prefix"]).fold_prefix and not cli.parse([]).fold_prefix


def test_it_says_when_it_serves_and_stops_when_told(folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, "--model", str(folder), "--port", "0", "--shutdown-timeout", "5"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        sizes, ready = server.stderr.readline(), server.stderr.readline()
        server.send_signal(signal.SIGTERM)
        rest = server.stderr.read()
    assert "per session" in sizes and "may be used: room for" in sizes and "serving 32" in sizes
    assert ready.startswith(f"cloud-server: serving {folder.name} (digest ")
    assert int(ready.rsplit(":", 1)[1]) > 0
    assert server.returncode == 0
    assert "Traceback" not in rest
