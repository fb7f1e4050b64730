"""``ackgate trace``: a write's way as a user sees it, and as a machine does."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ENVIRONMENT, Up, ackgate, until
from tests.system.nodes import configured, shards_of

STEPS = ["dispatch", "execute", "relay", "replicate", "persist"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Replicas may be stopped for a while here without being taken for dead."""
    with configured(tmp_path_factory.mktemp("trace"), "cluster: {node_timeout_ms: 10000}", "--shards", "2") as found:
        yield found


def traced(running: Up, *args: str) -> dict[str, Any]:
    result = ackgate("trace", "--admin", running.admin_url, "--json", *args)
    assert (result.returncode, result.stderr) == (0, "")
    picture = json.loads(result.stdout)
    assert isinstance(picture, dict)
    return picture


def told(running: Up, *args: str, status: int = 1) -> str:
    """The one line that a faulty call is answered with."""
    result = ackgate("trace", "--admin", running.admin_url, *args)
    assert (result.returncode, result.stdout) == (status, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("ackgate: ")
    return line


@pytest.mark.parametrize(
    "words", [["SET", "{k}", "value"], ["RPUSH", "list{k}", "-1", "2"], ["MSET", "{k}1", "a", "{k}2", "b"]]
)
def test_the_eight_steps_come_one_after_the_other(running: Up, words: list[str]) -> None:
    """Also of a command that control splits, as far as one shard has it all."""
    picture = traced(running, *words)
    way = picture["way"]
    assert [row["name"] for row in way] == ["write", "route", "done", "ack", "replicate", "ack", "persist", "fsynced"]
    assert [row["number"] for row in way] == list(range(1, 9))
    at = [row["at_ms"] for row in way]
    assert at[0] == 0 < at[1] < at[2] < at[3]
    assert at[4] == at[2] < at[5] == at[6] <= at[7]
    steps = picture["steps_ms"]
    assert list(steps) == STEPS and min(steps.values()) >= 0
    assert sum(steps[name] for name in STEPS[:3]) == pytest.approx(at[3], abs=0.01)
    assert sum(steps[name] for name in ("dispatch", "execute", "replicate", "persist")) == pytest.approx(
        at[7], abs=0.01
    )
    assert picture["round_trip_ms"] >= at[2], "the application waits for what the proxy saw, and the way to it"


def test_shard_nodes_and_offsets_are_those_of_the_cluster(running: Up) -> None:
    picture = traced(running, "SET", "key", "value")
    [shard] = [
        shard
        for shard in running.topology()["shards"]
        if any(first <= picture["slot"] <= last for first, last in shard["slots"])
    ]
    assert (picture["shard"], picture["primary"]) == (shard["id"], shard["primary"]["address"])
    [replica] = picture["replicas"]
    assert replica["address"] == shard["replicas"][0]["address"]
    assert replica["offset"] >= picture["offset"] > 0
    assert len(picture["fsync"]["replicas_ms"]) == 1 and picture["fsync"]["primary_ms"] > 0
    assert picture["reply"] == "OK" and picture["notes"] == []
    assert running.client().get("key") == "value", "the write was really made"


def test_wait_and_waitaof_are_sent_behind_it(running: Up) -> None:
    picture = traced(running, "--wait", "1", "--waitaof", "1", "1", "SET", "key", "value")
    wait, waitaof = picture["waits"]
    assert (wait["command"], wait["answer"], wait["error"]) == ("WAIT 1 1000", 1, None)
    assert (waitaof["command"], waitaof["answer"]) == ("WAITAOF 1 1 1000", [1, 1])
    assert wait["ms"] > 0


@pytest.mark.slow
def test_a_replica_that_does_not_acknowledge_is_shown_so(running: Up) -> None:
    shard = shards_of(running)[0]
    with shard.replica.stopped():
        picture = traced(running, "--wait", "1", "--timeout", "50", "SET", shard.key, "value")
        assert picture["waits"][0]["answer"] == 0
        assert picture["steps_ms"]["replicate"] is picture["steps_ms"]["persist"] is None
        assert picture["replicas"][0]["acknowledged_ms"] is None
        assert picture["fsync"]["primary_ms"] > 0 and picture["fsync"]["replicas_ms"] == []
        result = ackgate("trace", "--admin", running.admin_url, "SET", shard.key, "value")
        assert result.returncode == 0
        assert "no acknowledgment" in result.stdout


def test_it_is_drawn_for_people(running: Up) -> None:
    result = ackgate("trace", "--admin", running.admin_url, "--wait", "1", "SET", "key", "value")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("SET by 127.0.0.1:")
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [row[1] for row in rows] == ["write", "route", "done", "ack", "replicate", "ack", "persist", "fsynced"]
    assert [name for row in rows for name in STEPS if name in row[5:]] == STEPS
    assert sum("━" in line for line in lines) == len(STEPS)
    assert any("WAIT 1 1000 answered 1 after" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["GET", "key"], "GET is not a write command"),
        (["SET", "key"], "SET cannot be traced: invalid number of arguments"),
        (["FLUSHALL"], "FLUSHALL cannot be traced: the command has no key arguments"),
        (["NOPE", "key"], "'NOPE' is not a command of the engine"),
        (["MSET", "a", "1", "b", "2"], "several slots"),
        (["--url", "redis://127.0.0.1:1", "SET", "a", "b"], "redis://127.0.0.1:1 does not answer"),
        (["--url", "http://127.0.0.1:1", "SET", "a", "b"], "--url is not the URL of an endpoint"),
        (["--url", "redis://:secret@127.0.0.1:1", "SET", "a", "b"], "use --password-file"),
        (["--password-file", "/nowhere", "SET", "a", "b"], "/nowhere"),
    ],
)
def test_what_cannot_be_traced_is_told_in_one_line(running: Up, words: list[str], text: str) -> None:
    line = told(running, *words)
    assert text in line
    assert "secret" not in line


