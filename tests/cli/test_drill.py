"""``ackgate drill``: a shard is broken, clients are watched, and all is whole again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.commands.breaking import check_process
from proxy.commands.checked import Load, tags_of
from proxy.commands.common import CommandError
from shard.client import ControlConnection
from tests.cli.test_errors import one_line
from tests.harness import Up, ackgate, until
from tests.system.nodes import configured


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with configured(tmp_path_factory.mktemp("drill"), "cluster: {node_timeout_ms: 1000}\n") as found:
        yield found


def whole(running: Up) -> bool:
    nodes = [node for row in running.topology()["shards"] for node in [row["primary"], *row["replicas"]]]
    return all(node is not None and node["health"] == "online" for node in nodes)


def drilled(running: Up, *args: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shard as it was, and what the drill tells."""
    until(lambda: whole(running), "every node is up")
    row = running.topology()["shards"][0]
    result = ackgate("drill", row["id"][:10], "--admin", running.admin_url, "--json", *args)
    assert result.returncode == 0, result.stderr
    return row, json.loads(result.stdout)


def test_a_killed_primary_is_followed_by_another_and_nothing_confirmed_is_lost(running: Up) -> None:
    row, told = drilled(running, "--seconds", "4")
    mine, others = told["clients"]
    assert (told["shard"], told["how"], told["whole"]) == (row["id"], "kill", True)
    assert 0 < told["led_after"] < mine["longest_stall_ms"] / 1000 + 1
    assert mine["confirmed"] > 0 and mine["lost"] == 0
    assert others["writes"] > 0 and others["errors"] == {} and others["longest_stall_ms"] < mine["longest_stall_ms"]
    events = [event["what"] for event in told["events"]]
    assert events[0].startswith(f"primary {row['primary']['address']} killed")
    assert f"{row['replicas'][0]['address']} leads" in events and events[-1] == "every node is up"
    assert sum(slot["groups"]["the shard"]["confirmed"] for slot in told["timeline"]) == mine["confirmed"]
    assert whole(running), "it is left as it was"
    with running.client() as client:
        assert client.dbsize() == 0, "its keys are gone"


@pytest.mark.slow
def test_a_stopped_primary_goes_on_in_the_end(running: Up) -> None:
    until(lambda: whole(running), "every node is up")
    row = running.topology()["shards"][1]
    result = ackgate("drill", row["primary"]["address"], "--admin", running.admin_url, "--stop", "--seconds", "4")
    assert result.returncode == 0, result.stderr
    assert "0 confirmed writes lost" in result.stdout and "what clients saw" in result.stdout
    assert f"{row['primary']['address']} goes on" in result.stdout
    assert whole(running)


async def test_what_is_missing_or_changed_counts_as_lost(running: Up) -> None:
    port = int(running.redis_url.rpartition(":")[2])
    connect = partial(ControlConnection.open, "127.0.0.1", port)
    load = Load(connect, "control:", pace=0.001)
    group = load.group("all", 0)
    with trio.fail_after(60):
        async with await connect() as connection:
            await connection.pipeline(["SET", "control:{a}:1", "value 1"], ["SET", "control:{a}:2", "another"])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(load.run, group, ["b"], 1)
                while not group.done:  # noqa: ASYNC110 -- a count, no event
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
            group.confirmed = {f"control:{{a}}:{number}": f"value {number}" for number in (1, 2, 3)}
            await load.check()
            assert group.lost == ["control:{a}:2", "control:{a}:3"]
            await connection.call("UNLINK", "control:{a}:1", "control:{a}:2")


def test_hash_tags_lie_where_they_should() -> None:
    tags = tags_of([(0, 100), (16000, 16383)], 20)
    assert len(set(tags)) == 20


def test_a_process_that_is_no_node_is_not_touched() -> None:
    with pytest.raises(CommandError, match="process 1 of this machine is not the node"):
        check_process(1, "127.0.0.1:1")


def test_mistakes_are_told_in_one_line(running: Up, tmp_path: Path) -> None:
    until(lambda: whole(running), "every node is up")
    ask = ("drill", "--admin", running.admin_url)
    assert "'nope' is no shard" in one_line(ackgate(*ask, "nope"))
    address = running.topology()["shards"][0]["primary"]["address"]
    told = one_line(ackgate(*ask, address, "--url", "redis://127.0.0.1:1"))
    assert told.startswith("ackgate: redis://127.0.0.1:1 answers: ") and "give --url" in told
    assert "no proxy answers at" in one_line(ackgate("drill", "x", "--admin", "http://127.0.0.1:1"))
    elsewhere = ackgate("drill", address, "--admin", "http://192.0.2.1:9121")
    assert "where the nodes and a proxy run" in one_line(elsewhere)
    with running.client() as client:
        assert client.ping(), "nothing was broken"
