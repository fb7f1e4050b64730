"""What a user sees of a mistake: one line on standard error, no traceback, a non-zero exit, no hang."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from proxy import __version__
from proxy.commands.common import explanation
from proxy.errors import UserError
from shard.errors import ShardError
from tests.harness import ROOT, ackgate


def one_line(result: subprocess.CompletedProcess[str], status: int = 1) -> str:
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    told = [line for line in result.stderr.splitlines() if line.startswith("ackgate: ")]
    assert "Traceback" not in result.stderr
    lines = [line for line in told if not line.startswith(("ackgate: starting", "ackgate: warning"))]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_version_tells_what_is_compiled_and_the_python() -> None:
    result = ackgate("--version")
    assert result.returncode == 0
    assert result.stdout.startswith(f"ackgate {__version__} (codec ")
    assert ", data plane " in result.stdout and ", Python 3." in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["up"],
        ["proxy"],
        ["check"],
        ["status"],
        ["switchover"],
        ["drill"],
        ["trace"],
        ["shard"],
        ["shard", "form"],
        ["shard", "start"],
        ["shard", "status"],
    ],
)
def test_every_command_has_help(command: list[str]) -> None:
    result = ackgate(*command, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: ackgate")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["nope"], "No such command 'nope'"),
        (["up", "--shards", "0"], "Invalid value for '--shards'"),
        (["up", "--shard", "3"], "No such option"),
        (["up", "--port", "65536"], "Invalid value for '--port'"),
        (["up", "sleep", "1"], "unexpected extra argument"),
        (["up", "--"], "no command behind --"),
        (["up", "--appendfsync", "often"], "Invalid value for '--appendfsync'"),
        (["proxy"], "Missing option '--config'"),
        (["check"], "Missing argument 'FILE'"),
    ],
)
def test_a_misused_option_is_told_with_where_to_look_and_exits_with_2(args: list[str], text: str) -> None:
    line = one_line(ackgate(*args), status=2)
    assert text.lower() in line.lower()
    assert line.endswith("--help")


def test_a_port_in_use_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = one_line(ackgate("up", "--port", str(port), "--admin-port", "0", "--dir", str(tmp_path / "data")))
        assert f"127.0.0.1:{port}: Address already in use" in line
        assert "--port" in line
        line = one_line(ackgate("up", "--port", "0", "--admin-port", str(port), "--dir", str(tmp_path / "data")))
        assert f"127.0.0.1:{port}: Address already in use" in line
        assert "--admin-port" in line
    assert not (tmp_path / "data").exists()


def test_an_address_that_is_not_ours_is_told(tmp_path: Path) -> None:
    line = one_line(ackgate("up", "--host", "192.0.2.1", "--port", "0", "--admin-port", "0", "--dir", str(tmp_path)))
    assert "192.0.2.1:0: Cannot assign requested address" in line


def test_an_empty_host_is_not_every_address(tmp_path: Path) -> None:
    line = one_line(ackgate("up", "--host", "", "--port", "0", "--admin-port", "0", "--dir", str(tmp_path)))
    assert "host" in line


def test_a_missing_engine_is_told(tmp_path: Path) -> None:
    config = tmp_path / "local.yaml"
    config.write_text("cluster: {binary: /nowhere/valkey-server}\n")
    line = one_line(
        ackgate("up", "--config", str(config), "--port", "0", "--admin-port", "0", "--dir", str(tmp_path / "data"))
    )
    assert "/nowhere/valkey-server" in line


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")  # a file where a folder is needed stops root too, unlike permissions
    line = one_line(ackgate("up", "--port", "0", "--admin-port", "0", "--dir", str(blocked / "data")))
    assert str(blocked) in line
    assert "--dir" in line


def test_a_command_that_does_not_exist_is_told_before_anything_is_started() -> None:
    assert "'no-such-program'" in one_line(ackgate("up", "--", "no-such-program"))


@pytest.mark.parametrize(
    ("command", "text"),
    [("proxy", "cluster: {seeds: ['127.0.0.1:1']}\nlog: {level: loud}\n"), ("up", "proxy:\n  log: {level: loud}\n")],
)
def test_a_faulty_configuration_is_told_with_its_line(tmp_path: Path, command: str, text: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    line = one_line(ackgate(command, "--config", str(config)))
    assert line.startswith(f"ackgate: {config}:2: ")
    assert "log.level: 'loud' is not allowed here; write one of debug" in line


def test_check_lists_every_fault_and_exits_with_1(tmp_path: Path) -> None:
    config = tmp_path / "proxy.yaml"
    config.write_text("clusters:\n  seeds: ['127.0.0.1:1']\nlisten:\n  port: x\n")
    result = ackgate("check", str(config))
    assert result.returncode == 1
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert f"{config}:1: clusters: unknown setting; did you mean cluster?" in lines
    assert lines[-1].startswith(f"{config}:4: listen.port: 'x' is not allowed here; ")


@pytest.mark.parametrize(("name", "command"), [("proxy.yaml", "ackgate proxy"), ("local.yaml", "ackgate up")])
def test_check_accepts_the_examples_and_says_what_they_are_for(name: str, command: str) -> None:
    result = ackgate("check", str(ROOT / "config" / name))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("ok: ")
    assert command in result.stdout


def test_status_without_anything_running_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it and connecting is refused
        port = free.getsockname()[1]
        line = one_line(ackgate("status", "--admin", f"http://127.0.0.1:{port}"))
        assert f"127.0.0.1:{port}" in line
        assert "ackgate up" in line
        assert f"127.0.0.1:{port}" in one_line(ackgate("status", "--seed", f"127.0.0.1:{port}"))
        assert "host:port" in one_line(ackgate("status", "--seed", "nowhere"))


def test_only_the_users_own_mistakes_are_explained() -> None:
    mistake = BaseExceptionGroup(
        "g",
        [ShardError("no engine; install one"), BaseExceptionGroup("h", [UserError("no port"), UserError("no port")])],
    )
    assert explanation(mistake) == "no engine; install one\nno port"
    assert explanation(BaseExceptionGroup("g", [UserError("x"), ValueError("a defect")])) is None
    assert explanation(KeyError("a defect")) is None
