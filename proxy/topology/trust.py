"""Whether a shard's WAITAOF can be believed: what its nodes' settings say, asked behind the counts.

They are asked in the data plane's turns, on the lane that looks at the primary and on one lane to each replica.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from proxy.acks.looks import attached
from proxy.acks.pace import Pace
from proxy.acks.primary import INFO, AckLane, Primary
from proxy.acks.waiters import Run
from proxy.codec import encode_request
from proxy.codec.reply import decode, is_error
from proxy.dataplane import DataPlane
from proxy.routing.slot_map import Node, Shard
from proxy.topology.cluster import Cluster
from proxy.topology.watch import NodeWatch, read_pairs
from shard.client import ConnectionLost, ReplyError, format_address

FIRST_FIXED_REDIS = (8, 2)
"""The first Redis that acknowledges WAITAOF only behind the fsync with ``appendfsync everysec`` (redis#13793)."""
REPLICA_PATIENCE = 0.02  # seconds a replica has to tell its settings behind a WAITAOF, which has waited already
SETTINGS = encode_request([b"CONFIG", b"GET", b"appendonly", b"appendfsync"])
SILENT_PATIENCE = 0.005  # seconds for one that owes answers: once it acknowledges again, it gives those, too
GOSSIP = 2.0  # seconds in which nodes hear of a new one
MOST_ASKED = 64  # questions that a replica owes an answer, beyond which it is asked no more

Address = tuple[str, int]
Heard = Callable[[bytes | None], None]
"""Called with the raw reply of a replica; None: there is none."""


class Trust:
    """Asks the nodes of a shard; keeps a lane to each replica for it."""

    def __init__(self, cluster: Cluster, plane: DataPlane, pace: Pace) -> None:
        self.cluster = cluster
        self.pace = pace
        self._plane = plane
        self._lanes: dict[Address, AckLane] = {}
        self._opening: dict[Address, list[Heard]] = {}
        self._strangers: dict[int, tuple[int, float]] = {}
        """Replicas more than are known, by shard: how many, and since when."""
        self.silent: set[Address] = set()
        """Replicas that owe answers for longer than they should."""
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Open lanes that are wanted, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.close()

    def distrust(self, index: int, primary: Primary) -> Run[str]:
        """Why a shard's WAITAOF cannot be believed: acknowledged before the fsync, or settings that cannot be read.

        It is over once the primary has answered and replicas had their time, or never if the primary is lost.
        """
        run: Run[str] = Run()
        shard = self.cluster.shard(index)
        if shard is None:
            run.finish(None, ConnectionLost("the shard is gone"))
        else:
            _Inquiry(self, shard, primary, run).begin()
        return run

    def strange(self, index: int, strangers: set[Address], unknown: int) -> bool:
        """Whether so many replicas of a shard more than the map has, by some of these names, may be nodes of the
        cluster with settings of their own.  Whom no node names for a while is none.
        """
        if unknown <= 0:
            self._strangers.pop(index, None)
            return False
        now = trio.current_time()
        noticed, since = self._strangers.get(index, (0, now))
        if unknown > noticed:
            since = now
        self._strangers[index] = unknown, since
        watches = self.cluster.nodes.values()
        named = any(not strangers.isdisjoint(_names(watch)) for watch in watches)
        if not named and now - since > GOSSIP and all(watch.asked_at > since for watch in watches if watch.alive):
            return False
        self.cluster.hint()
        return True

    def ask(self, address: Address, heard: Heard) -> None:
        """Ask a replica for its settings."""
        lane = self._lanes.get(address)
        if lane is not None and not lane.closed:
            if lane.pending < MOST_ASKED:
                lane.ask([SETTINGS], lambda frames: self._heard(address, heard, frames[0]))
        elif address in self._opening:
            self._opening[address].append(heard)
        elif self._nursery is not None:
            self._opening[address] = [heard]
            self._nursery.start_soon(self._open, address)

    def _heard(self, address: Address, heard: Heard, frame: bytes) -> None:
        self.silent.discard(address)
        heard(frame)

    async def _open(self, address: Address) -> None:
        lane: AckLane | None = None
        try:
            connection = await self.cluster.connect(*address)
            self._forget_gone()
            lane = self._lanes[address] = AckLane(self._plane, connection, lambda reason: self.silent.discard(address))
        except (ConnectionLost, ReplyError):
            pass
        for heard in self._opening.pop(address):
            if lane is None or lane.closed:
                heard(None)
            else:
                self.ask(address, heard)

    def _forget_gone(self) -> None:
        """Close lanes to nodes that nobody watches any more."""
        for address, lane in list(self._lanes.items()):
            if lane.closed or address not in self.cluster.nodes:
                lane.close()
                del self._lanes[address]
        self.silent &= self.cluster.nodes.keys()

    def early(self, index: int) -> bool:
        """Whether a shard acknowledges WAITAOF before the fsync, by what its nodes said last."""
        shard = self.cluster.shard(index)
        watches = [self.cluster.watch_of(node) for node in shard.nodes] if shard is not None else []
        return any(
            _acknowledges_early(watch.engine, watch.version, watch.settings) for watch in watches if watch is not None
        )


class _Inquiry:
    """One question to the nodes of a shard."""

    __slots__ = ("_asked", "_dead", "_primary", "_primary_told", "_problems", "_run", "_shard", "_trust", "_waiting")

    def __init__(self, trust: Trust, shard: Shard, primary: Primary, run: Run[str]) -> None:
        self._trust = trust
        self._shard = shard
        self._primary = primary
        self._primary_told = False
        self._run = run
        self._waiting: dict[Node, NodeWatch] = {}
        """The replicas that have not answered yet."""
        self._asked: list[NodeWatch] = []
        self._dead: list[tuple[Node, NodeWatch]] = []
        """Replicas that do not answer probes."""
        self._problems: dict[Node | None, str] = {}

    def begin(self) -> None:
        for replica in self._shard.replicas:
            watch = self._trust.cluster.watch_of(replica)
            if watch is None:
                continue
            if watch.alive:
                self._waiting[replica] = watch
            else:
                self._dead.append((replica, watch))
        self._asked = list(self._waiting.values())
        self._primary.looker.ask([SETTINGS, INFO], self._primary_says)
        if self._waiting:
            hung = self._trust.silent.issuperset(watch.address for watch in self._waiting.values())
            patience = SILENT_PATIENCE if hung else REPLICA_PATIENCE
            self._trust.pace.rest(self, trio.current_time() + patience, self._no_longer)
        for replica, watch in list(self._waiting.items()):
            self._trust.ask(watch.address, partial(self._replica_says, replica, watch))

    def _primary_says(self, frames: list[bytes]) -> None:
        primary = self._primary
        self._primary_told = True
        address = primary.looker.address
        settings = {} if is_error(frames[0]) else _settings(frames[0])
        primary.keeps_aof = settings.get("appendonly") != "no"
        if not settings:
            self._problems[None] = _unread(self._shard, address)
        elif _acknowledges_early(primary.engine, primary.version, settings):
            self._problems[None] = _untrusted(self._shard, address, primary.engine, primary.version)
        self._compare({(host.decode(), int(port)) for host, port in attached(frames[1])})
        self._end_if_all_told()

    def _compare(self, names: set[Address]) -> None:
        """Those whom the primary may have counted, by its names of them, which need not be ours, with those asked."""
        known = [*self._asked, *(watch for _, watch in self._dead)]
        strangers = names - {name for watch in known for name in _names(watch)}
        asked_by_other_names = sum(1 for watch in self._asked if names.isdisjoint(_names(watch)))
        news = False
        for replica, watch in self._dead:
            # It may be back before that is known, and was counted. What it said last has to do.
            if len(names) > len(self._asked) or not names.isdisjoint(_names(watch)):
                news = news or not watch.tried
                self._judge(replica, watch)
        if news or self._trust.strange(self._shard.index, strangers, len(strangers) - asked_by_other_names):
            self._run.finish(None, ConnectionLost("a replica is not known yet"))

    def _replica_says(self, replica: Node, watch: NodeWatch, frame: bytes | None) -> None:
        if frame is not None:
            watch.settings = {} if is_error(frame) else _settings(frame)
        if self._waiting.pop(replica, None) is None:
            return
        self._judge(replica, watch)
        self._end_if_all_told()

    def _no_longer(self) -> None:
        """Who does not answer acknowledges nothing: what was known last has to do."""
        for replica, watch in self._waiting.items():
            self._trust.silent.add(watch.address)
            self._judge(replica, watch)
        self._waiting = {}
        self._end_if_all_told()

    def _judge(self, replica: Node, watch: NodeWatch) -> None:
        name = format_address(*replica.address)
        if not watch.settings:
            self._problems[replica] = _unread(self._shard, name)
        elif _acknowledges_early(watch.engine, watch.version, watch.settings):
            self._problems[replica] = _untrusted(self._shard, name, watch.engine, watch.version)

    def _end_if_all_told(self) -> None:
        if self._waiting or not self._primary_told:
            return
        self._trust.pace.forget(self)
        found = (self._problems.get(node) for node in (None, *self._shard.replicas))
        self._run.finish(next((problem for problem in found if problem is not None), None))


def _names(watch: NodeWatch) -> tuple[Address, Address]:
    return watch.address, (watch.ip, watch.port)


_read: dict[bytes, dict[str, str]] = {}
_MOST_READ = 256


def _settings(frame: bytes) -> dict[str, str]:
    """The reply to CONFIG GET; nodes say the same again and again."""
    known = _read.get(frame)
    if known is None:
        if len(_read) >= _MOST_READ:
            _read.clear()
        known = _read[frame] = read_pairs(decode(frame))
    return known


def _acknowledges_early(engine: str, version: str, settings: dict[str, str]) -> bool:
    if settings.get("appendonly") != "yes" or settings.get("appendfsync") != "everysec":
        return False
    numbers = tuple(int(word) for word in version.split(".") if word.isdigit())
    return engine != "redis" or numbers < FIRST_FIXED_REDIS


def _unread(shard: Shard, node: str) -> str:
    return f"ERR WAITAOF: the settings of {node} (shard {shard.id.decode()}) are unknown; allow CONFIG GET"


def _untrusted(shard: Shard, node: str, engine: str, version: str) -> str:
    return (
        f"ERR WAITAOF cannot be believed on shard {shard.id.decode()}: {node} has appendfsync everysec, with which "
        f"{engine} {version} acknowledges before the fsync; set appendfsync always there, "
        "or acks.untrusted_waitaof: pass to take the engine's word"
    )
