"""What is done to two nodes so that one leads in place of the other, on a real pair."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from shard import handover
from shard.binary import find_server
from shard.client import ControlConnection, ReplyError
from shard.settings import ClusterSettings
from shard.supervise import Cluster

SETTING = "cluster-manual-failover-timeout"


@asynccontextmanager
async def pair(folder: Path, **settings: Any) -> AsyncIterator[tuple[ControlConnection, ControlConnection]]:
    """Connections to a primary and to its replica, in step."""
    cluster = Cluster(folder, ClusterSettings(shards=1, replicas=1, **settings))
    await cluster.start()
    try:
        connections = [await ControlConnection.open(host, port) for host, port in cluster.seeds()]
        leads = [(await handover.standing(each)).leads for each in connections]
        primary, replica = connections if leads[0] else connections[::-1]
        with trio.fail_after(20):
            while not (await handover.standing(replica)).linked:  # noqa: ASYNC110 -- asked again
                await trio.sleep(0.02)
        yield primary, replica
        for each in connections:
            each.abort()
    finally:
        await cluster.stop()


async def test_a_pair_changes_places_without_losing_a_byte(tmp_path: Path) -> None:
    async with pair(tmp_path) as (primary, replica):
        await primary.call("SET", "key", "value")
        assert not await handover.is_paused(primary)
        await handover.pause_writes(primary, 30.0)
        assert await handover.is_paused(primary)
        offset = (await handover.standing(primary)).offset
        assert await handover.level(replica, offset, trio.current_time() + 10) == 0
        assert await handover.level(replica, offset + 1000, trio.current_time() + 0.01) >= 900, "that much is missing"
        before = await replica.call("CONFIG", "GET", SETTING)
        timeouts = [(node, await handover.failover_timeout(node)) for node in (primary, replica)]
        moment = trio.current_time() + 2.5
        async with handover.giving_up_at(moment, ControlConnection.open, timeouts) as renew:
            assert 2000 < int((await replica.call("CONFIG", "GET", SETTING))[1]) <= 2500
            await trio.sleep(0.01)
            await renew()
            assert 1900 < int((await primary.call("CONFIG", "GET", SETTING))[1]) <= 2490, "what is left"
            assert await handover.promote(replica, trio.current_time() + 10)
        assert await replica.call("CONFIG", "GET", SETTING) == before == await primary.call("CONFIG", "GET", SETTING)
        await handover.unpause(primary)
        assert not await handover.is_paused(primary)
        assert await replica.call("GET", "key") == b"value"
        with trio.fail_after(20):
            while (primary.peer, primary.port) not in (await handover.standing(replica)).online:  # noqa: ASYNC110
                await trio.sleep(0.02)
        follows = await handover.standing(primary)
        assert not follows.leads and not follows.online
        assert follows.offset >= offset, "it goes on from where it was"
        with pytest.raises(ReplyError, match="You should send CLUSTER FAILOVER to a replica"):
            await handover.promote(replica, trio.current_time() + 1)


def open_to_debug(folder: Path) -> str:
    """A server whose cluster bus can be made to lose messages."""
    program = folder / "valkey-server"
    program.write_text(f'#!/bin/sh\nexec {find_server().path} "$@" --enable-debug-command local\n')
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(("seconds", "calls"), [(2.5, 3), (0.7, 1)])
async def test_the_engine_has_given_up_before_we_do(tmp_path: Path, seconds: float, calls: int) -> None:
    """However often it was asked: elected behind our back, the replica would lack what was let through by then."""
    async with pair(tmp_path / "nodes", binary=open_to_debug(tmp_path)) as (primary, replica):
        await primary.call("DEBUG", "DROP-CLUSTER-PACKET-FILTER", 5)
        deadline = trio.current_time() + seconds
        timeouts = [(node, await handover.failover_timeout(node)) for node in (primary, replica)]
        async with handover.giving_up_at(deadline - 0.25, ControlConnection.open, timeouts) as renew:
            assert not await handover.promote(replica, deadline, renew)
        assert b"cluster|failover:calls=%d," % calls in await replica.call("INFO", "commandstats"), "that often"
        assert not await handover.is_paused(primary)


@pytest.mark.parametrize(("number", "name"), [(5, b"auth-req"), (8, b"mfstart")])
async def test_a_message_that_was_lost_is_sent_again(tmp_path: Path, number: int, name: bytes) -> None:
    """The engine asks its primary to pause, and for votes, once each; a refusal is told to nobody, either."""
    async with pair(tmp_path / "nodes", binary=open_to_debug(tmp_path)) as (primary, replica):
        await primary.call("DEBUG", "DROP-CLUSTER-PACKET-FILTER", number)
        elected = []

        async def promote() -> None:
            elected.append(await handover.promote(replica, trio.current_time() + 10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(promote)
            with trio.fail_after(20):
                while b"messages_%b_received" % name not in await primary.call("CLUSTER", "INFO"):  # noqa: ASYNC110
                    await trio.sleep(0.02)
            await primary.call("DEBUG", "DROP-CLUSTER-PACKET-FILTER", -1)
        assert elected == [True]
        assert (await handover.standing(replica)).leads
