"""The pauses of several proxies as one, whatever the order in which they are heard of."""

from __future__ import annotations

import itertools

import pytest

from proxy.pause import NO_PAUSE, Board, Mode, Pause

WRITE, ALL = Mode.WRITE, Mode.ALL


def board(*pauses: tuple[Mode, float], now: float = 0.0) -> Board:
    made = Board()
    for mode, end in pauses:
        made.add(mode, end, now)
    return made


def test_nothing_is_paused_until_somebody_says_so() -> None:
    assert board().effective(0.0) == NO_PAUSE
    assert board().next_change(0.0) == float("inf")


def test_it_is_over_at_its_end() -> None:
    made = board((WRITE, 5.0))
    assert made.effective(4.9) == Pause(WRITE, 5.0)
    assert made.next_change(4.9) == 5.0
    assert made.effective(5.0) == NO_PAUSE


@pytest.mark.parametrize("pauses", list(itertools.permutations([(WRITE, 9.0), (ALL, 2.0), (WRITE, 4.0)])))
def test_the_latest_end_and_the_strictest_mode_win(pauses: list[tuple[Mode, float]]) -> None:
    assert board(*pauses).effective(1.0) == Pause(ALL, 9.0)


def test_one_that_is_over_leaves_nothing_behind() -> None:
    made = board((ALL, 2.0))
    made.add(WRITE, 9.0, now=3.0)
    assert made.effective(3.0) == Pause(WRITE, 9.0)


def test_a_pause_of_no_time_makes_a_running_one_stricter() -> None:
    made = board((WRITE, 9.0))
    made.add(ALL, 1.0, now=1.0)
    assert made.effective(1.0) == Pause(ALL, 9.0)


def test_a_peers_pause_holds_for_as_long_as_it_is_believed() -> None:
    made = board()
    made.hear("peer", 0, Pause(WRITE, 60.0), believed_until=1.0)
    assert made.effective(0.5) == Pause(WRITE, 60.0)
    assert made.next_change(0.5) == 1.0
    made.hear("peer", 0, Pause(WRITE, 60.0), believed_until=2.0)
    assert made.effective(1.5) == Pause(WRITE, 60.0)
    assert made.effective(2.0) == NO_PAUSE


def test_a_pause_here_on_top_of_a_peers_lasts_as_long_as_that() -> None:
    made = board()
    made.hear("peer", 0, Pause(WRITE, 60.0), believed_until=1.0)
    made.add(ALL, 0.5, now=0.2)
    assert made.effective(0.9) == Pause(ALL, 60.0)


def test_a_peer_whose_pause_is_over_says_so() -> None:
    made = board()
    made.hear("peer", 0, Pause(ALL, 60.0), believed_until=1.0)
    made.hear("peer", 0, NO_PAUSE, believed_until=1.0)
    assert made.effective(0.5) == NO_PAUSE


def test_unpause_ends_all_and_what_is_heard_of_before_it_comes_too_late() -> None:
    made = board((WRITE, 9.0))
    made.hear("peer", 0, Pause(ALL, 60.0), believed_until=50.0)
    made.clear()
    assert made.effective(0.5) == NO_PAUSE
    made.hear("peer", 0, Pause(ALL, 60.0), believed_until=50.0)
    assert made.effective(0.5) == NO_PAUSE, "the peer has not heard of it yet"
    made.hear("peer", 1, Pause(ALL, 60.0), believed_until=50.0)
    assert made.effective(0.5) == Pause(ALL, 60.0), "that is a new one"


def test_an_unpause_elsewhere_ends_ours() -> None:
    made = board((WRITE, 9.0))
    made.hear("first", 0, Pause(WRITE, 60.0), believed_until=50.0)
    made.hear("second", 1, NO_PAUSE, believed_until=50.0)
    assert made.effective(0.5) == NO_PAUSE
    made.add(WRITE, 7.0, now=0.5)
    assert (made.round, made.effective(0.5)) == (1, Pause(WRITE, 7.0))
