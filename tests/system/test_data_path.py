"""Bytes in, bytes out, in order: the data path as clients of the endpoint meet it."""

from __future__ import annotations

import os
import re
import resource
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from proxy.codec import key_slot
from tests.harness import Up, until
from tests.system.beside import proxy_beside
from tests.system.wire import Closed, Wire, request

OK = b"+OK\r\n"
MB = 1 << 20
EVERY_BYTE = bytes(range(256))


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def exchange(host: str, port: int, data: bytes) -> bytes:
    """All that a server answers until it closes, which sending ``data`` makes it do."""
    with socket.create_connection((host, port), timeout=30) as sock:
        sock.sendall(data)
        answer = b""
        with suppress(ConnectionResetError):  # closing with input unread resets, here as in the engine
            while part := sock.recv(1 << 16):
                answer += part
        return answer


def address(url: str) -> tuple[str, int]:
    with Wire.to(url) as wire:
        host, port = wire.sock.getpeername()
        return host, port


def metric(running: Up, name: str) -> float:
    with urllib.request.urlopen(f"{running.admin_url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(rf"^ackgate_{name}(?:_total)? (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


def under_way(running: Up) -> set[float]:
    """The numbers of commands that shards have not answered yet."""
    with urllib.request.urlopen(f"{running.admin_url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r"^ackgate_shard_outstanding_commands\{.*\} (\S+)$", text, re.MULTILINE)
    return {float(each) for each in found}


def process_of(wire: Wire) -> int:
    """The id of the proxy's process."""
    found = re.search(rb"process_id:(\d+)", wire.call("INFO", "server"))
    assert found
    return int(found[1])


def descriptors(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


def until_closed(wire: Wire) -> int:
    """How many replies come before the connection ends."""
    count = 0
    with suppress(Closed, ConnectionError):
        while wire.receive():
            count += 1
    return count


# -- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 20 * MB], ids=["0B", "1B", "64KB", "20MB"])
def test_a_value_of_any_size_comes_back_as_it_went(wire: Wire, size: int) -> None:
    value = (EVERY_BYTE * (size // 256 + 1))[:size]
    assert wire.call("SET", "k", value) == OK
    assert wire.call("GET", "k") == bulk(value)
    assert wire.call("STRLEN", "k") == b":%d\r\n" % size
    assert wire.call("APPEND", "k", b"\r\n") == b":%d\r\n" % (size + 2)
    assert wire.call("GET", "k") == bulk(value + b"\r\n")


def test_every_byte_may_stand_in_keys_and_values(wire: Wire) -> None:
    names = [bytes([byte]) + b"\r\n$5\r\n" for byte in range(256)]
    assert wire.pipeline([["SET", name, EVERY_BYTE + name] for name in names]) == [OK] * 256
    assert wire.pipeline([["GET", name] for name in names]) == [bulk(EVERY_BYTE + name) for name in names]
    assert wire.call("MGET", *names) == b"*256\r\n" + b"".join(bulk(EVERY_BYTE + name) for name in names)


def test_a_request_of_many_arguments_is_taken_whole(wire: Wire) -> None:
    pairs = [f"{{tag}}{number}" for number in range(200_000)]
    assert wire.call("MSET", *(word for pair in pairs for word in (pair, "x" * 20))) == OK
    assert wire.call("EXISTS", *pairs) == b":200000\r\n"


def test_bytes_may_come_one_at_a_time(endpoint: Up, wire: Wire) -> None:
    conversation = (
        request("SET", "slow", b"a\r\n$3\r\n") + request("GET", "slow") + b"  echo  hi \r\n" + request("DEL", "slow")
    )
    with Wire.to(endpoint.redis_url) as slow:
        slow.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(conversation)):
            slow.send_raw(conversation[at : at + 1])
            if at % 8 == 0:
                assert wire.call("PING") == b"+PONG\r\n"  # so that the byte before is there by itself
        assert [slow.receive() for _ in range(4)] == [OK, bulk(b"a\r\n$3\r\n"), bulk(b"hi"), b":1\r\n"]


INLINE = [
    b"PING\r\n",
    b"ping\n",
    b"\r\n\r\nPING hello\r\n",
    b"SET inline 'one two'\r\nGET inline\r\n",
    b'SET inline "\\x00\\xff\\n"\r\nGET inline\r\n',
    b"  GET    inline  \r\n",
    b"NOSUCH command\r\n",
    b"GET\r\n",
    request("SET", "inline", "3") + b"INCR inline\r\n" + request("GET", "inline"),
]


@pytest.mark.parametrize("line", INLINE)
def test_inline_commands_are_answered_as_the_engine_answers_them(
    endpoint: Up, direct: int, wire: Wire, line: bytes
) -> None:
    whole = request("SET", "inline", "0") + line + b"QUIT\r\n"
    assert exchange(*address(endpoint.redis_url), whole) == exchange("127.0.0.1", direct, whole)


# -- protocol errors ---------------------------------------------------------------------------------------------

BROKEN = [
    b"*1\r\n!4\r\nPING\r\n",
    b"*1\r\n\r\n",
    b"*abc\r\n",
    b"*99999999999\r\n",
    b"*2147483648\r\n",
    b"*1\r\n$-5\r\n",
    b"*1\r\n$abc\r\n",
    b"*1\r\n$\r\n",
    b"*2\r\n$3\r\nGET\r\n$536870913\r\n",
    b"*2\r\n$3\r\nGET\r\n$99999999999999999999\r\n",
    b"*1\r\n$4\r\nPINGxx",
    b"*1\rx$4\r\nPING\r\n",
    b"SET k 'unbalanced\r\n",
    b'SET k "unbalanced"x"\r\n',
    b"x" * 70_000,
    b"*" + b"1" * 70_000,
    b"*1\r\n$" + b"1" * 70_000,
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda data: repr(data[:24]))
def test_a_protocol_error_is_worded_and_closes_as_the_engines(
    endpoint: Up, direct: int, wire: Wire, broken: bytes
) -> None:
    before = request("SET", "a", "1") + request("SET", "b", "2") + request("GET", "a") + request("INCR", "c")
    forget = request("DEL", "a") + request("DEL", "b") + request("DEL", "c")
    answer = exchange(*address(endpoint.redis_url), forget + before + broken)
    reference = exchange("127.0.0.1", direct, forget + before + broken)
    _, _, answer = answer.partition(OK)  # of DEL the two may differ: what was there before
    _, _, reference = reference.partition(OK)
    assert answer == reference
    assert answer.startswith(OK + bulk(b"1") + b":1\r\n-ERR Protocol error: ")


def test_a_protocol_error_ends_one_connection_only(endpoint: Up, wire: Wire) -> None:
    exchange(*address(endpoint.redis_url), b"*1\r\n!\r\n")
    assert wire.call("PING") == b"+PONG\r\n"


# -- pipelines and many clients ----------------------------------------------------------------------------------


def test_a_pipeline_of_ten_thousand_commands_over_all_shards_is_answered_in_order(wire: Wire) -> None:
    count = 10_000
    names = [f"key:{number}" for number in range(count)]
    assert len({key_slot(name.encode()) * 3 // 16384 for name in names}) == 3
    assert wire.pipeline([["SET", name, number] for number, name in enumerate(names)]) == [OK] * count
    expected = [bulk(b"%d" % number) for number in range(count)]
    assert wire.pipeline([["GET", name] for name in names]) == expected


def test_a_pipeline_of_all_sorts_is_answered_in_order(wire: Wire) -> None:
    asked: list[list[bytes | str | int]] = []
    expected: list[bytes] = []
    for number in range(2000):
        key = f"n{number % 100}"
        round_ = number // 100
        asked += [["INCR", key], ["ECHO", number], ["GET", key]]
        expected += [b":%d\r\n" % (round_ + 1), bulk(b"%d" % number), bulk(b"%d" % (round_ + 1))]
        if number % 10 == 9:  # over shards, split and joined
            asked.append(["MGET", key, "nobody", f"n{(number - 9) % 100}"])
            expected.append(b"*3\r\n" + bulk(b"%d" % (round_ + 1)) + b"$-1\r\n" + bulk(b"%d" % (round_ + 1)))
        if number % 100 == 99:  # a barrier, and a command of all shards
            asked += [["SELECT", 0], ["DBSIZE"], ["GET"]]
            expected += [OK, b":100\r\n", b"-ERR wrong number of arguments for 'get' command\r\n"]
    assert wire.pipeline(asked) == expected


def test_a_thousand_clients_at_once_each_see_their_own_keys(endpoint: Up, wire: Wire) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Wire.to(endpoint.redis_url)) for _ in range(1000)]
        for turn in range(3):
            for number, client in enumerate(clients):
                key = f"own:{number}"
                pipeline = [("SET", key, f"{number}:{turn}"), ("APPEND", key, "!"), ("GET", key), ("ECHO", str(number))]
                client.send_raw(b"".join(request(*each) for each in pipeline))
            for number, client in enumerate(clients):
                value = f"{number}:{turn}!".encode()
                replies = [client.receive() for _ in range(4)]
                assert replies == [OK, b":%d\r\n" % len(value), bulk(value), bulk(b"%d" % number)]
        assert metric(endpoint, "clients_open") >= 1001
    assert wire.call("DBSIZE") == b":1000\r\n"


def test_a_large_request_on_its_way_holds_up_nobody_else(endpoint: Up, wire: Wire) -> None:
    value = b"x" * (8 * MB)
    whole = request("SET", "k", value)
    with Wire.to(endpoint.redis_url) as slow:
        slow.send_raw(whole[: len(whole) // 2])
        assert wire.call("SET", "k", "small") == OK
        slow.send_raw(whole[len(whole) // 2 : -1])
        assert wire.call("GET", "k") == bulk(b"small")
        slow.send_raw(whole[-1:])
        assert slow.receive() == OK
    assert wire.call("STRLEN", "k") == b":%d\r\n" % len(value)
    assert metric(endpoint, "leased_lanes_open") >= 1  # it had a connection to itself


def test_large_requests_keep_their_place_in_a_pipeline(wire: Wire) -> None:
    large = b"x" * (2 * MB)
    asked: list[list[bytes | str | int]] = []
    for number in range(5):
        asked += [["SET", "k", number], ["GET", "k"], ["SET", "k", large], ["STRLEN", "k"], ["GET", "other"]]
    replies = wire.pipeline(asked)
    for number in range(5):
        expected = [OK, bulk(b"%d" % number), OK, b":%d\r\n" % len(large), b"$-1\r\n"]
        assert replies[5 * number : 5 * number + 5] == expected


# -- ends ----------------------------------------------------------------------------------------------------------


def test_quit_answers_what_came_before_it_and_drops_what_comes_behind(endpoint: Up, wire: Wire) -> None:
    with Wire.to(endpoint.redis_url) as other:
        other.send_raw(request("SET", "k", "1") + request("GET", "k") + request("QUIT") + request("SET", "k", "2"))
        assert [other.receive() for _ in range(3)] == [OK, bulk(b"1"), OK]
        assert other.at_eof()
    assert wire.call("GET", "k") == bulk(b"1")


def test_a_half_closed_client_still_gets_the_replies_to_all_it_sent(endpoint: Up, wire: Wire) -> None:
    count = 20_000  # more than may be under way at a time
    with Wire.to(endpoint.redis_url) as other:
        other.send_raw(b"".join(request("INCR", f"k{number % 50}") for number in range(count)))
        other.sock.shutdown(socket.SHUT_WR)
        replies = [other.receive() for _ in range(count)]
        assert replies == [b":%d\r\n" % (number // 50 + 1) for number in range(count)]
        assert other.at_eof()


def test_what_a_client_sent_is_carried_out_though_it_left(endpoint: Up, wire: Wire) -> None:
    other = Wire.to(endpoint.redis_url)
    other.send_raw(request("SET", "k", "left") + request("GET", "k"))
    other.receive()
    other.close()
    assert wire.call("GET", "k") == bulk(b"left")


def test_a_client_that_reads_late_gets_everything(endpoint: Up, wire: Wire) -> None:
    value = EVERY_BYTE * 1024
    assert wire.call("SET", "k", value) == OK
    with Wire.to(endpoint.redis_url) as late:
        late.send_raw(request("GET", "k") * 120)
        assert wire.call("GET", "k") == bulk(value)  # and holds up nobody meanwhile
        assert all(late.receive() == bulk(value) for _ in range(120))


def test_connections_that_come_and_go_in_every_state_leave_nothing_behind(endpoint: Up, wire: Wire) -> None:
    process = process_of(wire)
    for command in (["SET", "k", 1], ["WAIT", 1, 0], ["SCAN", 0], ["DBSIZE"]):
        wire.call(*command)  # what is made once and kept is made before counting
    until(lambda: metric(endpoint, "clients_open") == 1, "only this client is left")

    def unexplained() -> float:
        """Descriptors but for those of leased lanes, a few of which stay for the next who asks for one."""
        return descriptors(process) - metric(endpoint, "leased_lanes_open")

    before = unexplained()
    states = [
        b"",
        request("GET", "k"),
        request("GET", "k")[:-5],
        request("SET", "k", b"x" * (2 * MB))[:-5],
        request("MGET", "a", "b", "c") * 20,
        request("MULTI") + request("SET", "k", "1"),
        request("WATCH", "k") + request("MULTI"),
        request("SET", "k", "1") + request("WAIT", "5", "0") + request("GET", "k"),
        request("SCAN", "0") + request("DBSIZE"),
        b"*1\r\n!\r\n",
        request("QUIT"),
    ]
    for turn in range(20):
        for number, state in enumerate(states):
            client = Wire.to(endpoint.redis_url)
            client.send_raw(state)
            if (turn + number) % 2 and state.endswith(b"\r\n") and b"WAIT" not in state:
                client.receive()
            if (turn + number) % 3 == 0:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # ends with a reset
            client.close()
    until(lambda: metric(endpoint, "clients_open") == 1, "every client is forgotten")
    until(lambda: metric(endpoint, "waits_open") == 0, "every WAIT is forgotten")
    until(lambda: unexplained() <= before, "their descriptors are given back")
    until(lambda: under_way(endpoint) == {0.0}, "no shard owes a reply")
    assert wire.call("PING") == b"+PONG\r\n"


# -- limits, of proxies of their own in front of the same cluster ---------------------------------------------------


@pytest.fixture(scope="module")
def tight(endpoint: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a proxy with narrow limits."""
    clients = {
        "maxclients": 5,
        "output_limit": "2mb",
        "query_limit": "2mb",
        "outstanding_commands": 20,
        "outstanding_bytes": "64kb",
    }
    with proxy_beside(endpoint, tmp_path_factory.mktemp("tight"), clients=clients) as url:
        yield url


def test_a_client_too_many_gets_the_engines_error(tight: str, wire: Wire) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Wire.to(tight)) for _ in range(5)]
        assert [client.call("PING") for client in clients] == [b"+PONG\r\n"] * 5
        with Wire.to(tight) as refused:
            assert refused.receive() == b"-ERR max number of clients reached\r\n"
            assert refused.at_eof()
        assert [client.call("PING") for client in clients] == [b"+PONG\r\n"] * 5

    def admitted() -> bool:
        with Wire.to(tight) as again, suppress(ConnectionError, Closed):
            return again.call("PING") == b"+PONG\r\n"
        return False

    until(admitted, "there is room again")


@pytest.fixture
def tight_wire(tight: str) -> Iterator[Wire]:
    """A connection to the narrow proxy; the one before it may not have been forgotten yet."""

    def connected() -> Wire | None:
        client = Wire.to(tight)
        with suppress(ConnectionError, Closed):
            if client.call("PING") == b"+PONG\r\n":
                return client
        client.close()
        return None

    with until(connected, "there is room") as client:
        yield client


def test_a_pipeline_beyond_the_outstanding_limits_is_only_slower(tight_wire: Wire, wire: Wire) -> None:
    assert tight_wire.pipeline([["INCR", "k"] for _ in range(3000)]) == [b":%d\r\n" % (at + 1) for at in range(3000)]


def test_a_client_that_does_not_read_is_closed_and_nobody_else(tight: str, tight_wire: Wire, wire: Wire) -> None:
    value = b"x" * 200_000
    assert wire.call("SET", "k", value) == OK
    tight_wire.send_raw(request("GET", "k") * 200)
    with Wire.to(tight) as other:
        until(lambda: b"connected_clients:1\r\n" in other.call("INFO", "clients"), "the greedy client is closed")
        assert other.call("GET", "k") == bulk(value)
    assert until_closed(tight_wire) < 200


@pytest.mark.parametrize(
    "large", [("SET", "k", b"x" * (3 * MB)), ("MSET", *["{k}"] * 400_000)], ids=["value", "arguments"]
)
def test_a_request_above_the_query_limit_closes_its_client(
    tight: str, tight_wire: Wire, wire: Wire, large: tuple[str | bytes, ...]
) -> None:
    with suppress(ConnectionError):
        tight_wire.send_raw(request(*large))
    assert tight_wire.at_eof()
    assert wire.call("DBSIZE") == b":0\r\n"


def test_an_idle_client_is_closed_a_busy_one_is_not(endpoint: Up, tmp_path: Path) -> None:
    with (
        proxy_beside(endpoint, tmp_path, clients={"idle_timeout": "400ms"}) as url,
        Wire.to(url) as idle,
        Wire.to(url) as busy,
        Wire.to(url) as waiting,
    ):
        waiting.send_raw(request("SET", "k", "1") + request("WAIT", 5, 1500))
        idle.call("PING")
        started = time.monotonic()
        idle.sock.settimeout(0.05)

        def closed() -> bool:
            assert busy.call("PING") == b"+PONG\r\n"
            with suppress(TimeoutError):
                return idle.sock.recv(1) == b""
            return False

        until(closed, "the idle client is closed")
        assert time.monotonic() - started >= 0.39
        assert busy.call("PING") == b"+PONG\r\n"
        assert [waiting.receive() for _ in range(2)] == [OK, b":1\r\n"]  # who waits for a reply is not idle


def test_a_proxy_out_of_descriptors_goes_on_serving_and_accepts_again(endpoint: Up, tmp_path: Path) -> None:
    with proxy_beside(endpoint, tmp_path) as url, Wire.to(url) as first, ExitStack() as stack:
        process = process_of(first)
        first.call("SET", "k", "1")
        limit = descriptors(process) + 5
        hard = resource.prlimit(process, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(process, resource.RLIMIT_NOFILE, (limit, hard))
        clients = [stack.enter_context(Wire.to(url)) for _ in range(30)]
        for client in clients:
            client.send("GET", "k")
        until(lambda: "cannot accept clients" in (tmp_path / "proxy.err").read_text(), "the proxy says so")
        assert first.pipeline([["GET", "k"]] * 1000) == [bulk(b"1")] * 1000
        assert clients[0].receive() == bulk(b"1")
        resource.prlimit(process, resource.RLIMIT_NOFILE, (hard, hard))
        assert [client.receive() for client in clients[1:]] == [bulk(b"1")] * 29
        assert (tmp_path / "proxy.err").read_text().count("cannot accept clients") == 1, "said once"
