"""``ackgate up`` from end to end, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from tests.harness import ENVIRONMENT, PATIENCE_S, SMALL, Up, ackgate, gone, until, up


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything_and_is_a_success(tmp_path: Path, number: int) -> None:
    with up(tmp_path, *SMALL) as running:
        pids = running.pids()
        assert len(pids) == 1 and not gone(pids)
        assert running.client().set("k", "v")
        assert running.stop(number) == 0
        assert gone(pids)
        assert running.process.stdout is not None
        assert running.process.stdout.read() == "", "the ready line is all of standard output"


def test_nothing_survives_a_kill_9(tmp_path: Path) -> None:
    with up(tmp_path, *SMALL) as running:
        pids = running.pids()
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
        until(lambda: gone(pids), "nodes die with their parent")


def test_a_second_signal_ends_it_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    with up(tmp_path, *SMALL) as running:
        pids = running.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # so that the orderly stop has something to wait for
        running.process.send_signal(signal.SIGINT)
        until(lambda: _refused(running), "the proxy stops first")
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(PATIENCE_S) in (0, 130)
        until(lambda: gone(pids), "nodes die")


def _refused(running: Up) -> bool:
    try:
        urllib.request.urlopen(f"{running.admin_url}/healthz", timeout=10).close()
    except OSError:
        return True
    return False


def test_data_and_nodes_are_found_again(tmp_path: Path) -> None:
    with up(tmp_path, *SMALL) as running:
        before = running.topology()["shards"][0]["primary"]
        assert running.client().set("kept", "yes")
        assert running.stop() == 0
    with up(tmp_path, *SMALL) as running:
        after = running.topology()["shards"][0]["primary"]
        assert running.client().get("kept") == "yes"
        assert (after["node_id"], after["address"]) == (before["node_id"], before["address"])
        assert running.stop() == 0


def test_two_run_side_by_side_and_share_nothing(tmp_path: Path) -> None:
    with up(tmp_path, *SMALL, name="one") as one, up(tmp_path, *SMALL, name="two") as two:
        one.client().set("who", "one")
        assert two.client().get("who") is None
        assert set(one.pids()).isdisjoint(two.pids())
        assert [one.stop(), two.stop()] == [0, 0]


def test_one_folder_is_for_one_at_a_time(tmp_path: Path) -> None:
    with up(tmp_path, *SMALL) as running:
        second = ackgate("up", *SMALL, "--dir", str(tmp_path / "data"))
        assert second.returncode == 1
        assert f"in use by process {running.process.pid}" in second.stderr
        assert "Traceback" not in second.stderr
        assert running.client().ping()


def test_the_default_cluster_is_three_shards_with_a_replica_each(tmp_path: Path) -> None:
    with up(tmp_path, "--port", "0", "--admin-port", "0") as running:
        shards = running.topology()["shards"]
        assert [(len(shard["replicas"]), shard["primary"]["health"]) for shard in shards] == [(1, "online")] * 3
        assert sorted(tuple(run) for shard in shards for run in shard["slots"]) == [
            (0, 5460),
            (5461, 10922),
            (10923, 16383),
        ]
        client = redis.Redis.from_url(running.redis_url, decode_responses=True, single_connection_client=True)
        names = {f"key:{number}": str(number) for number in range(100)}
        client.mset(names)
        assert client.mget(list(names)) == list(names.values())
        assert client.wait(1, 5000) == 1
        assert client.waitaof(1, 1, 5000) == [1, 1]
        shown = ackgate("status", "--admin", running.admin_url)
        assert shown.returncode == 0, shown.stderr
        assert "aof always" in shown.stdout
        told = json.loads(ackgate("status", "--json", "--admin", running.admin_url).stdout)
        assert {shard["primary"]["pid"] for shard in told["shards"]} == {shard["primary"]["pid"] for shard in shards}
        assert all(replica["lag"] is not None for shard in told["shards"] for replica in shard["replicas"])
        pids = running.pids()
        assert len(pids) == 6
        assert running.stop() == 0
        assert gone(pids)


def test_fewer_than_three_shards_with_replicas_are_warned_about(tmp_path: Path) -> None:
    result = ackgate("up", "--shards", "1", "--replicas", "1", "--", "true")
    assert result.returncode == 0
    assert "warning: 1 primary cannot elect" in result.stderr


PROGRAM = """
import json, os, sys, redis
client = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)
assert client.set("k", "v") and client.get("k") == "v"
print(json.dumps({name: os.environ[name] for name in ("REDIS_URL", "ACKGATE_ADMIN", "ACKGATE_DIR")}))
sys.exit(7)
"""


def test_a_command_gets_a_cluster_of_its_own_and_its_status_is_ours() -> None:
    result = ackgate("up", "--shards", "1", "--replicas", "0", "--", sys.executable, "-c", PROGRAM)
    assert result.returncode == 7, result.stderr
    told = json.loads(result.stdout)  # standard output is the command's alone
    assert urlsplit(told["REDIS_URL"]).port not in (6379, None)
    assert told["ACKGATE_ADMIN"].startswith("http://127.0.0.1:")
    assert "ready redis://" in result.stderr
    assert not Path(told["ACKGATE_DIR"]).exists(), "a throw-away folder is thrown away"


def test_a_named_folder_is_kept(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import os; print(os.environ['ACKGATE_DIR'])")
    result = ackgate("up", "--shards", "1", "--replicas", "0", "--dir", str(tmp_path / "data"), "--", *command)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "data")
    assert (tmp_path / "data" / "cluster.json").exists()


def test_a_command_ended_by_a_signal_is_128_and_its_number() -> None:
    result = ackgate("up", "--shards", "1", "--replicas", "0", "--", "sh", "-c", "kill -USR1 $$")
    assert result.returncode == 128 + signal.SIGUSR1, result.stderr


def test_sigterm_reaches_the_command_and_everything_goes(tmp_path: Path) -> None:
    script = "trap 'echo got TERM; exit 3' TERM; echo $$; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "up", "--shards", "1", "--replicas", "0", "--", "sh", "-c", script],
        env=ENVIRONMENT | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            child = int(process.stdout.readline())
            process.terminate()
            assert process.stdout.readline() == "got TERM\n"
            assert process.wait(PATIENCE_S) == 3
        finally:
            process.kill()
    until(lambda: gone([child]), "the command is gone")
    assert list(tmp_path.iterdir()) == []


def test_a_command_dies_with_a_kill_9_of_ours(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "proxy",
            "up",
            "--shards",
            "1",
            "--replicas",
            "0",
            "--",
            "sh",
            "-c",
            "echo $$; exec sleep 600",
        ],
        env=ENVIRONMENT | {"TMPDIR": str(tmp_path)},  # what a kill -9 leaves behind is a folder
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
    until(lambda: gone([child]), "the command is gone")
