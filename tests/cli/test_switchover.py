"""``ackgate switchover``, run as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_errors import one_line
from tests.harness import SMALL, Up, ackgate, until, up

TOKEN = "a token to show"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, Path]]:
    """One shard with one replica, whose proxy wants a token; and the file that holds it."""
    folder = tmp_path_factory.mktemp("pair")
    token = folder / "token"
    token.write_text(f"{TOKEN}\n")
    (folder / "pair.yaml").write_text(f"proxy: {{admin: {{token_file: {token}}}}}\n")
    ports = ("--port", "0", "--admin-port", "0")
    with up(folder, *ports, "--shards", "1", "--config", str(folder / "pair.yaml")) as running:
        yield running, token


def test_it_tells_each_step_and_at_last_the_longest_stall(pair: tuple[Up, Path]) -> None:
    running, token = pair
    (before,) = running.topology()["shards"]
    replica = before["replicas"][0]["address"]
    result = ackgate("switchover", before["id"][:7], "--admin", running.admin_url, "--token-file", str(token))
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.partition("; ")[::2]
    assert first == f"{replica} leads shard {before['id']}, {before['primary']['address']} follows it"
    assert second.startswith("longest stall: ") and second.endswith(" ms for WAIT\n")
    told = result.stderr.splitlines()
    assert told[0] == f"ackgate: replica {replica} comes close to {before['primary']['address']}"
    assert len(told) == 7 and TOKEN not in result.stderr + result.stdout

    def changed() -> bool:
        (after,) = running.topology()["shards"]
        return bool(after["primary"]["address"] == replica)

    until(changed, "the proxy shows it")
    with running.client() as client:
        assert client.set("key", "value") and client.wait(1, 10_000) == 1


def test_as_json_each_step_is_a_line(pair: tuple[Up, Path]) -> None:
    running, token = pair
    (before,) = running.topology()["shards"]
    to = before["replicas"][0]["node_id"][:10]
    result = ackgate(
        "switchover", before["primary"]["address"], "--to", to, "--json", "--token-file", str(token),
        env={"ACKGATE_ADMIN": running.admin_url},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[0]["step"] == "approach" and lines[-1]["result"] == "done"
    assert lines[-1]["to"] == before["replicas"][0]["address"]
    assert 0 < lines[-1]["stall_ms"] <= lines[-1]["silence_ms"]


def test_mistakes_are_told_in_one_line(pair: tuple[Up, Path], tmp_path: Path) -> None:
    running, token = pair
    ask = ("switchover", "--admin", running.admin_url)
    assert "Authorization: Bearer; the command has --token-file" in one_line(ackgate(*ask, "x"))
    ask = (*ask, "--token-file", str(token))
    where = "`ackgate status` shows addresses, and ids with --json"
    assert one_line(ackgate(*ask, "nope")) == f"ackgate: 'nope' is no shard; {where}"
    (row,) = running.topology()["shards"]
    told = one_line(ackgate(*ask, row["id"], "--to", row["primary"]["address"]))
    assert told == f"ackgate: {row['primary']['address']} is the primary of shard {row['id'][:8]} already"
    assert "timeouts.hold" in one_line(ackgate(*ask, row["id"], "--max-stall", "60"))
    assert "cannot be read" in one_line(ackgate("switchover", "x", "--token-file", str(tmp_path / "none")))
    assert "no proxy answers at http://127.0.0.1:1" in one_line(ackgate("switchover", "x", "--admin", "http://127.0.0.1:1"))
    assert "is not the URL of an admin endpoint" in one_line(ackgate("switchover", "x", "--admin", "127.0.0.1:9121"))
    assert "Missing argument 'SHARD'" in one_line(ackgate("switchover"), 2)


def test_a_shard_without_a_replica_says_so(tmp_path: Path) -> None:
    with up(tmp_path, *SMALL) as running:
        (row,) = running.topology()["shards"]
        told = one_line(ackgate("switchover", row["id"], "--admin", running.admin_url))
        assert told == f"ackgate: shard {row['id'][:8]} has no replica that could lead it; add one first"
        told = one_line(ackgate("drill", row["id"], "--admin", running.admin_url))
        assert told.startswith(f"ackgate: shard {row['id'][:8]} has no replica: nothing would take over")
