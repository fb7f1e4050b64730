"""Each behaviour on both sides: a plain primary with its replica, and the proxy in front of three such pairs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acks.sides import Side
from tests.system.wire import Wire


@pytest.fixture(params=["engine", "ackgate"])
def side(request: pytest.FixtureRequest) -> Side:
    running: Side = request.getfixturevalue(request.param)
    running.come_into_step()
    return running


@pytest.fixture
def session(side: Side) -> Iterator[Wire]:
    with side.session() as connection:
        yield connection


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def either(request: pytest.FixtureRequest, side: Side) -> Iterator[Wire]:
    """A session of either protocol."""
    with side.session(request.param) as connection:
        yield connection
