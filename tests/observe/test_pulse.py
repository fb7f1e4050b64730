"""The pulse: outages are timed, lives counted, and changes of a primary told apart."""

from __future__ import annotations

import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from proxy.acks.incarnation import NO_SECOND_ID, Incarnation, Life
from proxy.observe.metrics import Metrics
from proxy.observe.pulse import Pulse, Seen
from proxy.routing.slot_map import Node
from tests.observe.test_metrics import Stub

ONE, OTHER = Node("a", 1, b"one"), Node("b", 2, b"other")


class Bench:
    def __init__(self) -> None:
        self.metrics = Metrics(Stub())
        self.seen: list[Seen] = []
        self.pulse = Pulse(self.metrics, lambda: self.seen)

    def look(self, now: float, *seen: Seen) -> None:
        self.seen = list(seen)
        self.pulse.look(now)

    def sample(self, name: str, **labels: str) -> float | None:
        text = self.metrics.render()[0].decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        found = [each.value for each in samples if each.name == name and labels.items() <= each.labels.items()]
        return float(found[0]) if found else None


def life(run_id: str) -> Incarnation:
    return Incarnation(Life("one", run_id, "master", "id", NO_SECOND_ID))


def test_an_outage_is_timed_from_its_first_look_to_its_last() -> None:
    bench = Bench()
    bench.look(1.0, Seen("s", True, None))
    bench.look(2.0, Seen("s", False, None))
    bench.look(3.0, Seen("s", False, None))
    assert bench.sample("ackgate_shard_outage_seconds_count", shard="s") is None
    bench.look(4.5, Seen("s", True, None))
    assert bench.sample("ackgate_shard_outage_seconds_count", shard="s") == 1
    assert bench.sample("ackgate_shard_outage_seconds_sum", shard="s") == 2.5


def test_what_was_never_up_was_not_out() -> None:
    bench = Bench()
    bench.look(1.0, Seen("s", False, None))
    bench.look(9.0, Seen("s", True, None))
    assert bench.sample("ackgate_shard_outage_seconds_count", shard="s") is None


def test_a_shard_that_serves_nothing_any_more_is_forgotten() -> None:
    bench = Bench()
    first = life("a")
    bench.look(1.0, Seen("s", True, first))
    bench.look(2.0, Seen("s", False, first))
    bench.look(3.0)
    bench.look(4.0, Seen("s", True, life("b")))
    assert bench.sample("ackgate_shard_outage_seconds_count", shard="s") is None
    assert bench.pulse.lives == {}


def test_lives_are_counted_from_the_second_on() -> None:
    bench = Bench()
    first, second = life("a"), life("b")
    for present in (None, first, first, None, second, second):
        bench.look(1.0, Seen("s", True, present))
    assert bench.pulse.lives == {"s": 1}


def test_changes_are_failovers_where_the_former_primary_did_not_answer() -> None:
    bench = Bench()
    bench.pulse.leads("s", ONE, answered=False)
    assert bench.pulse.changes == {}, "the first one is no change"
    bench.pulse.leads("s", OTHER, answered=False)
    bench.pulse.leads("s", OTHER, answered=False)
    bench.pulse.leads("s", ONE, answered=True)
    assert bench.pulse.changes == {("s", "failover"): 1, ("s", "switchover"): 1}


def test_a_node_that_moved_or_told_its_id_only_now_is_the_same() -> None:
    bench = Bench()
    bench.pulse.leads("s", Node("a", 1), answered=True)
    bench.pulse.leads("s", ONE, answered=True)
    bench.pulse.leads("s", Node("elsewhere", 9, b"one"), answered=True)
    assert bench.pulse.changes == {}


async def test_the_loop_s_delay_is_told(autojump_clock: MockClock) -> None:
    bench = Bench()
    with trio.move_on_after(1.05):
        await bench.pulse.run()
    assert bench.sample("ackgate_loop_delay_seconds_count") == 10
    assert bench.sample("ackgate_loop_delay_seconds_bucket", le="0.0005") == 10
