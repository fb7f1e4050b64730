"""What belongs to a connection: protocol, password, database, name; and what is refused, always with a clear error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.codec.reply import bulk_value, decode, elements, is_error
from tests.harness import Up, until
from tests.system.beside import everybody, node, plain_server, proxy_beside
from tests.system.wire import Wire, words

PASSWORD = "a long secret"


@pytest.fixture(scope="module")
def locked(endpoint: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URLs of a proxy and of a plain server, both of which ask for the same password."""
    folder = tmp_path_factory.mktemp("locked")
    secret = folder / "password"
    secret.write_text(PASSWORD + "\n")
    with (
        plain_server(folder / "plain", requirepass=PASSWORD) as port,
        proxy_beside(endpoint, folder / "proxy", auth={"password_file": str(secret)}) as url,
    ):
        yield url, f"redis://127.0.0.1:{port}"


# -- HELLO -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
def test_hello_says_what_a_plain_server_says(wire: Wire, direct: int, protocol: int) -> None:
    with Wire("127.0.0.1", direct) as plain:
        for call in (["HELLO", protocol], ["HELLO"], ["hello", protocol, "SETNAME", "me"]):
            ours, theirs = wire.call(*call), plain.call(*call)
            assert ours[:4] == theirs[:4]
            left, right = elements(ours), elements(theirs)
            # 7: each its own id; 13: the engine may list its scripting engine as a module.
            assert left[:7] == right[:7] and left[8:13] == right[8:13] and len(left) == len(right)
        assert wire.call("CLIENT", "GETNAME") == plain.call("CLIENT", "GETNAME") == b"$2\r\nme\r\n"


def test_the_protocol_can_be_switched_at_any_time_also_in_a_pipeline(wire: Wire) -> None:
    wire.call("HSET", "h", "f", "v")
    calls = [["HGETALL", "h"], ["HELLO", 3], ["HGETALL", "h"], ["GET", "no"], ["HELLO", 2], ["GET", "no"]]
    replies = wire.pipeline(calls)
    assert replies[0] == b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n"
    assert replies[2] == b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n"
    assert replies[3] == b"_\r\n"
    assert replies[5] == b"$-1\r\n"


@pytest.mark.parametrize(
    "line",
    [
        "HELLO 1",
        "HELLO 4",
        "HELLO abc",
        "HELLO -1",
        "HELLO 3 WRONG",
        "HELLO 3 AUTH default",
        "HELLO 3 SETNAME",
        'HELLO 3 SETNAME "a b"',
        "HELLO 3 AUTH nobody x",
        "HELLO 99999999999999999999",
        "AUTH",
        "AUTH x",
        "AUTH default x",
        "AUTH nobody x",
        "AUTH a b c",
        "CLIENT GETNAME",
        'CLIENT SETNAME "a b"',
        "CLIENT SETNAME ok",
        'CLIENT SETNAME ""',
        "CLIENT SETINFO lib-name redis-py",
        "CLIENT SETINFO LIB-VER 1.2.3",
        'CLIENT SETINFO lib-name "a b"',
        "CLIENT SETINFO wrong x",
        "CLIENT SETINFO lib-name",
        "CLIENT LIST TYPE wrong",
        "CLIENT LIST ID abc",
        "CLIENT LIST ID 0",
        "CLIENT LIST WRONG",
        "CLIENT ID extra",
        "CLIENT WRONG",
        "CLIENT HELP",
        "SELECT 15",
        "SELECT 16",
        "SELECT -1",
        "SELECT 007",
        "SELECT x",
        "SELECT",
        "ROLE extra",
        "READONLY extra",
        "READONLY",
        "READWRITE",
        "ASKING",
        "CLUSTER INFO",
        "CLUSTER SLOTS",
        "CLUSTER NODES",
        "CLUSTER SHARDS",
        "CLUSTER COUNTKEYSINSLOT 1",
        "CLUSTER MYID",
        "ACL WHOAMI",
        "RESET",
        "RESET extra",
        "ECHO",
        "PING 1 2",
    ],
)
def test_answers_about_the_connection_are_those_of_a_plain_server(wire: Wire, direct: int, line: str) -> None:
    with Wire("127.0.0.1", direct) as plain:
        assert wire.call(*words(line)) == plain.call(*words(line))
        for after in ("CLIENT GETNAME", "GET nothing", "PING"):
            assert wire.call(*words(after)) == plain.call(*words(after))


