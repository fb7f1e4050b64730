"""How far a replica is behind, by what probes read."""

from __future__ import annotations

from proxy.topology.offsets import KEPT, Lag, Offsets


def primary(*read: tuple[float, int]) -> Offsets:
    offsets = Offsets()
    for now, offset in read:
        offsets.add(now, offset)
    return offsets


def test_who_has_all_is_not_behind() -> None:
    assert primary((1, 100), (2, 100)).until(100, 2, 2) == Lag(0, 0.0)
    assert primary((1, 100)).until(150, 2, 2) == Lag(0, 0.0), "it was asked later than its primary"


def test_a_replica_is_held_against_what_its_primary_had_when_it_was_asked() -> None:
    offsets = primary((1, 100), (3, 500))
    assert offsets.until(100, 2, 2) == Lag(0, 0.0)
    assert offsets.until(100, 4, 4) == Lag(400, 1.0)


def test_seconds_count_from_the_first_data_that_it_lacks() -> None:
    offsets = primary((1, 100), (5, 200), (7, 300))
    assert offsets.until(100, 9, 9) == Lag(200, 4.0)
    assert offsets.until(250, 9, 9) == Lag(50, 2.0)


def test_standing_still_is_no_lag_however_long() -> None:
    assert primary((1, 100), (50, 100), (51, 160)).until(100, 52, 52) == Lag(60, 1.0)


def test_nothing_is_claimed_of_a_primary_that_was_not_asked() -> None:
    assert Offsets().until(0, 1, 1) == Lag(0, 0.0)
    assert primary((5, 100)).until(0, 4, 4) == Lag(0, 0.0)


def test_another_history_is_not_compared_with() -> None:
    assert primary((1, 5000), (2, 40)).until(30, 3, 3) == Lag(10, 1.0)


def test_what_is_kept_is_bounded() -> None:
    offsets = primary(*((float(number), number) for number in range(1, 3 * KEPT)))
    lag = offsets.until(0, 3 * KEPT, 3 * KEPT)
    assert lag == Lag(3 * KEPT - 1, KEPT + 0.0), "of what is older no more is known than that"
