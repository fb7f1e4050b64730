"""A node that has yet to hear of a new primary does not talk the proxy out of it."""

from __future__ import annotations

from proxy.topology.cluster import Cluster
from tests.routing.test_foreign import OURS, cluster, hear
from tests.routing.views import view

BEFORE, AFTER = OURS, [7003, 7001, 7002]
NODES = [*OURS, 7003]


def led_by(of: Cluster) -> int:
    primary = of.primary(0)
    assert primary is not None
    return primary.port


async def test_what_most_said_stands_until_most_say_otherwise() -> None:
    ours = cluster()
    for port in OURS:
        hear(ours, port, view("a", BEFORE, port, epoch=5))
    hear(ours, 7001, view("a", AFTER, 7001, epoch=6))
    assert led_by(ours) == 7000, "one voice against those that were heard a moment ago"
    hear(ours, 7002, view("a", AFTER, 7002, epoch=6))
    assert led_by(ours) == 7003
    # Asked after that, and the only one so far; it voted, so it knows of the epoch.
    hear(ours, 7000, view("a", BEFORE, 7000, epoch=6))
    assert led_by(ours) == 7003, "one voice against two"
    hear(ours, 7001, view("a", BEFORE, 7001, epoch=6))
    hear(ours, 7002, view("a", BEFORE, 7002, epoch=6))
    assert led_by(ours) == 7000, "they all say so by now"


async def test_a_redirection_is_news_that_no_older_view_speaks_against() -> None:
    ours = cluster()
    for port in OURS:
        hear(ours, port, view("a", BEFORE, port, epoch=5))
    ours.moved(0, "127.0.0.1", 7003)
    moved = ours.map.owner(0)
    assert moved is not None and moved.primary is not None and moved.primary.port == 7003
    hear(ours, 7001, view("a", AFTER, 7001, epoch=6))
    assert led_by(ours) == 7003


async def test_a_node_that_is_cut_off_and_then_lost_does_not_keep_the_others_from_being_believed() -> None:
    ours = cluster()
    # It raised its epoch with every election that it could not win; its routes are those of the others.
    for port, epoch in zip(OURS, (5, 9, 5), strict=True):
        hear(ours, port, view("a", BEFORE, port, epoch=epoch))
    assert led_by(ours) == 7000
    ours.nodes["127.0.0.1", 7001].failed("no answer")
    for port in (7000, 7002):
        hear(ours, port, view("a", AFTER, port, epoch=6))
    assert led_by(ours) == 7003
