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

_POLL_SECONDS = 0.2


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
    heard: set[str] = field(default_factory=set)
    """Ids of the nodes that have a link to this one, by ``CLUSTER LINKS``: they know its address."""

    @property
    def remembered(self) -> set[str]:
        """Ids of the nodes it ever met, wherever they are now."""
        return {row.node_id for row in self.rows if "handshake" not in row.flags}

    @property
    def known(self) -> set[str]:
        """Ids of the nodes it has an address of, be it an old one; and its own."""
        return {row.node_id for row in self.rows if not row.flags & {"handshake", "noaddr"}}

    async def look(self) -> None:
        nodes, cluster, replication, slots, links = await ask(
            self.connection,
            ("CLUSTER", "NODES"),
            ("CLUSTER", "INFO"),
            ("INFO", "replication"),
            ("CLUSTER", "SLOTS"),
            ("CLUSTER", "LINKS"),
        )
        self.rows = parse_cluster_nodes(nodes)
        self.me = myself(self.rows)
        pairs = [dict(zip(link[::2], link[1::2], strict=True)) for link in links]
        self.heard = {link[b"node"].decode() for link in pairs if link[b"direction"] == b"from"}
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


async def wait_for_nodes(
    addresses: Sequence[Address],
    credentials: Credentials,
    patience: float,
    progress: Callable[[str, int, int], None],
) -> None:
    """Return when every node answers and has loaded its data. Raises ``ShardError``: who did not, after ``patience``
    seconds; at once what waiting does not mend (a wrong password, no cluster node)."""
    absent = dict.fromkeys(addresses, "")

    async def wait_for(address: Address) -> None:
        while reason := await _absence(address, credentials):
            absent[address] = reason
            await trio.sleep(_POLL_SECONDS)
        del absent[address]
        progress("wait", len(addresses) - len(absent), len(addresses))

    with trio.move_on_after(patience) as scope:
        await for_all(wait_for, [(address,) for address in absent])
    if scope.cancelled_caught:
        named = [reason for reason in absent.values() if reason] or [format_address(*address) for address in absent]
        more = f" ({len(absent) - 1} more are missing)" if len(absent) > 1 else ""
        raise ShardError(f"node {named[0]}{more}, waited for {patience:g} s: start it, or correct its address")


async def _absence(address: Address, credentials: Credentials) -> str:
    """Why a node cannot be worked with yet; empty when it can."""
    try:
        async with await _connect(address, credentials) as connection:
            [reply] = await connection.pipeline(("CLUSTER", "MYID"))
    except ConnectionLost as error:
        return str(error)
    except ReplyError as error:
        raise _refused_login(address, error) from None
    if not isinstance(reply, ReplyError):
        return ""
    if reply.code == "LOADING":
        return f"{format_address(*address)}: loads its data"
    raise _refusal(connection, ("CLUSTER", "MYID"), reply)


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
        return await _connect(address, credentials)
    except ConnectionLost as error:
        raise ShardError(f"node {error}: start it, or correct its address") from None
    except ReplyError as error:
        raise _refused_login(address, error) from None


async def _connect(address: Address, credentials: Credentials) -> ControlConnection:
    return await ControlConnection.open(
        *address,
        username=credentials.username,
        password=credentials.password,
        timeout=5.0,
        client_name="ackgate-form",
    )


def _refused_login(address: Address, error: ReplyError) -> ShardError:
    return ShardError(f"node {format_address(*address)} refused the login ({error}): correct the password")


async def for_all(work: Callable[..., Awaitable[None]], arguments: Iterable[tuple[Any, ...]]) -> None:
    """Run ``work`` for all arguments at once; of several errors the first is raised, not a group of them."""
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            for given in arguments:
                nursery.start_soon(work, *given)
    except* ShardError as group:
        error = group  # raised in here it would be in a group again, before Python 3.11.4
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise error from None
