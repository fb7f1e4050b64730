"""Looks at live primaries: what they show of slots is true, though it is asked for only when it may have changed."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest

from proxy.acks.rounds import ShardRounds
from shard.client import ControlConnection
from tests.acks.rig import Make
from tests.system.nodes import Node, Shard

RESET = ("CONFIG", "RESETSTAT")
OFF = ("CONFIG", "SET", "latency-tracking", "no")
ON = ("CONFIG", "SET", "latency-tracking", "yes")
OTHER = ("CONFIG", "SET", "hz", "10")
LOOK = ("a look",)
STABLE = ("stable",)
MIGRATING = ("migrating",)
Words = tuple[str, ...]


@pytest.fixture
def source(shards: list[Shard]) -> Iterator[Node]:
    """A primary that counts from now on; what a test sets there is undone."""
    primary = shards[0].primary
    for step in (OFF, RESET, ON):  # a RESETSTAT that leaves no trace
        primary.call(*step)
    yield primary
    primary.call("CLUSTER", "SETSLOT", shards[0].slot, "STABLE")
    for step in (OFF, RESET, ON):
        primary.call(*step)


@pytest.fixture
def rounds(source: Node, make: Make) -> ShardRounds:
    return make(partial(ControlConnection.open, source.host, source.port))


@pytest.fixture
def moving(rounds: ShardRounds) -> Callable[[], Awaitable[bool]]:
    """Whether a look shows a slot on its way."""

    async def look() -> bool:
        return (await rounds.verdict(fsync=False)).moving

    return look


def looked_for(node: Node) -> int:
    """How often CLUSTER NODES was asked for."""
    stats = str(node.direct.execute_command("INFO", "commandstats"))  # type: ignore[no-untyped-call]
    return sum(int(calls) for calls in re.findall(r"cluster\|nodes\D+calls\D+(\d+)", stats))


async def test_slots_are_looked_for_only_when_something_changed(
    source: Node, moving: Callable[[], Awaitable[bool]]
) -> None:
    assert not await moving() and not await moving()
    before = looked_for(source)
    assert not any([await moving() for _ in range(20)])
    assert looked_for(source) - before < 10, "the proxy's own probes may have asked meanwhile"


@pytest.mark.parametrize("lacking", ["-latency|histogram", "-config", "-cluster|slots"])
async def test_a_slot_on_its_way_is_seen_by_a_user_who_may_not_ask_for_everything(
    lacking: str, shards: list[Shard], source: Node, make: Make
) -> None:
    source.call("ACL", "SETUSER", "looker", "on", ">secret", "~*", "&*", "+@all", lacking)
    try:
        connect = partial(ControlConnection.open, source.host, source.port, username="looker", password="secret")
        rounds = make(connect)
        assert not (await rounds.verdict(fsync=False)).moving
        source.call("CLUSTER", "SETSLOT", shards[0].slot, "MIGRATING", shards[1].primary.id)
        assert (await rounds.verdict(fsync=False)).moving
    finally:
        source.call("ACL", "DELUSER", "looker")


@pytest.mark.parametrize(
    "history",
    [
        (LOOK, MIGRATING),
        (LOOK, STABLE, LOOK, MIGRATING),
        (LOOK, RESET, MIGRATING),
        (LOOK, MIGRATING, RESET),
        (STABLE, LOOK, RESET, MIGRATING),
        (RESET, LOOK, MIGRATING, RESET),
        (RESET, STABLE, LOOK, LOOK, RESET, MIGRATING),
        (LOOK, OFF, MIGRATING),
        (LOOK, OFF, MIGRATING, ON),
        (OTHER, LOOK, OFF, MIGRATING, ON),
        (OFF, ON, LOOK, LOOK, OFF, MIGRATING, ON),
    ],
    ids=lambda history: ", ".join(" ".join(step) for step in history),
)
async def test_a_slot_on_its_way_is_seen(
    history: tuple[Words, ...], shards: list[Shard], source: Node, moving: Callable[[], Awaitable[bool]]
) -> None:
    setslot = "CLUSTER", "SETSLOT", shards[0].slot
    for step in history:
        if step is LOOK:
            assert not await moving()
        elif step is STABLE:
            source.call(*setslot, "STABLE")
        elif step is MIGRATING:
            source.call(*setslot, "MIGRATING", shards[1].primary.id)
        else:
            source.call(*step)
    assert await moving() and await moving()
    source.call(*setslot, "STABLE")
    assert not await moving() and not await moving()
    source.call(*setslot, "MIGRATING", shards[1].primary.id)
    assert await moving()
