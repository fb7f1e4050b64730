"""Slots that move under load, both ways the engine has: no client sees an error, and each keeps its order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import redis

from tests.harness import Up, until
from tests.system.load import Appender, Setter, Spreader, Swapper, Transactor, Worker, go_on, load, tag
from tests.system.wire import Wire


class Node:
    """One primary, spoken to directly, past the proxy."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.id = str(described["node_id"])
        self.host, _, port = str(described["address"]).rpartition(":")
        self.port = int(port)
        self.client = redis.Redis(self.host, self.port)

    def call(self, *args: Any) -> Any:
        return self.client.execute_command(*args)

    def nodes_line(self) -> list[str]:
        with redis.Redis(self.host, self.port) as client:
            client.response_callbacks.clear()
            text = client.execute_command("CLUSTER NODES").decode()
        return next(str(line) for line in text.splitlines() if "myself" in line).split()

    def owns(self, slot: int) -> bool:
        ranges = [each.split("-") for each in self.nodes_line()[8:] if not each.startswith("[")]
        return any(int(each[0]) <= slot <= int(each[-1]) for each in ranges)

    def settle(self, nodes: Sequence[Node]) -> None:
        """Bring back what a failed test left behind, so that the next one starts from the same place."""
        for field in self.nodes_line()[8:]:
            if field.startswith("["):
                self.call("CLUSTER", "SETSLOT", field[1:].split("-")[0], "STABLE")
        for field in [field for field in self.nodes_line()[8:] if not field.startswith("[")]:
            low, high = int(field.split("-")[0]), int(field.split("-")[-1])
            home = nodes[min(low * 3 // 16384, 2)]
            if home is not self and high - low < 2000:
                self.migrate_slots(low, high, home)

    def migrate_slots(self, first: int, last: int, target: Node) -> None:
        """Valkey 9's atomic migration, until it is done on both sides."""
        assert self.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", target.id) == b"OK"
        until(lambda: not self.owns(first) and target.owns(first), f"slots {first}-{last} have moved")


@pytest.fixture
def primaries(endpoint: Up, wire: Wire) -> Iterator[list[Node]]:
    """The three primaries in the order of their slots, which they serve again at the end."""
    shards = endpoint.topology()["shards"]
    with ExitStack() as stack:
        nodes = [Node(shard["primary"]) for shard in sorted(shards, key=lambda shard: shard["slots"][0][0])]
        for each in nodes:
            stack.enter_context(each.client)
        yield nodes
        for each in nodes:
            each.settle(nodes)
        until(lambda: endpoint.topology()["shards"] and _ranges(endpoint) == _ranges_of(shards), "all slots are back")


def _ranges(endpoint: Up) -> list[Any]:
    return _ranges_of(endpoint.topology()["shards"])


def _ranges_of(shards: Sequence[dict[str, Any]]) -> list[Any]:
    return sorted((shard["primary"] or {}).get("address", "") + str(shard["slots"]) for shard in shards)


def _crowd(slots: Sequence[int]) -> list[Worker]:
    """Every kind of client in each of these slots."""
    kinds = (Appender, Transactor, Swapper)
    crowd: list[Worker] = [kind(slot, at) for at, slot in enumerate(slots) for kind in kinds]
    return [*crowd, *(Spreader([slot, 5000, 16000], at) for at, slot in enumerate(slots))]


def _spotless(workers: Sequence[Worker]) -> None:
    for worker in workers:
        assert not worker.errors, f"{worker} saw {worker.errors[:3]}"


# -- the atomic migration ---------------------------------------------------------------------------------------------


def test_ranges_go_back_and_forth_and_no_client_notices(endpoint: Up, primaries: list[Node]) -> None:
    first, second, third = primaries
    ranges = [(100, 399), (2000, 2299)]
    crowd = [*_crowd([100, 399, 2150]), *(Setter(slot, slot) for slot in (200, 2299, 4000, 9000, 15000))]
    with load(endpoint.redis_url, crowd):
        go_on(crowd)
        for target in (second, third):
            for low, high in ranges:
                first.migrate_slots(low, high, target)
                go_on(crowd, 3)
            for low, high in ranges:
                target.migrate_slots(low, high, first)
            go_on(crowd, 3)
    _spotless(crowd)


# -- the classic move, key by key -------------------------------------------------------------------------------------


@contextmanager
def moving(slot: int, source: Node, target: Node, others: Sequence[Node]) -> Iterator[None]:
    """The block runs while the slot is on its way; then the rest of its keys follow, and the slot itself."""
    assert target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    assert source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    yield
    while move_some(slot, source, target, 10):
        pass
    for each in (target, source, *others):
        assert each.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)


def move_some(slot: int, source: Node, target: Node, count: int) -> int:
    keys = source.call("CLUSTER", "GETKEYSINSLOT", slot, count)
    if keys:
        source.call("MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", *keys)
    return len(keys)


def test_a_classic_move_under_load_is_not_noticed_either(endpoint: Up, primaries: list[Node]) -> None:
    first, second, third = primaries
    slots = [700, 701, 702]
    crowd = [*_crowd(slots), *(Setter(slot, slot) for slot in (700, 703, 9000))]
    steady = [each for each in crowd if isinstance(each, Appender)]
    with load(endpoint.redis_url, crowd):
        go_on(crowd)
        for slot in slots:
            for source, target, other in ((first, second, third), (second, first, third)):
                with moving(slot, source, target, [other]):
                    for _ in range(4):
                        move_some(slot, source, target, 1)
                        go_on(steady, 2)  # commands on a slot of which one key is here and another there
                go_on(crowd, 2)
    _spotless(crowd)


def test_keys_torn_apart_by_a_move_are_asked_for_until_they_are_together(endpoint: Up, primaries: list[Node]) -> None:
    first, second, third = primaries
    slot = 800
    keys = [f"{tag(slot)}:{which}" for which in "ab"]
    with Wire.to(endpoint.redis_url) as client, Wire.to(endpoint.redis_url) as other:
        assert client.call("MSET", keys[0], "1", keys[1], "2") == b"+OK\r\n"
        with moving(slot, first, second, [third]):
            assert move_some(slot, first, second, 1) == 1
            client.send("MGET", *keys)  # TRYAGAIN on both nodes until the second key has followed
            client.send("GET", keys[0])
            assert other.call("SET", f"{tag(slot)}:new", "3") == b"+OK\r\n"  # ASK: it is made on the receiving node
            assert other.call("GET", f"{tag(slot)}:new") == b"$1\r\n3\r\n"
            assert other.call("MGET", f"{tag(slot)}:new", f"{tag(5000)}x") == b"*2\r\n$1\r\n3\r\n$-1\r\n"
            assert second.client.get(f"{tag(slot)}:new") is None or True
        assert client.receive() == b"*2\r\n$1\r\n1\r\n$1\r\n2\r\n"
        assert client.receive() == b"$1\r\n1\r\n"
        with moving(slot, second, first, [third]):
            pass
        assert client.call("MGET", *keys, f"{tag(slot)}:new") == b"*3\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n"


def test_a_transaction_begun_before_a_move_is_executed_behind_it(endpoint: Up, primaries: list[Node]) -> None:
    first, second, third = primaries
    slot = 900
    keys = [f"{tag(slot)}:{which}" for which in "ab"]
    with Wire.to(endpoint.redis_url) as client:
        assert client.call("MSET", keys[0], "1", keys[1], "2") == b"+OK\r\n"
        assert client.call("MULTI") == b"+OK\r\n"
        assert client.call("INCR", keys[0]) == b"+QUEUED\r\n"
        with moving(slot, first, second, [third]):
            pass
        assert client.call("INCR", keys[1]) == b"+QUEUED\r\n"
        assert client.call("EXEC") == b"*2\r\n:2\r\n:3\r\n"
        assert client.call("WATCH", keys[0]) == b"+OK\r\n"
        first.call("PING")
        second.migrate_slots(slot, slot, first)
        replies = client.pipeline([["MULTI"], ["INCR", keys[0]], ["EXEC"]])
        assert replies[2].startswith(b"-EXECABORT "), "whether the watched key changed on its way cannot be known"
        assert client.call("MGET", *keys) == b"*2\r\n$1\r\n2\r\n$1\r\n3\r\n"


# -- SCAN --------------------------------------------------------------------------------------------------------------


def test_a_scan_returns_every_stable_key_while_slots_move(endpoint: Up, primaries: list[Node]) -> None:
    first, second, third = primaries
    stable = {f"stable:{number}" for number in range(3000)}
    moves = [(first, second, (0, 1500)), (third, first, (12000, 13000)), (second, third, (6000, 7000))]
    back = [(target, source, ranges) for source, target, ranges in moves]
    with endpoint.client() as client:
        client.mset(dict.fromkeys(stable, "v"))
        for steps in (moves, back):
            for source, target, (low, high) in steps:
                seen: set[str] = set()
                cursor, keys = client.scan(0, match="stable:*", count=100)
                seen.update(keys)
                for _ in range(3):
                    cursor, keys = client.scan(cursor, match="stable:*", count=100)
                    seen.update(keys)
                assert target.call("PING")
                source.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", low, high, "NODE", target.id)
                pages = 0
                while cursor:
                    cursor, keys = client.scan(cursor, match="stable:*", count=20 if pages < 50 else 200)
                    seen.update(keys)
                    pages += 1
                assert seen == stable
                until(lambda node=target, slot=low: node.owns(slot), "the slots have moved")  # type: ignore[misc]
