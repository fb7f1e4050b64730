"""Whoever rests is woken at his time, once."""

from __future__ import annotations

from collections.abc import Callable

import trio

from proxy.acks.pace import Pace


async def test_who_is_forgotten_by_one_that_was_woken_before_him_is_let_be(autojump_clock: trio.abc.Clock) -> None:
    pace = Pace()
    woken = []

    def first() -> None:
        woken.append("first")
        pace.forget("second")
        pace.rest("third", trio.current_time() + 1.0, lambda: woken.append("third, later"))

    pace.rest("first", trio.current_time(), first)
    pace.rest("second", trio.current_time(), lambda: woken.append("second"))
    pace.rest("third", trio.current_time(), lambda: woken.append("third"))
    pace.turned()
    assert woken == ["first"]
    await trio.sleep(1.0)
    pace.turned()
    assert woken == ["first", "third, later"] and not pace.resting


async def test_one_whose_waking_fails_keeps_nobody_asleep(autojump_clock: trio.abc.Clock) -> None:
    failures = []

    def call(wake: Callable[[], None]) -> None:
        try:
            wake()
        except ValueError as failure:
            failures.append(failure)

    def fail() -> None:
        raise ValueError

    pace = Pace(call)
    woken = []
    pace.rest("first", trio.current_time(), fail)
    pace.rest("second", trio.current_time(), lambda: woken.append("second"))
    pace.turned()
    assert woken == ["second"] and len(failures) == 1
