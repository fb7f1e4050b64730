"""A short storm.  ``make chaos`` has the long one."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos.__main__ import faults_of, main
from tests.chaos.clients import Ledger
from tests.chaos.proxies import ProxyFaults
from tests.chaos.storm import (
    DURABILITY,
    EVERYTHING,
    Crew,
    Outcome,
    by_naive_fan_out,
    cluster,
    storm,
    under_durability,
    under_no_rule,
)
from tests.harness import Up, until
from tests.system.nodes import shards_of
from tests.system.wire import Wire

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
    with cluster(tmp_path_factory.mktemp("chaos"), DURABILITY) as nodes:
        yield nodes


def test_planned_changes_cost_nobody_an_error_or_a_number(running: Up) -> None:
    outcome = storm(running, "planned", PLANNED, kills=math.inf, seconds=4, seed=1)
    assert outcome.faults.done.total() >= len(PLANNED)
    assert (outcome.lost, outcome.ledger.unconfirmed, outcome.ledger.examples) == ([], [], [])
    assert not outcome.ledger.errors and set(outcome.ledger.waits) <= {"reached", "deadline"}, outcome.ledger


def test_nothing_that_was_acknowledged_is_lost(running: Up) -> None:
    outcome = storm(running, "ackgate", SHORT, kills=2, seconds=15, seed=1)
    assert (outcome.lost, outcome.ledger.examples) == ([], [])
    assert outcome.faults.killed >= 1 and len(outcome.ledger.acknowledged) > 100


def test_naive_fan_out_is_caught_by_the_same_checker(running: Up) -> None:
    assert caught(running, by_naive_fan_out)


def test_nothing_that_durability_let_pass_is_lost(running: Up) -> None:
    outcome = storm(running, "durability", SHORT[:2], under_durability, kills=1, seconds=15, seed=1)
    assert outcome.lost == []
    assert outcome.ledger.errors["UNCONFIRMED"] or outcome.ledger.errors["UNCONFIRMED outcome unknown"]
    assert len(outcome.ledger.acknowledged) > 100


def test_without_a_rule_the_same_clients_lose_what_they_were_told(running: Up) -> None:
    assert caught(running, under_no_rule)


@pytest.mark.parametrize("broken", [[], ["UNPAUSE"]])
def test_a_pause_that_something_passes_is_seen(running: Up, broken: list[str]) -> None:
    seen: list[str] = []
    proxy: Any = SimpleNamespace(url=running.redis_url)
    faults = ProxyFaults([proxy, proxy], random.Random(1), lambda invariant, example: seen.append(invariant))

    def end_it() -> None:
        with Wire.to(running.redis_url) as wire:
            until(lambda: "paused_reason:client_pause" in wire.call("INFO", "clients").decode(), "clients are paused")
            for word in broken:
                wire.call("CLIENT", word)

    ending = threading.Thread(target=end_it)
    ending.start()
    faults.kinds["pause of writes"](shards_of(running)[0])
    ending.join()
    assert set(seen) == ({"pause passed"} if broken else set())


def test_a_storm_that_kills_too_few_busy_primaries_fails() -> None:
    asked = next(each.default for each in main.params if each.name == "kills")
    assert asked >= 30
    faults: Any = SimpleNamespace(kills=asked - 1, done=dict.fromkeys(EVERYTHING, 1))
    outcome = Outcome("ackgate", faults, Ledger(), asked)
    assert faults_of(outcome, EVERYTHING) == ["ackgate: only 29 of 30 busy primaries were killed in the time given"]
    faults.kills = asked
    assert faults_of(outcome, EVERYTHING) == []


def caught(running: Up, crew: Crew) -> bool:
    """Whether these clients are seen to lose what they were told is safe, if not at the first kill."""
    return any(storm(running, "control", SHORT[:1], crew, kills=1, seconds=15, seed=seed).lost for seed in range(16))
