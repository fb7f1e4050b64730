"""A node of another cluster that has got the address of one of ours, and a cluster made anew at the same addresses."""

from __future__ import annotations

import trio

from proxy.routing.slot_map import View
from proxy.settings import TimeoutSettings
from proxy.topology.cluster import FORGET_AFTER, Cluster
from proxy.topology.watch import NodeWatch
from shard.client import Credentials
from tests.routing.views import view

OURS = [7000, 7001, 7002]
THEIRS = [8000, 8001, 8002, 8003, 8004]


def cluster() -> Cluster:
    made = Cluster(
        [("127.0.0.1", port) for port in OURS],
        TimeoutSettings(),
        Credentials(),
        changed=lambda old, new: None,
        lived=lambda life: None,
        restarted=lambda: None,
        recovered=lambda address: None,
        moving=lambda: None,
        amiss=lambda: False,
    )
    for port in OURS:
        made.nodes["127.0.0.1", port] = NodeWatch("127.0.0.1", port)
    return made


def hear(of: Cluster, port: int, said: View) -> None:
    """What a probe of the node at that port brings."""
    watch = of.nodes["127.0.0.1", port]
    watch.view, watch.tried, watch.alive, watch.asked_at = said, True, True, trio.current_time()
    of._hear_of(watch)
    of._consider()


async def test_a_stranger_has_no_voice_and_brings_no_friends() -> None:
    ours = cluster()
    for port in OURS:
        hear(ours, port, view("a", OURS, port))
    before = ours.map
    hear(ours, OURS[0], view("b", [OURS[0], *THEIRS], OURS[0]))
    assert set(ours.nodes) == {("127.0.0.1", port) for port in OURS}, "nodes of the other cluster are not even watched"
    assert ours.map is before


async def test_a_stranger_alone_is_not_believed_while_ours_are_silent() -> None:
    ours = cluster()
    for port in OURS:
        hear(ours, port, view("a", OURS, port))
    before = ours.map
    for port in OURS[1:]:
        ours.nodes["127.0.0.1", port].failed("no answer")
    hear(ours, OURS[0], view("b", [OURS[0], *THEIRS], OURS[0]))
    assert ours.map is before


async def test_a_cluster_made_anew_at_the_same_addresses_is_ours() -> None:
    ours = cluster()
    for port in OURS:
        hear(ours, port, view("a", OURS, port))
    before = ours.map
    for port in OURS:
        ours.nodes["127.0.0.1", port].failed("no answer")
    for port in OURS:
        hear(ours, port, view("b", OURS, port))
    assert ours.map.version > before.version
    assert not ours.map.node_ids & before.node_ids


async def test_a_stranger_who_comes_after_a_long_silence_does_not_make_us_forget_our_own() -> None:
    ours = cluster()
    ours.seeds = frozenset({("127.0.0.1", OURS[0])})
    for port in OURS:
        hear(ours, port, view("a", OURS, port))
    for port in OURS:
        ours.nodes["127.0.0.1", port].failed("no answer")
        ours._named_at["127.0.0.1", port] -= 2 * FORGET_AFTER
    hear(ours, OURS[0], view("b", [OURS[0], *THEIRS], OURS[0]))
    assert set(ours.nodes) == {("127.0.0.1", port) for port in OURS}, "what the map has is watched"
