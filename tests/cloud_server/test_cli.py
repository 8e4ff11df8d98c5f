"""`cloud-server`: what it says, and the status it ends with."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import astuple
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


def test_flags_beat_the_environment_and_that_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text('port = 1\nmax-sessions = 2\nmax_queue = 3\nlog-format = "json"\ntls-cert = "a.pem"\n')
    monkeypatch.setenv("CIAR_MAX_SESSIONS", "20")
    for argv in (["--config", str(file), "--port", "100"], [f"--config={file}", "--port", "100"]):
        flags = cli.parse(argv)
        assert (flags.port, flags.max_sessions, flags.max_queue) == (100, 20, 3)
        assert (flags.log_format, flags.tls_cert, flags.host) == ("json", Path("a.pem"), "127.0.0.1")
    monkeypatch.setenv("CIAR_CONFIG", str(file))
    assert (cli.parse([]).port, cli.parse([]).max_queue) == (1, 3)


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ("ports = 1", 1, ["sets ['ports']", "allowed: acceptance-floor", "max-sessions"]),
        ('token = "secret"', 1, ["sets ['token']"]),
        ("port = ", 1, ["is no TOML"]),
        (None, 1, ["cannot be read", "No such file"]),
        ('max-sessions = "many"', 2, ["--max-sessions", "'many'", "c.toml count as well"]),
        ("port = 70000", 1, ["--port 70000 is out of range"]),
    ],
)
def test_a_file_without_sense(
    text: str | None, status: int, says: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    if text is not None:
        file.write_text(text)
    assert cli.main(["--config", str(file)]) == status
    written = capsys.readouterr().err
    assert all(part in written for part in says) and "Traceback" not in written


def test_every_flag_reaches_the_server(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("correct-horse-battery-staple\n")
    words = (
        "--max-sessions 3 --max-queue 4 --queue-timeout 5 --max-per-caller 6 --max-rate 7 "
        "--max-prompt-chars 8 --max-span 9 --max-message-bytes 10000 --idle-timeout 11 "
        "--image-timeout 12 --max-wait-ms 13 "
        "--engine-timeout 14 --shutdown-timeout 15 --metrics-port 16 --metrics-host 17 "
        "--acceptance-floor 0.18 --acceptance-window 19 --host 20 --port 21 --guard-health --fold-prefix"
    )
    flags = cli.parse([*words.split(), "--token-file", str(file)])
    made = cli.settings_of(flags, "another-horse-battery-staple")
    doors, patience = made.doors, made.patience
    assert astuple(doors) == (3, 4, 5.0, 6, 7)
    assert (made.max_prompt_chars, made.max_span, made.max_message_bytes) == (8, 9, 10000)
    assert (patience.idle_s, patience.image_s, astuple(made.pace)) == (11, 12, (0.013, 14))
    assert (made.shutdown_timeout_s, made.metrics_port, made.metrics_host) == (15, 16, "17")
    assert (astuple(made.alarm), made.host, made.port) == ((0.18, 19), "20", 21)
    assert made.health_needs_token and made.fold_prefix and len(made.tokens) == 2


def test_no_flag_takes_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    """Everybody on a machine can read the words of a command line."""
    for flag in ("--token", "--token-value"):
        with pytest.raises(SystemExit):
            cli.main([flag, "correct-horse-battery-staple"])
    assert "unrecognized arguments" in capsys.readouterr().err


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