def test_an_error_of_the_engine_is_told_as_it_is(running: Up) -> None:
    running.client().set("text", "no number")
    assert "ERR value is not an integer or out of range" in told(running, "INCR", "text")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "Missing argument"),
        (["--waitaof", "2", "1", "SET", "a", "b"], "L of --waitaof is 0 or 1"),
        (["--wait", "-1", "SET", "a", "b"], "Invalid value for '--wait'"),
        (["--slowly", "SET", "a", "b"], "No such option"),
    ],
)
def test_a_misused_option_is_told(running: Up, args: list[str], text: str) -> None:
    line = told(running, *args, status=2)
    assert text.lower() in line.lower() and line.endswith("--help")


def test_without_a_proxy_it_is_told_how_to_get_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: connecting is refused
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        result = ackgate("trace", "SET", "key", "value", env={"ACKGATE_ADMIN": url})
    assert (result.returncode, result.stdout) == (1, "")
    assert url in result.stderr and "ackgate up" in result.stderr and result.stderr.count("\n") == 1


def test_a_proxy_that_knows_no_shard_is_told(tmp_path: Path) -> None:
    config = tmp_path / "proxy.yaml"
    with socket.socket() as free, socket.socket() as admin:
        free.bind(("127.0.0.1", 0))
        admin.bind(("127.0.0.1", 0))
        port = admin.getsockname()[1]
        admin.close()
        config.write_text(
            f"cluster: {{seeds: ['127.0.0.1:{free.getsockname()[1]}']}}\nlisten: {{port: 0}}\nadmin: {{port: {port}}}\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "proxy", "--config", str(config)],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:

            def answers() -> bool:
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", port)) == 0

            until(answers, "the admin endpoint is served")
            result = ackgate("trace", "--admin", f"http://127.0.0.1:{port}", "SET", "key", "value")
        finally:
            process.kill()
            process.wait()
    assert (result.returncode, result.stdout) == (1, "")
    assert "knows no shard yet" in result.stderr and "/readyz" in result.stderr


def test_the_endpoints_password_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a very long secret\n")
    text = f"cluster: {{shards: 1, replicas: 0}}\nproxy: {{auth: {{password_file: {secret}}}}}"
    with configured(tmp_path, text) as locked:
        line = told(locked, "SET", "key", "value")
        assert "NOAUTH" in line and "--password-file" in line
        assert traced(locked, "--password-file", str(secret), "SET", "key", "value")["reply"] == "OK"
        result = ackgate(
            "trace", "--admin", locked.admin_url, "SET", "key", "other", env={"REDISCLI_AUTH": "a very long secret"}
        )
        assert result.returncode == 0 and "the shard has no replica" in result.stdout
        line = ackgate("trace", "--admin", locked.admin_url, "SET", "k", "v", env={"REDISCLI_AUTH": "wrong one"}).stderr
        assert "WRONGPASS" in line and "wrong one" not in line
