"""What is done to a shard: one failure at a time, so that what all of its replicas acknowledged has to survive.

What is done with proxies is in ``tests.chaos.proxies``, to the network in ``tests.chaos.network``.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import redis

from tests.chaos.clients import Ledger
from tests.chaos.network import RESENT_S, NetworkFaults
from tests.chaos.proxies import SERVED_S, Proxy, ProxyFaults, serves
from tests.harness import Up, until
from tests.system.nodes import Node, Shard, migrate, promote, shards_of

SLOTS_MOVED = 20
BUSY_ENOUGH = 200
ELECTION_S = 2.0  # for which an election may last before it is asked for again; asking begins it anew


class Faults:
    """Breaks the shards of ``running``, mostly at random.  ``busy`` counts writes acknowledged in the last second.

    What is done with ``proxies`` needs some, what is done to the network one of the storm's own.
    """

    def __init__(self, running: Up, ledger: Ledger, seed: int, proxies: Sequence[Proxy] = ()) -> None:
        self.running = running
        self.ledger = ledger
        self.busy = ledger.in_the_last_second
        self.random = random.Random(seed)
        self.proxies = ProxyFaults(proxies, self.random, ledger.broke)
        self.network = NetworkFaults(proxies, self.random, leads)
        self.done: Counter[str] = Counter()
        self.slowest = (0.0, "nothing")
        """The longest time from whole nodes to the proxies' serving them, in seconds, and behind which fault."""
        self.busy_before_kill: list[int] = []
        self.kinds: dict[str, Callable[[Shard], None]] = {
            "primary killed": self.kill_primary,
            "primary killed with writes unreplicated": self.kill_ahead,
            "primary and replica killed": self.kill_both,
            "primary hung, replaced, back": self.hang,
            "primary hung with writes unreplicated, replaced, back": self.hang_ahead,
            "takeover with writes unreplicated": self.take_over_ahead,
            "two forced promotions": self.force_twice,
            "switchover": self.switch_over,
            "two switchovers": self.switch_twice,
            "primary stopped for a moment": self.stop_primary,
            "replica stopped for a moment": self.stop_replica,
            "replica killed": self.kill_replica,
            "connections cut": self.cut_connections,
            "slots moved": self.move_slots,
            **self.proxies.kinds,
            **self.network.kinds,
        }

    @property
    def killed(self) -> int:
        """Primaries."""
        return len(self.busy_before_kill)

    @property
    def kills(self) -> int:
        """Those that count: so many writes had been acknowledged in the second before that there was much to lose."""
        return sum(1 for busy in self.busy_before_kill if busy >= BUSY_ENOUGH)

    def strike(self, kind: str, busy: int = 1) -> None:
        """Do it to some shard, once all are whole and so many writes are acknowledged a second."""
        shards = self.settled(busy)
        self.ledger.begins(kind)
        self.kinds[kind](self.random.choice(shards))
        self.done[kind] += 1

    def settled(self, busy: int = 1) -> list[Shard]:
        """The shards, once each has its primary, a replica in step, and clients that get their numbers."""
        until(lambda: all(map(whole, shards_of(self.running))), "all nodes are well again")
        self._served()
        until(lambda: self.busy() >= busy and all(map(in_step, shards_of(self.running))), "all is well again")
        return shards_of(self.running)

    def _served(self) -> None:
        """The nodes are whole: each proxy serves them soon."""
        slots = [shard.slot for shard in shards_of(self.running)]
        with ThreadPoolExecutor() as pool:
            times = pool.map(partial(_until_served, slots), self.proxies.proxies)
            for proxy, took in zip(self.proxies.proxies, times, strict=True):
                self.slowest = max(self.slowest, (took, self.ledger.fault))
                if took > SERVED_S + (RESENT_S if self.ledger.fault in self.network.resent else 0.0):
                    self.ledger.broke("not served when all was whole", f"{proxy.name} after {took:.2f} s")

    # -- primaries that end ---------------------------------------------------------------------------
    def _kill(self, shard: Shard) -> None:
        self.busy_before_kill.append(self.busy())
        os.kill(shard.primary.pid, signal.SIGKILL)

    def kill_primary(self, shard: Shard) -> None:
        self._kill(shard)
        until(lambda: leads(shard.replica), "its replica leads")

    def kill_ahead(self, shard: Shard) -> None:
        self._run_ahead(shard)
        self._kill(shard)
        os.kill(shard.replica.pid, signal.SIGCONT)
        until(lambda: leads(shard.replica), "its replica leads")

    def kill_both(self, shard: Shard) -> None:
        """More than one failure, but what was acknowledged has reached both files (AOF always)."""
        self._kill(shard)
        os.kill(shard.replica.pid, signal.SIGKILL)

    def hang(self, shard: Shard) -> None:
        with shard.primary.stopped():
            self._replaced(shard)

    def hang_ahead(self, shard: Shard) -> None:
        self._run_ahead(shard)
        with shard.primary.stopped():
            os.kill(shard.replica.pid, signal.SIGCONT)
            self._replaced(shard)

    def _replaced(self, shard: Shard) -> None:
        until(lambda: leads(shard.replica), "its replica leads")
        self._a_moment()

    def take_over_ahead(self, shard: Shard) -> None:
        self._run_ahead(shard)
        with shard.primary.stopped():
            os.kill(shard.replica.pid, signal.SIGCONT)
            until(lambda: _ask(shard.replica, "TAKEOVER") or leads(shard.replica), "its replica leads")

    def _run_ahead(self, shard: Shard) -> None:
        """The primary takes writes that are not even on their way to its replica."""
        os.kill(shard.replica.pid, signal.SIGSTOP)
        shard.primary.call("CLIENT", "KILL", "TYPE", "replica")
        self._a_moment()

    # -- primaries that change ------------------------------------------------------------------------
    def force_twice(self, shard: Shard) -> None:
        for node in (shard.replica, shard.primary):
            _force(node)

    def switch_over(self, shard: Shard) -> None:
        promote(shard.replica)

    def switch_twice(self, shard: Shard) -> None:
        promote(shard.replica)
        promote(shard.primary)

    def move_slots(self, shard: Shard) -> None:
        target = self.random.choice([each for each in shards_of(self.running) if each.primary.id != shard.primary.id])
        migrate(shard, target, shard.slot, shard.slot + SLOTS_MOVED - 1)

    # -- what passes ----------------------------------------------------------------------------------
    def stop_primary(self, shard: Shard) -> None:
        with shard.primary.stopped():
            self._a_moment()

    def stop_replica(self, shard: Shard) -> None:
        with shard.replica.stopped():
            self._a_moment()

    def kill_replica(self, shard: Shard) -> None:
        os.kill(shard.replica.pid, signal.SIGKILL)

    def cut_connections(self, shard: Shard) -> None:
        with shard.replica.stopped():
            self._a_moment()
            shard.primary.call("CLIENT", "KILL", "TYPE", "normal")
            self._a_moment()

    def _a_moment(self) -> None:
        """How long a fault lasts: no synchronisation, but a part of it."""
        time.sleep(self.random.uniform(0.05, 0.4))


