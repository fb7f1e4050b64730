"""Which changes of a live primary are the same life, and which are another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.acks.incarnation import NO_SECOND_ID, Incarnation, Incarnations, Life, own_slots
from proxy.acks.rounds import expand
from tests.acks.conftest import Server
from tests.harness import until
from tests.system.beside import redis_binary

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


@pytest.mark.slow
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


def hand_over(primary: Server, replica: Server, *how: str) -> None:
    """The engine's own planned switchover."""
    primary.client.execute_command("FAILOVER", "TO", "127.0.0.1", replica.port, *how)
    until(lambda: replica.info()["role"] == "master" and follows(primary), "the roles are changed")


def named(server: Server, name: str) -> Life:
    return life(server)._replace(node_id=name)


def pair(start: Start, binary: Path | None = None) -> tuple[Server, Server]:
    """A primary and its replica in step."""
    primary, replica = start(binary=binary), start(binary=binary)
    follow(replica, primary)
    until(lambda: follows(replica), "the replica is in step")
    assert primary.client.set("key", "value")
    assert primary.client.wait(1, 0) == 1
    return primary, replica


def led(start: Start) -> tuple[Server, Server, Incarnations, Incarnation]:
    """Such a pair, and the life of its primary as it was seen."""
    primary, replica = pair(start)
    lives = Incarnations()
    former = lives.observe(named(primary, "p"))
    assert former is not None
    return primary, replica, lives, former


@pytest.mark.parametrize("engine", ["valkey", "redis"])
def test_a_switchover_that_carried_everything_carries_the_life_on(engine: str, start: Start) -> None:
    primary, replica = pair(start, redis_binary() if engine == "redis" else None)
    changes: list[None] = []
    lives = Incarnations(lambda: changes.append(None))
    former = lives.observe(named(primary, "p"))
    assert former is not None and lives.observe(named(replica, "q")) is None
    hand_over(primary, replica)
    assert lives.observe(named(primary, "p")) is None
    assert former.ended and former.unsettled and not former.lost, "whom it follows has not spoken yet"
    heir = lives.observe(named(replica, "q"))
    assert heir is not None and former.present is heir and not former.lost and not lives.unsettled and len(changes) == 2
    hand_over(replica, primary)
    back = lives.observe(named(primary, "p"))
    lives.observe(named(replica, "q"))
    assert back is not None and back is not former and former.present is heir.present is back


def test_it_does_not_matter_who_speaks_first(start: Start) -> None:
    primary, replica, lives, former = led(start)
    hand_over(primary, replica)
    heir = lives.observe(named(replica, "q"))
    assert former.present is former and not former.ended
    lives.depose(former)
    assert former.unsettled
    lives.observe(named(primary, "p"))
    assert former.present is heir


def test_a_promotion_that_left_a_write_behind_carries_nothing_on(start: Start) -> None:
    primary, replica, lives, former = led(start)
    follow(replica, None)
    assert primary.client.set("key", "left behind")
    follow(primary, replica)
    until(lambda: follows(primary), "the roles are changed")
    assert lives.observe(named(replica, "q")) is not None
    assert lives.observe(named(primary, "p")) is None
    assert former.lost and former.present is former


def test_a_former_primary_that_begins_to_copy_its_successor_proves_nothing() -> None:
    lives = Incarnations()
    life = Life("p", "run", "master", "1" * 40, NO_SECOND_ID)
    former = lives.observe(life)
    assert former is not None
    lives.observe(life._replace(role="slave"))
    assert former.unsettled
    lives.observe(life._replace(role="slave", copying=True))
    assert former.lost


def test_a_switchover_that_nobody_saw_carries_nothing_on(start: Start) -> None:
    primary, replica, lives, former = led(start)
    hand_over(primary, replica)
    hand_over(replica, primary)
    assert lives.observe(named(primary, "p")) is not former and former.lost


def test_a_former_primary_that_was_started_again_proves_nothing(start: Start) -> None:
    primary, replica, lives, former = led(start)
    follow(replica, None)
    lives.observe(named(replica, "q"))
    lives.depose(former)
    assert former.unsettled
    primary.kill()
    primary.start()
    follow(primary, replica)
    lives.observe(named(primary, "p"))
    assert former.lost and not lives.unsettled


@pytest.mark.parametrize("wrong", ["id", "end", "history", "role"])
def test_only_the_whole_proof_counts(wrong: str) -> None:
    one, two, other = "1" * 40, "2" * 40, "3" * 40
    lives = Incarnations()
    former = lives.observe(Life("p", "run", "master", one, NO_SECOND_ID))
    assert former is not None
    right = Life("q", "run q", "master", two, one, 100)
    wrongs = {
        "id": right._replace(replid=other),
        "end": right._replace(end2=99),
        "history": right._replace(replid2=other),
        "role": right._replace(role="slave"),
    }
    lives.observe(wrongs[wrong])
    lives.observe(Life("p", "run", "slave", two, one, 100))
    assert former.unsettled and former.heir is None


def test_a_nodes_own_slots_and_those_on_their_way() -> None:
    line = "{} 127.0.0.1:1@2 {} - 0 0 1 connected {}\n"
    nodes = line.format("a", "master", "5-9") + line.format("b", "myself,master", "0-2 7 [8->-a]")
    assert own_slots(nodes.encode()) == (frozenset({"0-2", "7"}), True)
    assert own_slots(line.format("b", "myself,master", "").encode()) == (frozenset(), False)
    assert expand(frozenset({"0-2", "7"})) == {0, 1, 2, 7}