# -- AUTH --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dialog",
    [
        "PING/GET a/SET a b/MULTI/CONFIG GET save/CLIENT ID/SELECT 1/WAIT 0 0/COMMAND",
        "NOSUCHCOMMAND/GET/GET a b/CONFIG WRONG x/SHUTDOWN x y z u",
        "HELLO/HELLO 3/HELLO 2/HELLO 9/HELLO abc/HELLO 3 SETNAME x/CLIENT GETNAME",
        "AUTH wrong/AUTH default wrong/AUTH nobody wrong/AUTH a b c/AUTH/PING",
        "HELLO 3 AUTH default wrong/HELLO 3 AUTH nobody wrong/PING",
        'AUTH "a long secret"/PING/AUTH wrong/PING/ACL WHOAMI',
        'AUTH default "a long secret"/MULTI/SET {a}1 x/EXEC/GET {a}1/DEL {a}1',
        'HELLO 2 AUTH default "a long secret" SETNAME me/CLIENT GETNAME',
        'AUTH "a long secret"/RESET/PING/AUTH "a long secret"/PING',
        "RESET/PING/RESET",
        "WATCH a/UNWATCH/DISCARD",
        'MULTI/AUTH "a long secret"/EXEC/PING',
    ],
)
def test_a_password_is_asked_for_as_a_plain_server_asks(locked: tuple[str, str], dialog: str) -> None:
    ours, theirs = (Wire.to(url) for url in locked)
    for line in dialog.split("/"):
        left, right = ours.call(*words(line)), theirs.call(*words(line))
        if right[:1] in b"%*" and line.startswith("HELLO"):
            left, right = (b"".join(elements(each)[:7]) for each in (left, right))
        assert left == right, line
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    "data",
    [
        b"*11\r\n$3\r\nGET\r\n",
        b"*2\r\n$4\r\nAUTH\r\n$16385\r\n",
        b"*1000000\r\n",
        b"*1\r\n$4\r\nQUIT\r\n",
        b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*-x\r\n",
        b"GET a\r\nQUIT\r\n",
    ],
)
def test_who_has_not_authenticated_cannot_make_the_proxy_collect_large_requests(
    locked: tuple[str, str], data: bytes
) -> None:
    seen = []
    for url in locked:
        with Wire.to(url) as connection:
            connection.send_raw(data)
            received = b""
            while more := connection.sock.recv(65536):
                received += more
            seen.append(received)
    assert seen[0] == seen[1]


def test_large_requests_pass_once_authenticated(locked: tuple[str, str]) -> None:
    with Wire.to(locked[0]) as connection:
        assert connection.pipeline([["AUTH", PASSWORD], ["SET", "k", "x" * 100_000], ["DEL", *range(20), "k"]]) == [
            b"+OK\r\n",
            b"+OK\r\n",
            b":1\r\n",
        ]


