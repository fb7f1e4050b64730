"""A node while a cluster is formed of it: asking it, and what it said last."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from shard.arrange import Address
from shard.client import Arg, ConnectionLost, ControlConnection, Credentials, ReplyError, format_address
from shard.cluster_nodes import NodeRow, myself, parse_cluster_nodes
from shard.errors import ShardError
from shard.node import parse_info


@dataclass
class Member:
    """A node being formed: its connection and what it last said."""

    address: Address
    group: int
    connection: ControlConnection
    me: NodeRow
    rows: list[NodeRow] = field(default_factory=list)
    state_ok: bool = False
    link_up: bool = False
    copies: dict[str, set[str]] = field(default_factory=dict)
    """Ids of the replicas ``CLUSTER SLOTS`` shows for each primary's id."""

    @property
    def known(self) -> set[str]:
        return {row.node_id for row in self.rows if not row.flags & {"handshake", "noaddr"}}

    async def look(self) -> None:
        questions = (("CLUSTER", "NODES"), ("CLUSTER", "INFO"), ("INFO", "replication"), ("CLUSTER", "SLOTS"))
        nodes, cluster, replication, slots = await ask(self.connection, *questions)
        self.rows = parse_cluster_nodes(nodes)
        self.me = myself(self.rows)
        self.state_ok = parse_info(cluster).get("cluster_state") == "ok"
        self.link_up = parse_info(replication).get("master_link_status") == "up"
        self.copies = {}
        for _first, _last, primary, *replicas in slots:
            shown = {replica[2].decode() for replica in replicas}
            # Of a primary with several ranges each row must show every replica.
            self.copies[primary[2].decode()] = self.copies.get(primary[2].decode(), shown) & shown


async def ask(connection: ControlConnection, *commands: Sequence[Arg]) -> list[Any]:
    try:
        replies = await connection.pipeline(*commands)
    except ConnectionLost as error:
        raise ShardError(f"a node was lost while the cluster formed ({error}): see its log and start again") from None
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, ReplyError):
            raise _refusal(connection, command, reply)
    return replies


def _refusal(connection: ControlConnection, command: Sequence[Arg], error: ReplyError) -> ShardError:
    words = " ".join(map(str, command[:2]))
    if "cluster support disabled" in str(error):
        return ShardError(f"node {connection.address} does not run as a cluster node: set `cluster-enabled yes` there")
    if error.code in ("NOAUTH", "WRONGPASS"):
        return ShardError(f"node {connection.address} asks for a password, or another one: correct the password file")
    return ShardError(f"node {connection.address} refused {words} ({error}): see its log and start again")


async def connect_members(groups: Sequence[Sequence[Address]], credentials: Credentials) -> list[Member]:
    """Open a connection to every node. Raises ``ShardError`` if one cannot be reached; nothing stays open then."""
    places = [(number, address) for number, group in enumerate(groups) for address in group]
    members: dict[Address, Member] = {}

    async def join(number: int, address: Address) -> None:
        connection = await open_to(address, credentials)
        [rows] = await ask(connection, ("CLUSTER", "NODES"))
        members[address] = Member(address, number, connection, myself(parse_cluster_nodes(rows)))

    await for_all(join, places)
    return [members[address] for _number, address in places]


async def open_to(address: Address, credentials: Credentials) -> ControlConnection:
    try:
        return await ControlConnection.open(
            *address,
            username=credentials.username,
            password=credentials.password,
            timeout=5.0,
            client_name="ackgate-form",
        )
    except ConnectionLost as error:
        raise ShardError(f"node {error}: start it, or correct its address") from None
    except ReplyError as error:
        raise ShardError(f"node {format_address(*address)} refused the login ({error}): correct the password") from None


async def for_all(work: Callable[..., Awaitable[None]], arguments: Iterable[tuple[Any, ...]]) -> None:
    """Run ``work`` for all arguments at once; of several errors the first is raised, not a group of them."""
    try:
        async with trio.open_nursery() as nursery:
            for given in arguments:
                nursery.start_soon(work, *given)
    except* ShardError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
