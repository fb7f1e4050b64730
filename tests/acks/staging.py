"""What the tests of false numbers stage: shards in step, writes that no replica has, naive fan-out beside the proxy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from tests.acks.naive import Address, Naive, Refused
from tests.harness import Up, until
from tests.system.load import tag
from tests.system.nodes import Node, Shard, owns, shards_of
from tests.system.wire import Wire

ONE = b":1\r\n"
NONE = b":0\r\n"
BOTH = b"*2\r\n:1\r\n:1\r\n"
CALLS = count()


def in_step(running: Up) -> list[Shard]:
    """Today's shards, once a session gets its number for writes to all of them; ``key`` is of each call's own."""
    found: list[Shard] = []
    call = next(CALLS)

    def looks() -> bool:
        found[:] = shards_of(running)
        if not all(owns(shard.primary, shard.slot) for shard in found):
            return False  # slots have moved, which the proxy has not seen yet
        for shard in found:
            shard.key = f"key{call}{tag(shard.slot)}"
        with Wire.to(running.redis_url) as client:
            if any(client.call("SET", shard.key + "step", "in step") != b"+OK\r\n" for shard in found):
                return False
            client.send("WAITAOF", 1, 1, 300)
            return client.receive() == BOTH

    until(looks, "every replica is in step")
    return found


def put(session: Wire, shard: Shard, value: str = "value") -> None:
    assert session.call("SET", shard.key, value) == b"+OK\r\n"


def address(node: Node) -> Address:
    return node.host, node.port


def fan_out(running: Up, fresh: bool = False) -> Naive:
    """It follows the cluster's changes, as a proxy would."""
    return Naive(lambda: [address(shard.primary) for shard in shards_of(running)], fresh)


def lies(naive: Naive) -> bool:
    """Whether it acknowledges by now; a node that is just changing its role may refuse to speak."""
    try:
        return naive.wait(1, 1000) == 1
    except (Refused, OSError):
        return False


def naive_write(naive: Naive, shard: Shard) -> None:
    assert naive.call(address(shard.primary), "SET", shard.key, "naive") == b"+OK\r\n"


def cut(shard: Shard) -> None:
    """End the replica's link: what is written from now on is not even on its way."""
    assert int(shard.primary.call("CLIENT", "KILL", "TYPE", "replica")) >= 1


@contextmanager
def unreplicated(shard: Shard) -> Iterator[None]:
    """What is written within never reaches the replica, which goes on behind it, unless it asks the primary for it."""
    with shard.replica.stopped():
        cut(shard)
        yield


def value_at(node: Node, key: str) -> str | None:
    with node.wire() as wire:
        wire.call("READONLY")
        reply = wire.call("GET", key)
    return None if reply.startswith(b"$-1") else reply.split(b"\r\n")[1].decode()
