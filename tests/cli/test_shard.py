"""``ackgate shard`` and ``ackgate status``, on real nodes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ENVIRONMENT, PATIENCE_S, ackgate


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "password"
    path.write_text("open-sesame\n")
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, secret: Path) -> Iterator[tuple[Path, list[str], Path]]:
    """A cluster with a password, kept up by ``ackgate shard start``: (its folder, its nodes, its configuration)."""
    folder = tmp_path_factory.mktemp("cluster")
    config = folder / "local.yaml"
    config.write_text(f"dir: {folder}/.ackgate\ncluster: {{shards: 2, aof: everysec, password_file: {secret}}}\n")
    errors = (folder / "err").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "shard", "start", "--config", str(config)],
        cwd=folder,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    with errors, process:
        try:
            assert process.stdout is not None
            word, *nodes = process.stdout.readline().split()
            assert word == "ready", (folder / "err").read_text()
            yield folder, nodes, config
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


def check_picture(told: dict[str, Any], nodes: list[str]) -> None:
    assert told["ok"] is True
    assert [shard["slots"] for shard in told["shards"]] == [[[0, 8191]], [[8192, 16383]]]
    shown = [node for shard in told["shards"] for node in [shard["primary"], *shard["replicas"]]]
    assert sorted(node["address"] for node in shown) == sorted(nodes)
    assert {node["aof"] for node in shown} == {"everysec"}


def test_start_says_which_nodes_serve(cluster: tuple[Path, list[str], Path]) -> None:
    assert len(cluster[1]) == 4


def test_fewer_than_three_primaries_are_warned_about(cluster: tuple[Path, list[str], Path]) -> None:
    assert "ackgate: warning: 2 primaries cannot elect" in (cluster[0] / "err").read_text()


def test_status_by_seed_with_a_password(cluster: tuple[Path, list[str], Path], secret: Path) -> None:
    _, nodes, _ = cluster
    refused = ackgate("status", "--seed", nodes[0])
    assert refused.returncode == 1
    assert "NOAUTH" in refused.stderr
    shown = ackgate("status", "--json", "--seed", nodes[0], "--password-file", str(secret))
    assert shown.returncode == 0, shown.stderr
    check_picture(json.loads(shown.stdout), nodes)


def test_status_by_configuration_needs_nothing_else(cluster: tuple[Path, list[str], Path]) -> None:
    _, nodes, config = cluster
    check_picture(json.loads(ackgate("shard", "status", "--json", "--config", str(config)).stdout), nodes)


def test_status_as_a_table_warns_of_what_waitaof_cannot_tell(cluster: tuple[Path, list[str], Path]) -> None:
    _, nodes, config = cluster
    shown = ackgate("status", "--config", str(config)).stdout
    assert all(node in shown for node in nodes)
    assert shown.count("aof everysec") == 5
    assert "WAITAOF is not trusted" in shown
    assert "all slots are served" in shown


def test_forming_what_is_formed_finds_all_well(cluster: tuple[Path, list[str], Path], secret: Path) -> None:
    result = ackgate("shard", "form", *cluster[1], "--password-file", str(secret))
    assert result.returncode == 0, result.stderr
    assert "formed: 2 shards with 1 replicas each" in result.stdout


def test_forming_with_the_wrong_numbers_is_told(cluster: tuple[Path, list[str], Path], secret: Path) -> None:
    result = ackgate("shard", "form", *cluster[1][:3], "--password-file", str(secret))
    assert result.returncode == 1
    assert "need 2 different nodes, 3 were given" in result.stderr
    assert "Traceback" not in result.stderr


def test_only_one_source_may_be_given() -> None:
    result = ackgate("status", "--seed", "127.0.0.1:1", "--admin", "http://127.0.0.1:1")
    assert result.returncode == 2
    assert "one of --admin, --config and --seed" in result.stderr
