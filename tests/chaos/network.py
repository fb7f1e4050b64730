"""What is done to the network between nodes and proxies: cut, slowed down, made to lose packets.

It drops packets of loopback, so it needs a network of the storm's own (``tests.namespace``).
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from proxy.commands.packetfilter import (
    Chain,
    Rule,
    everything_of,
    of_connection,
    of_port,
    sockets_of,
    to_where_it_was,
)
from tests.chaos.proxies import Proxy
from tests.harness import until
from tests.system.nodes import Node, Shard

SLOW = "300kbit"  # a third of what the load of one shard takes
LOSS = "0.08"  # of packets each of two times that a packet passes the filter

DRAINED_S = 0.1  # for what waits to be delivered
RESENT_S = 3.0
"""For which TCP may wait before it sends again what was dropped, behind a fault: as long again as that lasted."""

Rules = Callable[[], list[Rule]]


class NetworkFaults:
    """``leads`` tells whether a node does."""

    def __init__(self, proxies: Sequence[Proxy], chance: random.Random, leads: Callable[[Node], bool]) -> None:
        self.proxies = proxies
        self.random = chance
        self.leads = leads
        self.kinds: dict[str, Callable[[Shard], None]] = {
            "primary cut off": self.cut_primary,
            "primary cut off from the other nodes alone": self.cut_from_nodes,
            "replica cut off": self.cut_replica,
            "one proxy cut off from a primary": self.cut_proxy,
            "slow way to a primary": self.slow,
            "way to a primary that loses packets": self.lose,
        }
        self.resent = set(self.kinds) - {"primary cut off", "primary cut off from the other nodes alone"}
        """Those behind which connections go on that may have lost something: nobody took over."""

    def cut_primary(self, shard: Shard) -> None:
        """Nobody reaches it; its replica is elected."""
        self._cut_until_replaced(shard, lambda: everything_of(sockets_of(shard.primary.pid)))

    def cut_from_nodes(self, shard: Shard) -> None:
        """Proxies reach it, and it takes writes that nobody will ever see again, until it finds that it is alone."""
        self._cut_until_replaced(shard, lambda: between_nodes(shard))

    def cut_replica(self, shard: Shard) -> None:
        self._cut_for(self.random.uniform(0.3, 1.5), lambda: everything_of(sockets_of(shard.replica.pid)))

    def cut_proxy(self, shard: Shard) -> None:
        """The other proxy reaches it."""
        proxy = self.random.choice(self.proxies)
        self._cut_for(self.random.uniform(0.5, 3.0), lambda: ways(proxy.process.pid, shard.primary))

    def slow(self, shard: Shard) -> None:
        """In both directions, replication included; too much that waits is lost."""
        tc("qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb", "default", "10")
        try:
            for classid, rate in (("1:10", "10gbit"), ("1:20", SLOW)):
                tc("class", "add", "dev", "lo", "parent", "1:", "classid", classid, "htb", "rate", rate)
            for end in ("sport", "dport"):
                match = ("u32", "match", "ip", end, str(shard.primary.port), "0xffff", "flowid", "1:20")
                tc("filter", "add", "dev", "lo", "parent", "1:", "protocol", "ip", *match)
            time.sleep(self.random.uniform(1.0, 2.5))
            tc("class", "change", "dev", "lo", "parent", "1:", "classid", "1:20", "htb", "rate", "10gbit")
            time.sleep(DRAINED_S)
        finally:
            tc("qdisc", "del", "dev", "lo", "root")

    def lose(self, shard: Shard) -> None:
        some = ("-m", "statistic", "--mode", "random", "--probability", LOSS)
        rules = [Rule(each.family, (*some, *each.words)) for each in of_port(4, shard.primary.port)]
        self._cut_for(self.random.uniform(1.0, 2.5), lambda: rules)

    def _cut_until_replaced(self, shard: Shard, rules: Rules) -> None:
        with dropped() as chain:

            def led() -> bool:
                chain.drop(rules())  # new connections, too
                return self.leads(shard.replica)

            until(led, "its replica leads")
            self._for(self.random.uniform(0.1, 1.0), chain, rules)

    def _cut_for(self, seconds: float, rules: Rules) -> None:
        with dropped() as chain:
            self._for(seconds, chain, rules)

    def _for(self, seconds: float, chain: Chain, rules: Rules) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            chain.drop(rules())
            time.sleep(0.05)


@contextmanager
def dropped() -> Iterator[Chain]:
    """Rules that are gone at the end of the block."""
    chain = Chain(os.getpid(), "storm")
    try:
        yield chain
    finally:
        for command in chain.removal():
            subprocess.run(command, capture_output=True)


def ways(pid: int, node: Node) -> list[Rule]:
    """The connections of a process to a node, and new ones there, whosoever they are."""
    made = [each for each in sockets_of(pid) if each.remote == (node.host, node.port)]
    return [rule for each in made for rule in (*of_connection(each), to_where_it_was(each))]


def between_nodes(shard: Shard) -> list[Rule]:
    """The primary's cluster bus, both ways, and its replica's link to it."""
    bus = [each for each in sockets_of(shard.primary.pid) if each.port != shard.primary.port]
    link = [each for each in sockets_of(shard.replica.pid) if each.remote == (shard.primary.host, shard.primary.port)]
    return everything_of(bus) + [rule for each in link for rule in of_connection(each)]


def tc(*words: str) -> None:
    subprocess.run(["tc", *words], check=True, capture_output=True)
