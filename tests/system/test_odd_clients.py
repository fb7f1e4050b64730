"""Clients that are no Redis clients, or odd ones: telnet, browsers, scanners, half-closed and one byte at a time."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress

import pytest

from tests.harness import Up, until
from tests.system.test_data_path import address, metric
from tests.system.wire import Closed, Wire, request

PONG = b"+PONG\r\n"


class Talk:
    """What a server says to some bytes, told as (all it said, whether it closed)."""

    def __init__(self, host: str, port: int) -> None:
        self.at = host, port

    def __call__(self, *packets: bytes, half_close: bool = False) -> tuple[bytes, bool]:
        """Each packet is sent when a PING of another connection was answered, so that it is read by itself."""
        with Wire(*self.at) as watch, socket.create_connection(self.at, timeout=30) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(OSError):  # it may close in the midst
                for packet in packets:
                    sock.sendall(packet)
                    assert watch.call("PING") == PONG
                if half_close:
                    sock.shutdown(socket.SHUT_WR)
                else:
                    sock.sendall(request("ECHO", "the end"))
            return _until_the_end(sock)


def _until_the_end(sock: socket.socket) -> tuple[bytes, bool]:
    said = b""
    with suppress(ConnectionResetError):  # closing with input unread resets, here as in the engine
        while part := sock.recv(1 << 16):
            said += part
            if said.endswith(b"the end\r\n"):
                return said, False
    return said, True


@pytest.fixture
def talks(endpoint: Up, direct: int, wire: Wire) -> Iterator[tuple[Talk, Talk]]:
    """To the proxy and to a plain server, in which the keys of these tests are gone before and after."""
    with Wire("127.0.0.1", direct) as plain:
        plain.call("FLUSHALL")
        yield Talk(*address(endpoint.redis_url)), Talk("127.0.0.1", direct)
        plain.call("FLUSHALL")


def same(talks: Iterable[Talk], *packets: bytes, half_close: bool = False) -> tuple[bytes, bool]:
    ours, plain = (talk(*packets, half_close=half_close) for talk in talks)
    assert ours == plain, packets
    return ours


# -- telnet ------------------------------------------------------------------------------------------------------------

TYPED = [
    b"PING\r\nQUIT\r\nPING\r\n",
    b"PING\nQUIT a b\nPING\n",
    b"\r\n\n\r\n\n\nPING\r\n",
    b"   \r\n\t \r\nPING\r\n",
    b'SET a "\\x41\\n\\r\\t\\b\\a\\q\\"" \r\nGET a\r\nSET b \'a\\\'b\\n\'\r\nGET b\r\n',
    b'ECHO "a"\r\nECHO ""\r\nECHO \'\'\r\nECHO "a b"\'c d\'\r\n',
    b"SET 'a b' \"c d\"\r\nGET 'a b'\r\nDEL \"a b\"\r\n",
    b'PING\r\nSET a "x\r\nPING\r\n',
    b"PING\r\nSET a 'x\r\nPING\r\n",
    b'SET a "x\\"\r\n',
    b"SET a " + b"x" * 60_000 + b"\r\nSTRLEN a\r\n",
    b"x" * 200_000,
    b"NOSUCH " + b" ".join(b"a%d" % at for at in range(100)) + b"\r\nPING\r\n",
    b"A" * 300 + b" " + b"b" * 300 + b"\r\nPING\r\n",
    b"MULTI\r\nSET a 1\r\nNOSUCH\r\nEXEC\r\n",
    b"HELLO 9\r\nGET a\r\nSELECT 3\r\nGET a\r\nRESET\r\n",
    b'*1\r\n$0\r\n\r\n""\r\nPING\r\n',
    b"*0\r\n*-1\r\n*-5\r\nPING\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"EHLO localhost\r\nPING\r\n",
]


@pytest.mark.parametrize("data", TYPED, ids=lambda data: repr(data[:30]))
def test_what_is_typed_is_answered_as_a_plain_server_answers_it(talks: tuple[Talk, Talk], data: bytes) -> None:
    same(talks, data)
    same(talks, data, half_close=True)
    same(talks, *(line + b"\n" for line in data.split(b"\n")[:-1]))


LENGTHS = [
    b"*1\r\n$ 4\r\nPING\r\n",
    b"*+1\r\n$4\r\nPING\r\n",
    b"*01\r\n$4\r\nPING\r\n",
    b"*1\r\n$04\r\nPING\r\n",
    b"*1\r\n$+4\r\nPING\r\n",
    b"*1 \r\n$4\r\nPING\r\n",
    b"*1\r\n$-1\r\n",
    b"*1\r\n$4294967300\r\nPING\r\n",
    b"*4294967297\r\n$4\r\nPING\r\n",
    b"*1\r\n$4\r\nPINGab",
    b"*1\r\n$3\r\nPING\r\n",
    b"*1\r\n$5\r\nPING\r\n*1\r\n$4\r\nPING\r\n",
    b"*1\n$4\nPING\n",
    b"*1\r\n:4\r\n",
    b"*1\r\n*1\r\n$4\r\nPING\r\n",
    b"*2\r\n$3\r\nGE",
    b"*2\r\n$3\r\nGET\r\n",
    b"$4\r\nPING\r\n",
    b"+PING\r\n",
    bytes.fromhex("1603010201010101fc0303") + b"\x01" * 50 + b"\r\n",  # as TLS begins
]


@pytest.mark.parametrize("data", LENGTHS, ids=lambda data: repr(data[:30]))
def test_wrong_lengths_and_wrong_types_end_as_they_do_on_a_plain_server(talks: tuple[Talk, Talk], data: bytes) -> None:
    same(talks, b"PING\r\n" + data, half_close=True)


def test_a_conversation_one_byte_at_a_time(talks: tuple[Talk, Talk]) -> None:
    data = b"SET a 'x y'\r\n\r\n" + request("GET", "a") + b'GET "a"\n' + request("MGET", "a", "b") + b"DEL a\r\n"
    said, _ = same(talks, *(data[at : at + 1] for at in range(len(data))))
    assert said.startswith(b"+OK\r\n$3\r\nx y\r\n$3\r\nx y\r\n*2\r\n$3\r\nx y\r\n$-1\r\n:1\r\n")


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n",
        b"PING",
        request("GET", "a")[:-1],
        request("SET", "a", "1") * 50 + request("GET", "a")[:9],
        b"MULTI\r\nSET a 5\r\n",
        b"MULTI\r\nSET a 5\r\nEXEC\r\nGET a",
        b"SET a 1\r\nSELECT 0\r\nINCR a\r\nSELECT 0\r\nINCR a\r\n",
        b"MSET a 1 b 2 c 3\r\nMGET a b c\r\nDBSIZE\r\nDEL a b c\r\n",
        b"PING\r\nQUIT\r\n",
        b"SET a 1\r\nRESET\r\nHELLO 3 SETNAME x\r\n"[:18],
    ],
    ids=repr,
)
def test_who_sends_eof_gets_the_replies_to_all_that_was_whole(talks: tuple[Talk, Talk], data: bytes) -> None:
    same(talks, data, half_close=True)


def test_quit_in_a_pipeline_of_many_ends_it_there(talks: tuple[Talk, Talk]) -> None:
    data = request("INCR", "n") * 500 + request("QUIT") + request("INCR", "n") * 500
    said, closed = same(talks, data, half_close=True)
    assert said.endswith(b":500\r\n+OK\r\n") and closed
    said, _ = same(talks, b"GET n\r\n")
    assert said.startswith(b"$3\r\n500\r\n")


# -- browsers ----------------------------------------------------------------------------------------------------------

HTTP = [
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nSET a 1\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nSET a 1\r\n",
    b"host: x\r\nSET a 1\r\n",
    request("pOsT", "x") + request("SET", "a", "1"),
    request("HOST:") + request("SET", "a", "1"),
    b"MULTI\r\nPOST x\r\nSET a 1\r\nEXEC\r\n",
]


@pytest.mark.parametrize("data", HTTP, ids=lambda data: repr(data[:20]))
def test_a_browser_is_cut_off_and_nothing_behind_its_headers_runs(
    talks: tuple[Talk, Talk], wire: Wire, data: bytes
) -> None:
    for talk in talks:
        said, closed = talk(data)
        assert closed and b"the end" not in said and b"+OK" not in said.replace(b"+OK", b"", data.startswith(b"MULTI"))
    assert wire.call("EXISTS", "a") == b":0\r\n"
    until(lambda: wire.call("PING") == PONG, "nobody else is cut off")


def test_names_that_only_begin_like_http_are_commands_like_others(talks: tuple[Talk, Talk]) -> None:
    said, _ = same(talks, b"POSTS x\r\nHost x\r\nGET POST\r\nSET host: post\r\nGET host:\r\nDEL host:\r\n")
    assert b"-ERR unknown command 'POSTS'" in said and b"$4\r\npost\r\n" in said


def test_a_browser_before_authentication_is_cut_off_too(endpoint: Up, direct: int) -> None:
    for at in (address(endpoint.redis_url), ("127.0.0.1", direct)):
        with Wire(*at) as browser:
            browser.send_raw(b"POST /\r\n\r\n")
            with pytest.raises((Closed, ConnectionError)):
                browser.receive()


# -- many --------------------------------------------------------------------------------------------------------------


def test_thousands_of_connections_opened_and_dropped_leave_the_endpoint_as_it_was(endpoint: Up, wire: Wire) -> None:
    at = address(endpoint.redis_url)
    until(lambda: metric(endpoint, "clients_open") == 1, "only this client is left")
    accepted = metric(endpoint, "clients_accepted")
    for _ in range(10):
        crowd = [socket.create_connection(at, timeout=30) for _ in range(300)]
        for number, sock in enumerate(crowd):
            if number % 3 == 0:
                sock.sendall(b"PING\r\nSET k")
            elif number % 3 == 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # ends with a reset
            sock.close()
    until(lambda: metric(endpoint, "clients_accepted") >= accepted + 3000, "all were taken in")
    until(lambda: metric(endpoint, "clients_open") == 1, "and none is left")
    assert wire.call("PING") == PONG
