"""The bench of the contract tests, under each driver there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from proxy.dataplane import Limits
from tests.dataplane.bench import DEFAULTS, Bench, Driver, by_polling, by_trio


@pytest.fixture(params=[by_polling, by_trio], ids=["polling", "trio"])
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = request.param
    return found


@pytest.fixture
def make(driver: Driver) -> Iterator[Callable[..., Bench]]:
    """A bench with limits of the test's own."""
    with ExitStack() as stack:

        def made(limits: Limits = DEFAULTS, **more: Any) -> Bench:
            bench = Bench(driver, limits, **more)
            stack.callback(bench.close)
            return bench

        yield made


@pytest.fixture
def bench(make: Callable[..., Bench]) -> Iterator[Bench]:
    """A bench; nothing failed unseen in it."""
    made = make()
    yield made
    assert made.notes.failures == []
