"""A short storm.  ``make chaos`` has the long one."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from tests.chaos.storm import cluster, storm
from tests.harness import Up

SHORT = (
    "primary killed with writes unreplicated",
    "switchover",
    "connections cut",
    "slots moved",
    "primary hung with writes unreplicated, replaced, back",
    "primary killed",
)

PLANNED = ("switchover", "slots moved", "switchover")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with cluster(tmp_path_factory.mktemp("chaos")) as nodes:
        yield nodes


def test_planned_changes_cost_nobody_an_error_or_a_number(running: Up) -> None:
    outcome = storm(running, "planned", PLANNED, kills=math.inf, seconds=4, seed=1)
    assert outcome.faults.done.total() >= len(PLANNED)
    assert (outcome.lost, outcome.ledger.unconfirmed) == ([], 0)
    assert not outcome.ledger.errors and set(outcome.ledger.waits) <= {"reached", "deadline"}, outcome.ledger


def test_nothing_that_was_acknowledged_is_lost(running: Up) -> None:
    outcome = storm(running, "ackgate", SHORT, kills=2, seconds=15, seed=1)
    assert outcome.lost == []
    assert outcome.faults.kills >= 1 and len(outcome.ledger.acknowledged) > 100


def test_naive_fan_out_is_caught_by_the_same_checker(running: Up) -> None:
    outcome = storm(running, "naive fan-out", SHORT[:1], kills=1, seconds=15, seed=1, naive=True)
    assert outcome.lost
