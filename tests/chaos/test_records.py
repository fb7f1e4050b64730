"""The records that clients keep tell what must not have happened."""

from __future__ import annotations

import pytest

from tests.chaos.clients import Ledger
from tests.chaos.records import Count, Log, check_count, check_log


def judged(found: list[int], log: Log) -> tuple[list[str], set[str]]:
    ledger = Ledger()
    return check_log(log, found, ledger), set(ledger.broken)


def test_a_list_that_lost_what_nobody_acknowledged_is_as_it_should_be() -> None:
    assert judged([1, 2, 5, 6], Log("list", sent=8, confirmed={1, 2, 5}, refused={3, 7})) == ([], set())


@pytest.mark.parametrize(
    ("found", "invariant"),
    [
        ([1, 2, 2, 3], "executed twice"),
        ([1, 2, 3, 1], "executed twice"),
        ([1, 3, 2], "later write overtaken by an earlier one"),
        ([1, 2, 4], "refused and executed"),
        ([1, 2, 9], "write that nobody sent"),
    ],
)
def test_what_must_not_be_is_seen_in_a_list(found: list[int], invariant: str) -> None:
    assert judged(found, Log("list", sent=8, confirmed={1, 2}, refused={4})) == ([], {invariant})


def test_what_was_acknowledged_and_is_not_in_the_list_is_lost() -> None:
    assert judged([1], Log("list", sent=3, confirmed={1, 2})) == (["list[2]"], set())


@pytest.mark.parametrize(("found", "lost", "broken"), [(5, 0, 0), (7, 0, 0), (8, 0, 1), (4, 1, 0)])
def test_a_counter_lies_between_what_was_acknowledged_and_what_may_have_been_executed(
    found: int, lost: int, broken: int
) -> None:
    ledger = Ledger()
    count = Count("counter", answered=6, unknown=1, confirmed=5)
    assert (len(check_count(count, found, ledger)), ledger.broken.total()) == (lost, broken)
