"""One shard's rounds against its live nodes, at the moments that only a test can choose."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from proxy.acks.arguments import Asked
from proxy.acks.crowd import PURGE, Crowd
from proxy.acks.incarnation import Stamp
from proxy.acks.markers import MARKER_LANES
from proxy.acks.primary import Primary
from proxy.acks.question import Memory
from proxy.acks.rounds import ShardRounds
from proxy.acks.wait import Acks
from proxy.acks.waiters import Gate, Waiter
from proxy.dataplane import DataPlane
from shard.client import ConnectionLost, ControlConnection
from tests.acks.rig import Answered, Make, Node, come_true, trusted
from tests.harness import PATIENCE_S, Up


@pytest.fixture
def nodes(shard: Up) -> tuple[Node, list[Node]]:
    [row] = shard.topology()["shards"]
    return Node(row["primary"]), [Node(replica) for replica in row["replicas"]]


@pytest.fixture
def primary(nodes: tuple[Node, list[Node]]) -> Node:
    return nodes[0]


@pytest.fixture
def replicas(nodes: tuple[Node, list[Node]]) -> list[Node]:
    return nodes[1]


@pytest.fixture
async def rounds(primary: Node, make: Make) -> ShardRounds:
    async with await primary.connect() as client:

        async def in_step() -> bool:
            await client.call("SET", "in", "step")
            return bool(await client.call("WAITAOF", 1, 2, 100) == [1, 2])

        await come_true(in_step, "both replicas are in step")
    return make(primary.connect)


@pytest.fixture
async def crowd(primary: Node, plane: DataPlane) -> AsyncIterator[Crowd]:
    acks = Acks(
        plane,
        connect=lambda shard: primary.connect(),
        distrust=lambda shard, primary: trusted(primary),
        restamp=lambda shard, tick, generation: None,
        shards=lambda: [0],
        ended=lambda: None,
        answers=lambda node_id: True,
        hint=lambda: None,
    )
    crowd = Crowd(acks, plane.turn)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(acks.run)
        nursery.start_soon(crowd.run)
        await wait_all_tasks_blocked()
        yield crowd
        nursery.cancel_scope.cancel()
    acks.of(0).reset()


class Unwritten:
    """A session that wrote nothing."""

    def __init__(self) -> None:
        self.writes: dict[int, list[Stamp]] = {}


async def write(node: Node) -> None:
    async with await node.connect() as client:
        assert await client.call("SET", "key", "value") == b"OK"


def waiter(want: int, want_local: int = 0) -> Waiter:
    return Waiter(Gate(1), want, want_local, None)


async def test_who_joins_while_a_look_is_under_way_is_not_let_go_by_it(
    rounds: ShardRounds, primary: Node, replicas: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    with replicas[0].stopped(), replicas[1].stopped():
        await write(primary)
        late = waiter(1)
        look = Primary.look
        joined = trio.Event()

        def look_and_join(self: Primary, requests: Sequence[bytes], done: Answered, kick: bool = False) -> None:
            look(self, requests, done, kick)
            if not joined.is_set():
                rounds.join(late)
                joined.set()

        monkeypatch.setattr(Primary, "look", look_and_join)
        first = waiter(5)
        rounds.join(first)
        await joined.wait()
        await rounds.look_again()
        assert (first.count, late.count, late.done) == (0, 0, False)
    await late.gate.wait()
    assert late.count >= 1 and not first.done


async def test_who_leaves_while_the_marker_is_on_its_way_is_not_taken_up_again(
    rounds: ShardRounds, primary: Node, replicas: list[Node]
) -> None:
    ready = waiter(2, 1)
    rounds.join_fsync(ready, wrote=True)
    await ready.gate.wait()
    with replicas[0].stopped(), replicas[1].stopped():
        gone = waiter(1)
        with primary.stopped():
            rounds.join_fsync(gone, wrote=True)
            await wait_all_tasks_blocked()
            assert gone not in rounds.markers._unmarked, "its marker has been sent"
            rounds.leave(gone)

        async def at_rest() -> bool:
            return rounds.markers.at_rest

        sentinel = waiter(0, 1)
        rounds.join_fsync(sentinel, wrote=True)
        await sentinel.gate.wait()
        await come_true(at_rest, "nobody waits")


async def test_a_caller_that_goes_away_takes_nobodys_question_along(rounds: ShardRounds, primary: Node) -> None:
    first = await rounds.verdict(fsync=False)
    lanes = rounds._primary
    results = []

    async def ask() -> None:
        results.append(await rounds.verdict(fsync=False))

    async with trio.open_nursery() as nursery:
        with primary.stopped():
            impatient = trio.CancelScope()

            async def give_up() -> None:
                with impatient:
                    await rounds.verdict(fsync=False)

            nursery.start_soon(give_up)
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            impatient.cancel()
            await wait_all_tasks_blocked()
    assert [verdict.incarnation for verdict in results] == [first.incarnation]
    assert rounds._primary is lanes and lanes is not None and not lanes.main.closed


async def test_hopeless_waits_hold_back_nobody_and_take_no_more_lanes(rounds: ShardRounds, primary: Node) -> None:
    hopeless = [waiter(5) for _ in range(3 * MARKER_LANES)]
    for each in hopeless:
        await write(primary)
        rounds.join_fsync(each, wrote=True)
        rounds.join(waiter(5))
        newcomers = [waiter(2, 1), waiter(2)]
        rounds.join_fsync(newcomers[0], wrote=True)
        rounds.join_fsync(waiter(5), wrote=False)
        rounds.join(newcomers[1])
        for newcomer in newcomers:
            await newcomer.gate.wait()
    async with await primary.connect() as client:
        clients = await client.call("CLIENT", "LIST")
    assert clients.count(b"name=under-test") <= 1 + 3 + MARKER_LANES
    assert [each.count for each in hopeless] == [2] * len(hopeless), "and they know what there is"
    assert len(rounds.markers._marked) <= 1 + MARKER_LANES
    assert rounds.markers.raised > 0, "which is counted"


async def test_ack_lanes_that_are_lost_while_a_marker_is_watched_cost_nobody_a_number(
    rounds: ShardRounds, primary: Node
) -> None:
    await write(primary)
    hopeless, newcomer = waiter(5), waiter(2, 1)
    rounds.join_fsync(hopeless, wrote=True)

    async def watched() -> bool:
        return hopeless.count == 2

    await come_true(watched, "its marker has reached both disks")
    lanes = rounds._primary
    assert lanes is not None
    lanes._kicker.close()
    with pytest.raises(ConnectionLost):
        lanes.kick()
    rounds.join_fsync(newcomer, wrote=True)
    with trio.fail_after(PATIENCE_S):
        await newcomer.gate.wait()
    await rounds.nudge()
    assert rounds._primary is not lanes and not hopeless.done


async def test_a_threshold_is_the_first_offset_sampled_behind_the_write(rounds: ShardRounds, primary: Node) -> None:
    async with await primary.connect() as client:
        thresholds = []
        for value in range(3):
            await client.call("SET", "key", value)
            tick = rounds.tick
            assert rounds.threshold_after(tick) is None, "no offset was sampled since"
            each = waiter(2)
            rounds.join(each)
            await each.gate.wait()
            [_, offset, _] = await client.call("ROLE")
            thresholds.append((tick, rounds.threshold_after(tick), offset))
    for (tick, threshold, offset), (_, later, _) in pairwise(thresholds):
        assert threshold is not None and later is not None and threshold <= offset <= later
        assert rounds.threshold_after(tick) == threshold, "it stays what it was"


async def test_losing_slots_begins_a_generation_and_gaining_them_does_not(primary: Node, make: Make) -> None:
    ticked: list[int] = []
    rounds = make(primary.connect, ticked.append)
    rounds.owns(frozenset({"0-9"}))
    rounds.owns(frozenset({"0-4", "5-12"}))
    assert (rounds.generation, ticked) == (0, [])
    rounds.owns(frozenset({"0-11"}))
    assert (rounds.generation, ticked) == (1, [7]), "lanes stamp writes anew"


async def test_a_run_that_failed_fails_those_who_shared_it_and_nobody_else(primary: Node, make: Make) -> None:
    reachable = trio.Event()

    async def connect() -> ControlConnection:
        if not reachable.is_set():
            raise ConnectionLost("not yet")
        return await primary.connect()

    rounds = make(connect)
    shared = [rounds.next_verdict(fsync=True) for _ in range(2)]
    assert shared[0] is shared[1]
    with trio.fail_after(10):
        await shared[0].done.wait()
    assert isinstance(shared[0].failure, ConnectionLost)
    reachable.set()
    with trio.fail_after(10):
        assert (await rounds.verdict(fsync=True)).untrusted is None


async def test_a_node_that_is_a_replica_by_now_is_not_taken_at_its_word(
    primary: Node, replicas: list[Node], make: Make
) -> None:
    at_first = [replicas[0]]  # the one we reach says that WAITAOF is not for replicas: that is no answer to a session

    async def connect() -> ControlConnection:
        node = at_first[0] if at_first else primary
        connection = await node.connect()
        asked.set()
        return connection

    asked = trio.Event()
    made = make(connect)
    wrote, unwritten = waiter(0, want_local=1), waiter(0, want_local=1)
    made.join_fsync(wrote, wrote=True)
    made.join_fsync(unwritten, wrote=False)
    await asked.wait()
    at_first.clear()
    with trio.fail_after(PATIENCE_S):
        await wrote.gate.wait()
        await unwritten.gate.wait()
    assert (wrote.gate.failure, unwritten.gate.failure) == (None, None)
    assert (wrote.local, unwritten.local) == (1, 1)


async def test_deadlines_of_waits_that_were_answered_are_not_kept_until_they_come(crowd: Crowd) -> None:
    asked = Asked(0, 1, 3600.0, fsync=False)
    for _ in range(4):
        answered = Gate(PURGE)

        def done(frame: bytes | None, counts: object, answered: Gate = answered) -> None:
            assert frame is not None and int(frame[1:]) >= 1
            answered.enough()

        for _ in range(PURGE):
            crowd.ask(crowd.acks.question(Unwritten(), Memory(), asked), done)
        with trio.fail_after(PATIENCE_S):
            await answered.wait()
    assert not crowd._members and not crowd.acks.of(0)._sought
    assert len(crowd._deadlines) <= 2 * PURGE


async def test_who_waited_in_vain_for_a_primary_that_hangs_leaves_nothing_behind(crowd: Crowd, primary: Node) -> None:
    rounds = crowd.acks.of(0)
    frames = []

    def ask(patience: float) -> Gate:
        answered = Gate(1)

        def done(frame: bytes | None, counts: object) -> None:
            frames.append(frame)
            answered.enough()

        crowd.ask(crowd.acks.question(Unwritten(), Memory(), Asked(0, 1, patience, fsync=False)), done)
        return answered

    await ask(3600.0).wait()
    with primary.stopped():
        for answered in [ask(0.01 * (1 + number % 5)) for number in range(300)]:
            await answered.wait()
    with trio.fail_after(PATIENCE_S):
        await ask(3600.0).wait()
    assert frames[1:-1] == [b":0\r\n"] * 300
    assert not crowd._members and not rounds._sought and not rounds._waiting._kept


async def test_lanes_that_were_begun_to_a_former_primary_are_not_used(primary: Node, make: Make) -> None:
    """What is sampled there says nothing of writes that its successor takes."""
    reached: list[ControlConnection] = []
    begun, go_on = trio.Event(), trio.Event()

    async def connect() -> ControlConnection:
        connection = await primary.connect()
        reached.append(connection)
        begun.set()
        if len(reached) == 1:
            await go_on.wait()
        return connection

    rounds = make(connect)
    rounds.join(each := waiter(1))
    await begun.wait()
    rounds.reset()
    go_on.set()
    with trio.fail_after(PATIENCE_S):
        await each.gate.wait()
    assert rounds._primary is not None and rounds._primary.main is not reached[0] and reached[0].closed


async def test_one_that_cannot_be_satisfied_is_not_looked_for_while_there_is_nothing_new(
    rounds: ShardRounds, primary: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = Primary.look

    def counted(self: Primary, requests: Sequence[bytes], done: Answered, kick: bool = False) -> None:
        nonlocal looks
        looks += 1
        look(self, requests, done, kick)

    monkeypatch.setattr(Primary, "look", counted)
    rounds.join(waiter(5))
    in_vain = 0
    for _ in range(20):
        newcomer = waiter(2)
        rounds.join(newcomer)
        await newcomer.gate.wait()
        before = looks
        await trio.sleep(0.005)
        in_vain += looks - before
    assert in_vain < 20, "every replica has all that anybody wrote"
