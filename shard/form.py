"""Making a cluster of running nodes, by commands alone.

Order (measured on Valkey 9.1.2, anything else is refused or slower): slots and config epochs are given while a node
knows no other, then the nodes meet, then, every node known everywhere, replicas are told whom to follow.

Every step looks first and does only what is missing: a cluster formed half way is completed, a whole one left alone.

The engine remembers nodes by address. Where addresses changed (containers made anew) it is enough that of two nodes one
is told the other's new one: MEET between nodes that know each other changes nothing else. But by then they hold each
other for failed, and a replica that is linked again would take over at once: it is told not to, for that long.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from shard.arrange import Address, arrange, election_warning
from shard.client import Arg, Credentials
from shard.cluster_nodes import SLOTS, Range, ranges_of, slots_in
from shard.errors import ShardError
from shard.layout import BUS_OFFSET
from shard.member import Member, ask, connect_members, for_all, open_to, wait_for_nodes
from shard.node import parse_info

Progress = Callable[[str, int, int], None]
"""``progress(step, done, total)``, step one of ``start``, ``wait``, ``meet``, ``replicate``, ``ready``."""

_POLL_SECONDS = 0.05
# A handshake that was lost is given up by the engine after its node timeout; meet again now and then.
_MEET_AGAIN_SECONDS = 3.0
_NO_CREDENTIALS = Credentials()
_NO_FAILOVER = "cluster-replica-no-failover"


def no_progress(step: str, done: int, total: int) -> None:
    """Tell nobody."""


async def form(
    addresses: Sequence[Address],
    *,
    shards: int,
    replicas: int,
    zones: Sequence[str] | None = None,
    credentials: Credentials = _NO_CREDENTIALS,
    progress: Progress = no_progress,
    timeout: float = 60.0,  # noqa: ASYNC109 -- it becomes a line that names what was waited for
) -> list[str]:
    """Make one cluster of nodes; see ``arrange`` for who becomes what. Host names are resolved.

    Nodes that do not run yet, have no address yet or load their data are waited for. ``zones`` None: the nodes' own
    ``availability-zone`` decides, where they have one.
    Returns warnings, one line each. Raises ``ShardError``, also when the nodes take longer than ``timeout`` seconds to
    come, or so long again to form.
    """
    await wait_for_nodes(addresses, credentials, timeout, _only_changes(progress))
    if zones is None:
        zones = await _ask_zones(addresses, credentials)
    groups = arrange(addresses, shards, replicas, zones)
    return await form_groups(groups, credentials=credentials, progress=progress, timeout=timeout)


async def form_groups(
    groups: Sequence[Sequence[Address]],
    *,
    credentials: Credentials = _NO_CREDENTIALS,
    progress: Progress = no_progress,
    timeout: float = 60.0,  # noqa: ASYNC109 -- it becomes a line that names what was waited for
) -> list[str]:
    """Make one cluster of running nodes, grouped by shard (first of each group: primary if none of it is one yet).

    Ready means: ``cluster_state`` ok everywhere, every replica's link up, ``CLUSTER SLOTS`` complete everywhere.
    Returns warnings, one line each. Raises ``ShardError``, also when it takes longer than ``timeout`` seconds.
    """
    members = await connect_members(groups, credentials)
    former = _Former(members, len(groups), progress, credentials)
    try:
        with trio.fail_after(timeout):
            await former.run()
    except trio.TooSlowError:
        raise ShardError(
            f"the cluster did not form within {timeout:g} s: {former.waiting_for}; see the nodes' logs"
        ) from None
    finally:
        for member in members:
            member.connection.abort()
    warning = election_warning(len(groups), max(len(group) for group in groups) - 1)
    return [*former.warnings, *([] if warning is None else [warning])]


async def _ask_zones(addresses: Sequence[Address], credentials: Credentials) -> list[str]:
    zones: dict[Address, str] = {}

    async def note(address: Address) -> None:
        async with await open_to(address, credentials) as connection:
            [info] = await ask(connection, ("INFO", "server"))
            zones[address] = parse_info(info).get("availability_zone", "")

    await for_all(note, [(address,) for address in addresses])
    return [zones[address] for address in addresses]


class _Former:
    """The steps, over what all members said last."""

    def __init__(self, members: list[Member], groups: int, progress: Progress, credentials: Credentials) -> None:
        self._members = members
        self._credentials = credentials
        self._groups = [[member for member in members if member.group == number] for number in range(groups)]
        self._progress = _only_changes(progress)
        self.waiting_for = "nodes did not answer"
        self.warnings: list[str] = []

    async def run(self) -> None:
        await self._look()
        self._refuse_two_clusters()
        await self._refuse_used_nodes()
        await self._give_slots()
        async with self._roles_kept():
            await self._meet()
            await self._become_ready()
        await for_all(self._check_heir, [(member,) for member in self._members if not member.me.is_primary])

    async def _check_heir(self, member: Member) -> None:
        if await _no_failover(member) == b"yes":
            self.warnings.append(
                f"replica {member.connection.address} is told never to take over ({_NO_FAILOVER} yes): "
                "set it to no, unless that is meant"
            )

    @asynccontextmanager
    async def _roles_kept(self) -> AsyncIterator[None]:
        """No replica takes over while nodes that lost each other are introduced again."""
        told: list[Member] = []

        async def forbid(member: Member) -> None:
            if await _no_failover(member) == b"no":
                told.append(member)
                with suppress(ShardError):  # not ours to change: the data stay, roles may not
                    await ask(member.connection, ("CONFIG", "SET", _NO_FAILOVER, "yes"))

        replicas = [(member,) for member in self._members if not member.me.is_primary]
        try:
            await for_all(forbid, replicas if self._lost() else [])
            yield
        finally:
            with trio.CancelScope(shield=True):
                await for_all(self._allow, [(member,) for member in told])

    async def _allow(self, member: Member) -> None:
        # The connection may have been given up with a question on it.
        with suppress(ShardError):
            async with await open_to(member.address, self._credentials) as connection:
                await ask(connection, ("CONFIG", "SET", _NO_FAILOVER, "no"))

    def _lost(self) -> bool:
        """Whether some that met before do not find each other."""
        return any(
            other is not member and other.me.node_id in member.remembered - member.heard
            for member in self._members
            for other in self._members
        )

    async def _look(self) -> None:
        await for_all(Member.look, [(member,) for member in self._members])

    def _refuse_two_clusters(self) -> None:
        """Nodes that already met others must all belong together: meeting would merge two clusters and their slots."""
        clusters: list[set[str]] = []
        for member in self._members:
            if len(member.remembered) > 1:
                touching = [cluster for cluster in clusters if cluster & member.remembered]
                rest = [cluster for cluster in clusters if not cluster & member.remembered]
                clusters = [*rest, member.remembered.union(*touching)]
        if len(clusters) > 1:
            raise ShardError(
                f"the nodes belong to {len(clusters)} different clusters: give nodes of one cluster, or new ones"
            )

    async def _refuse_used_nodes(self) -> None:
        for member in self._members:
            if len(member.remembered) > 1 or member.me.slots:
                continue
            [keys] = await ask(member.connection, ("DBSIZE",))
            if keys:
                raise ShardError(
                    f"node {member.connection.address} holds {keys} keys: give empty nodes, or FLUSHALL it first"
                )

    async def _give_slots(self) -> None:
        # Every node's word counts: one that lost its memory is still known to own slots by the others.
        owned = {slot for member in self._members for row in member.rows for slot in slots_in(row.slots)}
        for number, group in enumerate(self._groups):
            first, last = _share(number, len(self._groups))
            missing = ranges_of(set(range(first, last + 1)) - owned)
            primary = _primary_of(group)
            if missing and primary.me.is_primary:
                await ask(
                    primary.connection, ("CLUSTER", "ADDSLOTSRANGE", *(slot for pair in missing for slot in pair))
                )
            # Saves the engine a round of sorting out equal epochs; refused, harmlessly, once another node was met.
            if len(primary.rows) == 1 and primary.me.epoch == 0:
                with suppress(ShardError):
                    await ask(primary.connection, ("CLUSTER", "SET-CONFIG-EPOCH", number + 1))

    async def _meet(self) -> None:
        introduced_at = -math.inf
        while (done := self._acquainted()) < len(self._members):
            self._progress("meet", done, len(self._members))
            self.waiting_for = f"{len(self._members) - done} of {len(self._members)} nodes do not know all others yet"
            if trio.current_time() - introduced_at >= _MEET_AGAIN_SECONDS:
                introduced_at = trio.current_time()
                await for_all(self._introduce, [(member,) for member in self._members])
            await trio.sleep(_POLL_SECONDS)
            await self._look()
        self._progress("meet", done, done)

    def _acquainted(self) -> int:
        everybody = {member.me.node_id for member in self._members}
        return sum(
            everybody <= member.known and everybody - {member.me.node_id} <= member.heard and not _shakes_hands(member)
            for member in self._members
        )

    async def _introduce(self, member: Member) -> None:
        """Tell a member where those are that have not heard from it; of strangers, the first member is told alone."""
        hub = self._members[0]
        meets = [
            _meeting(other)
            for other in self._members
            if other is not member
            and (other.me.node_id in member.remembered or member is hub)
            and (member.me.node_id not in other.heard or other.me.node_id not in member.known)
        ]
        if meets:
            await ask(member.connection, *meets)

    async def _become_ready(self) -> None:
        while not self._is_ready():
            await for_all(self._follow, [(member, group) for group in self._groups for member in group])
            await trio.sleep(_POLL_SECONDS)
            await self._look()

    async def _follow(self, member: Member, group: list[Member]) -> None:
        """Have a member that is nobody's primary and nobody's replica follow the primary of its group."""
        primary = _primary_of(group)
        followed = {other.me.primary_id for other in self._members}
        if member is primary or not member.me.is_primary or member.me.slots or member.me.node_id in followed:
            return
        try:
            await ask(member.connection, ("CLUSTER", "REPLICATE", primary.me.node_id))
        except ShardError as error:
            # Gossip has not brought the primary here yet: the next look tries again.
            if "Unknown node" not in str(error):
                raise

    def _is_ready(self) -> bool:
        replicas = [member for member in self._members if not member.me.is_primary]
        wanted = sum(len(group) - 1 for group in self._groups)
        linked = sum(member.link_up for member in replicas)
        complete = sum(self._seesfor_all(member) for member in self._members)
        self._progress("replicate", min(linked, wanted), wanted)
        self._progress("ready", complete, len(self._members))
        self.waiting_for = (
            f"{linked} of {wanted} replicas linked, {complete} of {len(self._members)} nodes see all slots served"
        )
        return linked >= wanted and linked == len(replicas) and complete == len(self._members)

    def _seesfor_all(self, member: Member) -> bool:
        """By its own word: the state is ok, living nodes own all slots, and every replica of ours is shown."""
        served = {slot for row in member.rows if row.is_primary and not row.failed for slot in slots_in(row.slots)}
        expected: dict[str, set[str]] = {}
        for other in self._members:
            if other.me.primary_id:
                expected.setdefault(other.me.primary_id, set()).add(other.me.node_id)
        shown = all(replicas <= member.copies.get(primary, replicas) for primary, replicas in expected.items())
        return member.state_ok and len(served) == SLOTS and shown


def _only_changes(progress: Progress) -> Progress:
    told: dict[str, tuple[int, int]] = {}

    def tell(step: str, done: int, total: int) -> None:
        if told.get(step) != (done, total):
            told[step] = (done, total)
            progress(step, done, total)

    return tell


def _share(number: int, groups: int) -> Range:
    """Slots of one of ``groups`` shards, cut as the engines' own tools cut them (0-5460, 5461-10922, ...)."""
    return round(number * SLOTS / groups), round((number + 1) * SLOTS / groups) - 1


def _primary_of(group: list[Member]) -> Member:
    """The member that serves the group's slots, else one that is followed, else the first."""
    followed = {member.me.primary_id for member in group}
    with_slots = [member for member in group if member.me.slots]
    with_replica = [member for member in group if member.me.node_id in followed]
    return (with_slots or with_replica or group)[0]


def _meeting(member: Member) -> tuple[Arg, ...]:
    """The command that introduces a member; nodes meet by IP address only."""
    port = member.address[1]
    return "CLUSTER", "MEET", member.connection.peer, port, member.me.bus_port or port + BUS_OFFSET


async def _no_failover(member: Member) -> bytes:
    """What a replica is told of taking over, ``yes`` or ``no``; empty where that is not ours to see."""
    try:
        [found] = await ask(member.connection, ("CONFIG", "GET", _NO_FAILOVER))
    except ShardError:
        return b""
    return bytes(found[1]) if found else b""


def _shakes_hands(member: Member) -> bool:
    return any("handshake" in row.flags for row in member.rows)