def _until_served(slots: list[int], proxy: Proxy) -> float:
    """Seconds until it serves these slots, beyond what the same takes right after that: a busy machine is no fault."""
    began = time.monotonic()
    until(lambda: serves(proxy.url, slots), f"{proxy.name} serves every shard")
    served = time.monotonic()
    until(lambda: serves(proxy.url, slots), f"{proxy.name} serves every shard")
    return max(0.0, 2 * served - began - time.monotonic())


def leads(node: Node) -> bool:
    try:
        return bool(node.call("ROLE")[0] == "master")
    except redis.RedisError:
        return False


def linked(node: Node) -> bool:
    """Whether it is a replica in step."""
    return bool(node.direct.info("replication").get("master_link_status") == "up")


def in_step(shard: Shard) -> bool:
    try:
        fields = shard.primary.direct.info("replication")
        follower = fields.get("slave0", {}).get("state") == "online"
        return fields["role"] == "master" and follower and linked(shard.replica)
    except redis.RedisError:
        return False


def whole(shard: Shard) -> bool:
    """Whether its nodes are in step, know that the cluster is served, and are not paused any more."""
    try:
        known = [str(node.call("CLUSTER", "INFO")) for node in (shard.primary, shard.replica)]
        paused = shard.primary.direct.info("clients").get("paused_actions", "none") != "none"
        return not paused and all("cluster_state:ok" in each for each in known) and in_step(shard)
    except redis.RedisError:
        return False


def _force(node: Node) -> None:
    """Have a replica in step promoted, whatever its primary thinks of it."""
    asked_at = -ELECTION_S

    def led() -> bool:
        nonlocal asked_at
        if time.monotonic() - asked_at > ELECTION_S and linked(node) and _ask(node, "FORCE"):
            asked_at = time.monotonic()
        return leads(node)

    until(led, "it leads")


def _ask(node: Node, how: str) -> bool:
    """Ask a replica to lead; True when it will try."""
    try:
        node.call("CLUSTER", "FAILOVER", how)
    except redis.ResponseError:
        return False
    return True
