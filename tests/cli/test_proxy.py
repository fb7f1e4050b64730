"""``ackgate proxy``: the proxy alone, in front of a cluster that something else runs."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.harness import ENVIRONMENT, PATIENCE_S, READY, free_port, until


@contextmanager
def started(*args: str, errors: Path) -> Iterator[subprocess.Popen[str]]:
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", *args],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str], errors: Path) -> str:
    assert process.stdout is not None
    found = process.stdout.readline()
    assert found.startswith("ready "), errors.read_text()
    return found


def test_it_listens_before_the_cluster_is_there_and_is_ready_when_it_is(tmp_path: Path) -> None:
    port = free_port()
    secret = tmp_path / "nodes.password"
    secret.write_text("of-the-nodes\n")
    door = tmp_path / "clients.password"
    door.write_text("of the clients/:@\n")
    config = tmp_path / "proxy.yaml"
    config.write_text(
        f"cluster: {{seeds: ['127.0.0.1:{port}'], password_file: {secret}}}\n"
        f"auth: {{password_file: {door}}}\nlisten: {{port: 0}}\nadmin: {{port: 0}}\n"
    )
    local = tmp_path / "local.yaml"
    local.write_text(
        f"dir: {tmp_path}/data\ncluster: {{shards: 1, replicas: 0, first_port: {port}, password_file: {secret}}}\n"
    )
    told = tmp_path / "proxy.err"
    with started("proxy", "--config", str(config), errors=told) as proxy:
        until(lambda: "waiting for the cluster" in told.read_text(), "the proxy listens")
        with started("shard", "start", "--config", str(local), errors=tmp_path / "shard.err") as cluster:
            line(cluster, tmp_path / "shard.err")
            match = READY.match(line(proxy, told))
            assert match
            client = redis.Redis.from_url(match[1], password="of the clients/:@", decode_responses=True)
            assert client.set("k", "v")
            assert client.get("k") == "v"
            with pytest.raises(redis.AuthenticationError):
                redis.Redis.from_url(match[1], protocol=2).ping()
            assert urllib.request.urlopen(f"{match[2]}/readyz", timeout=10).status == 200

            cluster.send_signal(signal.SIGTERM)
            assert cluster.wait(PATIENCE_S) == 0
        until(lambda: _status(f"{match[2]}/readyz") == 503, "a lost cluster is noticed")
        assert _status(f"{match[2]}/healthz") == 200
        proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(PATIENCE_S) == 0
    assert "of-the-nodes" not in told.read_text()
    assert "of the clients" not in told.read_text()


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