def test_the_password_is_in_no_log_and_no_command_line(locked: tuple[str, str], endpoint: Up, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("never-to-be-seen\n")
    with proxy_beside(
        endpoint, tmp_path / "proxy", auth={"password_file": str(secret)}, log={"level": "debug"}
    ) as url, Wire.to(url) as connection:
        assert connection.call("AUTH", "never-to-be-sEen").startswith(b"-WRONGPASS")
        assert connection.call("AUTH", "never-to-be-seen") == b"+OK\r\n"
        assert connection.call("PING") == b"+PONG\r\n"
        assert "never-to-be" not in (tmp_path / "proxy" / "proxy.err").read_text()


# -- CLIENT ------------------------------------------------------------------------------------------------------------


def test_client_list_shows_the_clients_of_the_proxy_and_what_they_are(endpoint: Up, wire: Wire) -> None:
    own = decode(wire.call("CLIENT", "ID"))
    with Wire.to(endpoint.redis_url) as other:
        other.pipeline([["CLIENT", "SETNAME", "other"], ["SELECT", 3], ["CLIENT", "SETINFO", "lib-name", "mine"]])
        other.pipeline([["MULTI"], ["SET", "k", 1], ["SET", "k", 2]])
        listed = [dict(item.split("=", 1) for item in line.split(" ")) for line in _text(wire.call("CLIENT", "LIST"))]
        found = next(each for each in listed if each["name"] == "other")
        assert (found["db"], found["multi"], found["flags"], found["lib-name"]) == ("3", "2", "x", "mine")
        assert found["addr"] == "{}:{}".format(*other.sock.getsockname())
        assert found["cmd"] == "set"
        assert {str(own), found["id"]} <= {each["id"] for each in listed}
        assert _text(wire.call("CLIENT", "LIST", "ID", found["id"]))[0].startswith(f"id={found['id']} ")
        assert _text(wire.call("CLIENT", "LIST", "TYPE", "pubsub")) == []
        other.call("DISCARD")
        assert _text(other.call("CLIENT", "INFO"))[0].split()[0] == f"id={found['id']}"
    until(lambda: "other" not in str(wire.call("CLIENT", "LIST")), "who left is not listed any more")


def test_ids_are_never_used_again(endpoint: Up, wire: Wire) -> None:
    ids = []
    for _ in range(5):
        with Wire.to(endpoint.redis_url) as connection:
            ids.append(decode(connection.call("CLIENT", "ID")))
    assert ids == sorted(set(ids))


def _text(reply: bytes) -> list[str]:
    text = bulk_value(reply)
    assert text is not None
    return text.decode().splitlines()


# -- RESET, QUIT -------------------------------------------------------------------------------------------------------


def test_reset_makes_a_connection_as_new(wire: Wire) -> None:
    wire.pipeline([["HELLO", 3], ["SELECT", 4], ["CLIENT", "SETNAME", "me"], ["SET", "k", 1], ["MULTI"], ["INCR", "k"]])
    assert wire.call("RESET") == b"+RESET\r\n"
    assert wire.call("CLIENT", "GETNAME") == b"$-1\r\n"
    assert wire.call("GET", "k") == b"$-1\r\n"
    assert wire.call("EXEC") == b"-ERR EXEC without MULTI\r\n"
    assert " db=0 " in _text(wire.call("CLIENT", "INFO"))[0]


def test_quit_answers_what_came_before_and_closes(endpoint: Up) -> None:
    with Wire.to(endpoint.redis_url) as connection:
        connection.send_raw(b"SET k 1\r\nINCR k\r\nQUIT\r\nINCR k\r\n")
        assert [connection.receive() for _ in range(3)] == [b"+OK\r\n", b":2\r\n", b"+OK\r\n"]
        assert connection.at_eof()
    with Wire.to(endpoint.redis_url) as connection:
        assert connection.call("GET", "k") == b"$1\r\n2\r\n"
        connection.send_raw(b"MULTI\r\nINCR k\r\nQUIT\r\n")
        assert [connection.receive() for _ in range(3)] == [b"+OK\r\n", b"+QUEUED\r\n", b"+OK\r\n"]
        assert connection.at_eof()


# -- what may not pass -------------------------------------------------------------------------------------------------

REFUSED = """
    SHUTDOWN
    SHUTDOWN NOSAVE
    DEBUG SLEEP 0
    DEBUG SEGFAULT
    REPLICAOF NO ONE
    REPLICAOF 127.0.0.1 1
    SLAVEOF NO ONE
    FAILOVER
    SYNC
    PSYNC ? -1
    REPLCONF ACK 1
    MIGRATE 127.0.0.1 1 k 0 1
    MODULE LOAD /x.so
    MODULE UNLOAD x
    SAVE
    BGSAVE
    BGREWRITEAOF
    CLUSTER FAILOVER
    CLUSTER FAILOVER TAKEOVER
    CLUSTER RESET HARD
    CLUSTER FORGET x
    CLUSTER MEET 127.0.0.1 1
    CLUSTER SETSLOT 1 NODE x
    CLUSTER DELSLOTS 1
    CLUSTER FLUSHSLOTS
    CLUSTER ADDSLOTS 1
    CLUSTER REPLICATE x
    CLUSTER BUMPEPOCH
    RESTORE-ASKING k 0 x
"""
NOT_YET = """
    SCRIPT DEBUG YES
    SCRIPT DEBUG NO
"""
CASES = [
    *((line.strip(), b"is refused by the proxy") for line in REFUSED.strip().splitlines()),
    *((line.strip(), b"is not supported by the proxy yet") for line in NOT_YET.strip().splitlines()),
]


@pytest.mark.parametrize(("line", "why"), CASES, ids=[line for line, _ in CASES])
def test_what_may_not_or_cannot_pass_gets_an_error_that_names_it(wire: Wire, line: str, why: bytes) -> None:
    reply = wire.call(*words(line))
    assert is_error(reply) and why in reply
    assert words(line)[0].lower() in reply
    assert wire.call("PING") == b"+PONG\r\n"
    # In MULTI it is no different, and the transaction does not run.
    assert wire.pipeline([["MULTI"], ["SET", "k", "never"]]) == [b"+OK\r\n", b"+QUEUED\r\n"]
    assert why in wire.call(*words(line))
    assert wire.call("EXEC") == b"-EXECABORT Transaction discarded because of previous errors.\r\n"
    assert wire.call("EXISTS", "k") == b":0\r\n"


@pytest.mark.parametrize("line", ["SUBSCRIBE c", "PSUBSCRIBE c*", "UNSUBSCRIBE", "MONITOR"])
def test_what_has_no_or_several_replies_is_refused_in_multi(wire: Wire, line: str) -> None:
    wire.pipeline([["MULTI"], ["SET", "k", "never"]])
    assert is_error(wire.call(*words(line)))
    assert wire.call("EXEC") == b"-EXECABORT Transaction discarded because of previous errors.\r\n"
    assert wire.call("EXISTS", "k") == b":0\r\n"


def test_nothing_refused_has_reached_a_node(endpoint: Up, wire: Wire) -> None:
    asked = [words(line.lower()) for line, _ in CASES]
    names = {name.decode() for each in asked for name in (each[0], b"|".join(each[:2]))}
    before = [calls(address, names) for address in everybody(endpoint)]
    for line, _ in CASES:
        wire.call(*words(line))
    assert [calls(address, names) for address in everybody(endpoint)] == before


def calls(address: str, names: set[str]) -> dict[str, int]:
    with node(address) as server:
        stats = {name.removeprefix("cmdstat_"): row["calls"] for name, row in server.info("commandstats").items()}
    by_the_proxy_itself = {"client|kill", "client|unblock", "replconf", "psync"}
    return {name: count for name, count in stats.items() if name in names - by_the_proxy_itself}


def test_what_the_administrator_allows_passes(endpoint: Up, tmp_path: Path) -> None:
    allowed = {"allow": ["bgrewriteaof", "cluster|countkeysinslot"]}
    with proxy_beside(endpoint, tmp_path, commands=allowed) as url, Wire.to(url) as connection:
        assert connection.call("BGREWRITEAOF").startswith(b"+Background append only file")
        assert decode(connection.call("CLUSTER", "COUNTKEYSINSLOT", 1)) == 0
        assert is_error(connection.call("BGSAVE"))
