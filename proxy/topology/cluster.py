"""The cluster as the proxy believes it to be: the watched nodes and the slot map chosen from what they say."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
import trio

from proxy.acks.incarnation import Life
from proxy.routing.slot_map import Node, Shard, SlotMap, View, choose_view
from proxy.settings import TimeoutSettings
from proxy.topology.offsets import Lag
from proxy.topology.watch import Interval, NodeWatch
from shard.client import ConnectionLost, ControlConnection, Credentials, ReplyError, format_address

BUSY_INTERVAL = 0.05  # seconds between probes while a shard cannot be served ...
BUSY_NODES = 30  # ... of a cluster of so many nodes at most; those of a larger one are asked less often
KNOCK = 0.2  # seconds between two attempts to connect to a node that did not answer
FORGET_AFTER = 60.0  # seconds for which a node that no view names any more is still watched

Address = tuple[str, int]


async def expect(connection: ControlConnection, node_id: bytes) -> None:
    """Come back if it leads to the node of this id; else it is closed, and ``ConnectionLost`` raised."""
    try:
        found = await connection.call("CLUSTER", "MYID")
    except ReplyError as refused:
        connection.abort()
        raise ConnectionLost(f"{connection.address}: {refused}") from None
    if found != node_id:
        connection.abort()
        raise ConnectionLost(f"another node answers at {connection.address}")


class Cluster:
    """See the module.

    ``changed(old, new)`` is called for every new map, before anybody else sees it; ``lived(life)`` for every
    life that a probe reads; ``restarted()`` when a node came back as a new process; ``recovered(address)`` when one
    that had failed to answer does again; ``moving()`` while slots of one move key by key; ``amiss()`` says whether
    something is not served, so that probes hurry.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        timeouts: TimeoutSettings,
        credentials: Credentials,
        *,
        changed: Callable[[SlotMap, SlotMap], None],
        lived: Callable[[Life], None],
        restarted: Callable[[], None],
        recovered: Callable[[Address], None],
        moving: Callable[[], None],
        amiss: Callable[[], bool],
    ) -> None:
        self.seeds = frozenset(seeds)
        self.timeouts = timeouts
        self.credentials = credentials
        self.map = SlotMap()
        self._serving: tuple[SlotMap, list[int]] = SlotMap(), []
        """The map, and which of its shards serve slots."""
        self.nodes: dict[Address, NodeWatch] = {}
        self.discoveries = 0
        self.failures = 0
        self.log = structlog.get_logger("topology")
        self._changed = changed
        self._lived = lived
        self._restarted = restarted
        self._recovered = recovered
        self._moving = moving
        self._interval = Interval(timeouts.probe_interval, self._busy_interval, lambda: amiss() or self._ails())
        self._applied_at = -1.0
        self._confirmed_at = -1.0
        self.changed_at = 0.0
        """When the map last changed, in Unix time; 0.0: there is none yet."""
        self._epoch = 0
        """The current epoch of the views that the map came from."""
        self._named_at: dict[Address, float] = {}
        self._nursery: trio.Nursery | None = None
        self.updated = trio.Event()
        """Set, and replaced, whenever a node was probed or the map changed."""

    async def run(self) -> None:
        """Watch every node there is, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for host, port in self.seeds:
                self._watch(host, port)
            await trio.sleep_forever()

    def hint(self) -> None:
        """Something looks amiss: probe now."""
        self._interval.hurry()

    def _busy_interval(self) -> float:
        return BUSY_INTERVAL * max(1.0, len(self.nodes) / BUSY_NODES)

    def _ails(self) -> bool:
        """A primary leaves a probe unanswered for longer than there is between two: it may be about to be replaced."""
        late = trio.current_time() - self.timeouts.probe_interval
        watches = [self.nodes.get(primary.address) for primary in map(self.primary, self.serving()) if primary]
        return any(watch and watch.asking_since is not None and watch.asking_since < late for watch in watches)

    # -- asking nodes ---------------------------------------------------------------------------------
    def _watch(self, host: str, port: int) -> None:
        watch = self.nodes[host, port] = NodeWatch(host, port)
        if self._nursery is not None:
            self._nursery.start_soon(self._probe_for_ever, watch)

    async def _probe_for_ever(self, watch: NodeWatch) -> None:
        connection: ControlConnection | None = None
        try:
            while self.nodes.get(watch.address) is watch:
                failed = watch.tried and not watch.alive
                try:
                    if connection is None or connection.closed:
                        connection = await (self._knock if failed else self._open)(watch.host, watch.port)
                        watch.ip = connection.peer
                    with trio.fail_after(self.timeouts.probe):
                        await watch.probe(connection, self.map)
                except (ConnectionLost, ReplyError, trio.TooSlowError) as error:
                    self._probe_failed(watch, error)
                    if connection is not None:
                        connection.abort()
                        connection = None
                else:
                    self._probe_answered(watch)
                    if failed and watch.alive:
                        self._recovered(watch.address)
                self._consider()
                await self._interval.pause()
                await trio.sleep(random.uniform(0, 0.01))
        finally:
            if connection is not None:
                connection.abort()

    async def connect(self, host: str, port: int, name: str | None = "ackgate-control") -> ControlConnection:
        """A control connection to a node; to the one that the map has at this address, if it has.

        Who else answers there must not be shown passwords, nor be believed.  Raises ``ConnectionLost``, ``ReplyError``.
        ``name`` None: the connection stays without one, and nothing is asked; a node that runs a script takes neither
        CLIENT SETNAME nor CLUSTER MYID.
        """
        connection = await self._open(host, port, name)
        expected = self.map.node_at(host, port)
        if expected is not None and expected.node_id and name is not None:
            await expect(connection, expected.node_id)
        return connection

    async def _knock(self, host: str, port: int) -> ControlConnection:
        """``_open``, of a node that did not answer: begun anew again and again until one attempt succeeds or fails.

        Where packets are lost the kernel sends the first of a connection again after a second, then ever more seldom
        (tcp(7): tcp_syn_retries): so late it would be noticed that the way is there again.
        """
        ends: list[ControlConnection | Exception] = []

        async def attempt() -> None:
            try:
                ends.append(await self._open(host, port))
            except (ConnectionLost, ReplyError) as problem:
                ends.append(problem)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(attempt)
                await trio.sleep(KNOCK)
        made = [end for end in ends if isinstance(end, ControlConnection)]
        for spare in made[1:]:
            spare.abort()
        if made:
            return made[0]
        raise next(end for end in ends if isinstance(end, Exception))

    async def _open(self, host: str, port: int, name: str | None = "ackgate-control") -> ControlConnection:
        return await ControlConnection.open(
            host,
            port,
            username=self.credentials.username,
            password=self.credentials.password,
            timeout=self.timeouts.connect,
            client_name=name,
        )

    def _probe_failed(self, watch: NodeWatch, error: Exception) -> None:
        reason = str(error) or f"no answer within {self.timeouts.probe:g} s"
        if watch.alive or not watch.tried:
            self.log.warning("node does not answer", node=format_address(*watch.address), reason=reason)
        watch.failed(reason)

    def _probe_answered(self, watch: NodeWatch) -> None:
        if watch.life is not None:
            self._lived(watch.life)
            if watch.life.run_id != watch.known_run:
                if watch.known_run:
                    self._restarted()
                watch.known_run = watch.life.run_id
        if watch.moving:
            self._moving()
        self._hear_of(watch)
        foreign = watch.view is not None and self._is_foreign(watch.view)
        if foreign and not watch.foreign:
            self.log.warning("a node of another cluster answers", node=format_address(*watch.address))
        watch.foreign = foreign
        watch.alive = not foreign  # what it says is kept: the cluster may have been made anew

    def _hear_of(self, watch: NodeWatch) -> None:
        """Watch the nodes this one knows of; stop watching those nobody has named for long."""
        now = trio.current_time()
        if watch.view is not None and not self._is_foreign(watch.view):
            for shard in watch.view.map.shards:
                for node in shard.nodes:
                    if node.port:
                        self._named_at[node.address] = now
        for address in self._named_at.keys() - self.nodes.keys():
            self._watch(*address)
        kept = self.seeds | {node.address for shard in self.map.shards for node in shard.nodes}
        for address in list(self.nodes):
            if address not in kept and now - self._named_at.get(address, now) > FORGET_AFTER:
                del self.nodes[address]
                self._named_at.pop(address, None)

    def _is_foreign(self, view: View) -> bool:
        """Whether it names none of our nodes: a node of another cluster has got an address that was one of ours."""
        ours = self.map.node_ids
        return bool(ours) and ours.isdisjoint(view.map.node_ids)

    def _ours(self, views: list[View]) -> list[View]:
        """What nodes of our cluster say.

        If there are none, and most addresses that we know, or were told of, are those of another cluster, it is ours,
        made anew.
        """
        familiar = [view for view in views if not self._is_foreign(view)]
        if familiar or any(watch.view and not self._is_foreign(watch.view) for watch in self.nodes.values()):
            return familiar
        foreign = {watch.address for watch in self.nodes.values() if watch.view is not None}
        known = {node.address for shard in self.map.shards for node in shard.nodes}
        most = any(2 * len(foreign & those) > len(those) for those in (known, self.seeds))
        return views if most else []

    # -- choosing the map --------------------------------------------------------------------------------
    def _consider(self) -> None:
        """Take the map that the nodes agree on, if it sends anything another way than ours."""
        self.updated.set()
        self.updated = trio.Event()
        if not self.map.version and not all(watch.tried for watch in self.nodes.values()):
            return  # the first map is not taken from the first node that happens to answer
        watches = [watch for watch in self.nodes.values() if watch.asked_at > self._applied_at or self._agrees(watch)]
        views = self._ours([watch.view for watch in watches if watch.view is not None])
        chosen = choose_view(views, self.map if self.map.version else None, previous_epoch=self._epoch)
        if chosen is None:
            self.failures += 1
            return
        self.discoveries += 1
        self._confirmed_at = trio.current_time()
        # Most of those who say so have reached it: one that is cut off may have raised its own by any number.
        epochs = sorted(view.current_epoch for view in views if view.map.same_routes(chosen))
        self._epoch = epochs[(len(epochs) - 1) // 2]
        if not self.map.version or not chosen.same_routes(self.map) or self._members(chosen) != self._members(self.map):
            self._apply(SlotMap(chosen.shards, self.map.version + 1, max(chosen.next_index, self.map.next_index)))
        elif self._failed(chosen) != self._failed(self.map):  # nobody has to be told: all goes where it went
            self.map = SlotMap(chosen.shards, self.map.version, max(chosen.next_index, self.map.next_index))

    def _agrees(self, watch: NodeWatch) -> bool:
        """Whether the node said what the present map says.

        Those who brought it about keep their voice until they are asked again, or the first who is asked would speak
        alone: the former primary, say, that has yet to hear of its successor.
        """
        return watch.view is not None and watch.view.map.same_routes(self.map)

    @staticmethod
    def _members(map_: SlotMap) -> frozenset[tuple[int, bytes, Address, str]]:
        return frozenset(
            (shard.index, node.node_id, node.address, node.role) for shard in map_.shards for node in shard.nodes
        )

    @staticmethod
    def _failed(map_: SlotMap) -> frozenset[bytes]:
        return frozenset(node.node_id for shard in map_.shards for node in shard.nodes if node.health == "fail")

    def address_in(self, text: bytes, node_id: str) -> Address:
        """The ``host:port`` of a redirection by ``node_id``, which may not know its own host name."""
        host, _, port = text.decode().rpartition(":")
        if host in ("", "?"):
            watch = next((each for each in self.nodes.values() if each.node_id == node_id), None)
            host = watch.host if watch is not None else "127.0.0.1"
        return host.strip("[]"), int(port)

    def moved(self, slot: int, host: str, port: int) -> None:
        """A node said that another serves ``slot`` (MOVED)."""
        owner = self.map.owner(slot)
        if owner is not None and owner.primary is not None and owner.primary.address == (host, port):
            return
        self._apply(self.map.with_moved(slot, host, port))
        if (host, port) not in self.nodes:
            self._watch(host, port)
        self.hint()

    def _apply(self, map_: SlotMap) -> None:
        old, self.map = self.map, map_
        self._applied_at = trio.current_time()
        self.changed_at = time.time()
        self.log.info("slot map", version=map_.version, shards=len(map_.shards), covered=map_.covered())
        self._changed(old, map_)
        self.updated.set()
        self.updated = trio.Event()

    # -- what others ask -----------------------------------------------------------------------------------
    @property
    def map_age(self) -> float:
        """Seconds since nodes last said that the map is right; 0.0 while there is none."""
        return max(0.0, trio.current_time() - self._confirmed_at) if self.map.version else 0.0

    def shard(self, index: int) -> Shard | None:
        return self.map.shard(index)

    def primary(self, index: int) -> Node | None:
        """A shard's primary by the present map."""
        shard = self.map.shard(index)
        return shard.primary if shard is not None else None

    def serving(self) -> list[int]:
        """Indexes of the shards that serve slots."""
        if self._serving[0] is not self.map:
            self._serving = self.map, [shard.index for shard in self.map.shards if shard.ranges]
        return self._serving[1]

    def led(self) -> bool:
        """Whether the primary of every shard that serves slots answered its last probe."""
        watches = [self.watch_of(primary) if primary else None for primary in map(self.primary, self.serving())]
        return all(watch is not None and watch.alive for watch in watches)

    def answers(self, node_id: str) -> bool:
        """Whether the node answered its last probe."""
        return any(watch.alive for watch in self._watches_of(node_id))

    def silence(self, node_id: str) -> float:
        """Seconds since the node was last asked something that it answered; 0.0 for one that is not watched."""
        asked = [watch.asked_at for watch in self._watches_of(node_id)]
        return trio.current_time() - max(asked) if asked else 0.0

    def _watches_of(self, node_id: str) -> list[NodeWatch]:
        """By the address where the map has the node, if it has it: nobody goes by one that it had before."""
        watches = [watch for watch in self.nodes.values() if watch.node_id == node_id]
        if len(watches) < 2:
            return watches
        mapped = {node.address for shard in self.map.shards for node in shard.nodes}
        return [watch for watch in watches if watch.address in mapped] or watches

    def watch_of(self, node: Node) -> NodeWatch | None:
        return self.nodes.get(node.address)

    def named(self, ip: str, port: int) -> Address | None:
        """The address by which the map has the node that other nodes call so, which go by IP addresses alone."""
        nodes = (node for shard in self.map.shards for node in shard.nodes)
        found = ((node, self.watch_of(node)) for node in nodes if node.port == port)
        return next((node.address for node, watch in found if watch is not None and watch.ip == ip), None)

    def describe_shard(self, index: int) -> dict[str, Any] | None:
        """One shard as in ``describe``."""
        shard = self.map.shard(index)
        return self._describe_shard(shard) if shard is not None else None

    def replicas_alive(self, index: int) -> int:
        """How many replicas of a shard answer."""
        shard = self.map.shard(index)
        watches = [self.watch_of(node) for node in shard.replicas] if shard is not None else []
        return sum(1 for watch in watches if watch is not None and watch.alive)

    def keeps_aof(self, index: int) -> bool:
        """Whether a shard's primary has appendonly on, by what it said last."""
        primary = self.primary(index)
        watch = self.watch_of(primary) if primary is not None else None
        return watch is not None and watch.settings.get("appendonly") == "yes"

    def lag_of(self, primary: Node | None, replica: Node) -> Lag | None:
        """How far a replica is behind; None while neither is known.

        While it answers it is held against what its primary had when it was asked, not against what came since.
        """
        leader = self.watch_of(primary) if primary is not None else None
        watch = self.watch_of(replica)
        if leader is None or watch is None or not watch.tried:
            return None
        now = trio.current_time()
        at = watch.asked_at if watch.alive else now
        return leader.offsets.until(watch.offset, at, at)

    def describe(self) -> dict[str, Any]:
        """The topology as JSON: version, shards, nodes."""
        return {"version": self.map.version, "shards": [self._describe_shard(shard) for shard in self.map.shards]}

    def _describe_shard(self, shard: Shard) -> dict[str, Any]:
        primary = self._describe_node(shard.primary) if shard.primary is not None else None
        if primary is not None and primary["health"] == "fail":
            replicas, primary = [primary], None
        else:
            replicas = []
        return {
            "id": shard.id.decode(),
            "slots": [list(slots) for slots in shard.ranges],
            "primary": primary,
            "replicas": [self._describe_node(node) for node in shard.replicas] + replicas,
        }

    def _describe_node(self, node: Node) -> dict[str, Any]:
        watch = self.watch_of(node)
        return {
            "address": format_address(node.host, node.port),
            "node_id": node.node_id.decode(),
            "pid": watch.pid if watch is not None and watch.alive else None,
            "offset": watch.offset if watch is not None else node.offset,
            "health": watch.health if watch is not None else node.health,
            "zone": (watch.info.get("availability_zone") if watch is not None else None) or node.zone,
        }
