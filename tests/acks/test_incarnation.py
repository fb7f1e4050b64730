"""Which changes of a live primary are the same life, and which are another."""

from __future__ import annotations

from collections.abc import Callable

from proxy.acks.incarnation import Incarnation, Incarnations, Life, own_slots
from proxy.acks.rounds import expand
from tests.acks.conftest import Server
from tests.harness import until

Start = Callable[..., Server]


def life(server: Server) -> Life:
    return Life.read("node", server.info())


def follow(server: Server, leader: Server | None) -> None:
    server.client.execute_command("REPLICAOF", *(("127.0.0.1", leader.port) if leader is not None else ("NO", "ONE")))


def follows(server: Server) -> bool:
    return server.info().get("master_link_status") == "up"


def test_the_first_replica_begins_no_new_life(start: Start) -> None:
    primary, replica = start(), start()
    before = life(primary)
    incarnation = Incarnation(before)
    follow(replica, primary)
    until(lambda: follows(replica), "the replica is in step")
    assert life(primary).replid != before.replid, "the engine does change the id here"
    assert incarnation.goes_on(life(primary))


def test_a_freed_backlog_begins_no_new_life(start: Start) -> None:
    primary, replica = start("--repl-backlog-ttl", "1"), start()
    follow(replica, primary)
    until(lambda: follows(replica), "the replica is in step")
    before = life(primary)
    incarnation = Incarnation(before)
    follow(replica, None)
    until(lambda: life(primary).replid != before.replid, "the backlog is freed")
    assert incarnation.goes_on(life(primary))


def test_demoted_and_promoted_again_is_another_life(start: Start) -> None:
    primary, other = start(), start()
    follow(other, primary)
    until(lambda: follows(other), "the replica is in step")
    incarnation = Incarnation(life(primary))
    follow(other, None)
    follow(primary, other)
    assert not incarnation.goes_on(life(primary)), "a replica is no primary"
    until(lambda: follows(primary), "the roles are changed")
    follow(primary, None)
    assert life(primary).role == "master" and not incarnation.goes_on(life(primary))


def test_promoted_again_before_it_ever_followed_is_another_life(start: Start) -> None:
    primary, other = start(), start()
    incarnation = Incarnation(life(primary))
    follow(primary, other)
    follow(primary, None)
    assert not incarnation.goes_on(life(primary))


def test_a_restarted_process_is_another_life(start: Start) -> None:
    primary = start("--appendonly", "yes")
    incarnation = Incarnation(life(primary))
    primary.kill()
    primary.start()
    assert not incarnation.goes_on(life(primary))


def test_a_life_that_ended_never_goes_on(start: Start) -> None:
    ends: list[None] = []
    incarnations = Incarnations(lambda: ends.append(None))
    present = life(start())
    first = incarnations.observe(present)
    assert first is not None and incarnations.observe(present) is first and not ends
    assert incarnations.observe(present._replace(role="slave")) is None
    assert first.ended and len(ends) == 1
    second = incarnations.observe(present)
    assert second is not None and second is not first and first.ended
    incarnations.end(second)
    incarnations.end(second)
    assert second.ended and len(ends) == 2, "it ends once"


def test_a_nodes_own_slots_and_those_on_their_way() -> None:
    line = "{} 127.0.0.1:1@2 {} - 0 0 1 connected {}\n"
    nodes = line.format("a", "master", "5-9") + line.format("b", "myself,master", "0-2 7 [8->-a]")
    assert own_slots(nodes.encode()) == (frozenset({"0-2", "7"}), True)
    assert own_slots(line.format("b", "myself,master", "").encode()) == (frozenset(), False)
    assert expand(frozenset({"0-2", "7"})) == {0, 1, 2, 7}
