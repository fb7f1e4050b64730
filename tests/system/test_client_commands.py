"""CLIENT as a plain server answers it, over this proxy's clients: who is shown, who is closed, what one is oneself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from proxy.codec import split_inline
from proxy.codec.reply import bulk_value, decode, integer_value, is_error
from tests.harness import Up, until
from tests.system.beside import node, proxy_beside, whole
from tests.system.wire import Closed, Wire


class Guests:
    """A server with the same clients on each side: who asks, and some others, each with something of its own."""

    def __init__(self, stack: ExitStack, url: str, protocol: int) -> None:
        self.clients: dict[str, Wire] = {}
        for name in ("me", "plain", "kept", "able", "library", "subscriber", "queueing", "elsewhere", "watcher"):
            self.clients[name] = stack.enter_context(Wire.to(url))
            self.say(name, f"HELLO {protocol} SETNAME guest-{name}")
        self.say("kept", "CLIENT NO-EVICT on", "CLIENT NO-TOUCH on")
        self.say("able", "CLIENT CAPA redirect", "CLIENT TRACKING on BCAST")
        self.say("library", "CLIENT SETINFO lib-name lettuce", "CLIENT SETINFO lib-ver 6.1")
        self.say("subscriber", "SUBSCRIBE news")
        self.say("queueing", "MULTI")
        self.say("elsewhere", "SELECT 3")
        self.say("watcher", "MONITOR")
        self.places = {}
        for name in self.clients:
            if name not in ("subscriber", "queueing", "watcher"):
                self.places |= self._place(name)

    def say(self, name: str, *lines: str) -> bytes:
        for line in lines:
            reply = self.clients[name].call(*split_inline(line.encode()))
            assert not is_error(reply), (line, reply)
        return reply

    def _place(self, name: str) -> dict[str, str]:
        line = (bulk_value(self.say(name, "CLIENT INFO")) or b"").decode()
        found = dict(word.partition("=")[::2] for word in line.split())
        return {f"{name}.{field}": found[field] for field in ("id", "addr", "laddr")}

    def ask(self, line: str) -> bytes:
        words = re.sub(r"\{([\w.]+)\}", lambda match: self.places[match[1]], line)
        return self.clients["me"].call(*split_inline(words.encode()))

    def shown(self, line: str) -> bytes | list[str]:
        """The error, or the names of those who are shown."""
        reply = self.ask(line)
        if is_error(reply):
            return reply
        return sorted(re.findall(r" name=guest-(\w+) ", (bulk_value(reply) or b"").decode()))  # in no order: it turns

    def gone(self) -> list[str]:
        """Those who were closed."""
        found = []
        for name, client in self.clients.items():
            try:
                client.send("PING")
                client.receive()
            except (Closed, ConnectionError):
                found.append(name)
        return found


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def both(request: pytest.FixtureRequest, wire: Wire, endpoint: Up, direct: int) -> Iterator[tuple[Guests, Guests]]:
    """The same guests at the proxy and at a plain server."""
    with ExitStack() as stack:
        urls = endpoint.redis_url, f"redis://127.0.0.1:{direct}"
        ours, theirs = (Guests(stack, url, request.param) for url in urls)
        yield ours, theirs


FILTERS = r"""
    TYPE|TYPE normal|TYPE pubsub|TYPE PubSub|TYPE replica|TYPE slave|TYPE master|TYPE primary|TYPE foo
    TYPE pubsub TYPE normal|NOT-TYPE normal|NOT-TYPE pubsub|NOT-TYPE foo
    ID|ID x|ID x y|ID NAME guest-able|NOT-ID NAME guest-able
    ID 0|ID -5|ID 1 x|ID 99999999999999999999|ID 9999 NAME|ID 9999 NAME foo|ID 1 0|ID 1 2 FLAGS
    ID {me.id}|ID {plain.id} {kept.id} {plain.id}|ID {kept.id} {me.id} NAME guest-kept|ID {plain.id} ID {kept.id}
    NOT-ID|NOT-ID x|NOT-ID 0|NOT-ID {me.id} {able.id}|ID {me.id} {able.id} NOT-ID {able.id}
    USER nobody|USER default|NOT-USER nobody|NOT-USER default|USER ""|USER
    ADDR x|ADDR {able.addr}|NOT-ADDR {able.addr}|LADDR x|LADDR {me.laddr}|NOT-LADDR {me.laddr}|NOT-LADDR
    IP 127.0.0.1|IP nonsense|NOT-IP 127.0.0.1|NOT-IP ""
    SKIPME|SKIPME maybe|SKIPME yes|SKIPME no|SKIPME yes SKIPME no|NOT-SKIPME yes
    MAXAGE x|MAXAGE 0|MAXAGE -1|MAXAGE 99999|NOT-MAXAGE 5
    IDLE x|IDLE 0|IDLE -3|IDLE 99999|NOT-IDLE 5
    NAME guest-able|NAME ""|NOT-NAME guest-able|NOT-NAME ""|NAME guest-able NAME guest-kept
    FLAGS|FLAGS N|FLAGS x|FLAGS eT|FLAGS ex|FLAGS P|FLAGS O|FLAGS tB|FLAGS QZ|FLAGS xQ|FLAGS ""|NOT-FLAGS e|NOT-FLAGS eN
    NOT-FLAGS Q|NOT-FLAGS ""
    LIB-NAME lettuce|LIB-NAME foo|LIB-NAME ""|NOT-LIB-NAME lettuce|LIB-VER 6.1|NOT-LIB-VER 6.1
    DB x|DB -1|DB 16|DB 0|DB 3|NOT-DB x|NOT-DB 16|NOT-DB 3|DB 0 DB 3
    CAPA r|CAPA rr|CAPA q|CAPA ""|NOT-CAPA r|NOT-CAPA q|NOT-CAPA ""
    WRONG x|WRONG|NAME guest-able TYPE normal SKIPME yes|NAME guest-me SKIPME yes
""".replace("\n", "|").split("|")
LINES = [line.strip() for line in FILTERS if line.strip()]


def test_client_list_shows_whom_a_plain_server_shows(both: tuple[Guests, Guests]) -> None:
    ours, theirs = both
    for line in ["", *LINES]:
        assert ours.shown(f"CLIENT LIST {line}") == theirs.shown(f"CLIENT LIST {line}"), line


def test_client_kill_refuses_what_a_plain_server_refuses(both: tuple[Guests, Guests]) -> None:
    ours, theirs = both
    for line in ["", "x", "1.2.3.4:5", *LINES]:
        expected = theirs.ask(f"CLIENT KILL {line} NAME nobody-has-it" if line else "CLIENT KILL")
        assert ours.ask(f"CLIENT KILL {line} NAME nobody-has-it" if line else "CLIENT KILL") == expected, line
        if len(line.split()) != 2:  # the last word is left out
            continue
        option = line.split()[0]
        assert ours.ask(f"CLIENT KILL {option}") == theirs.ask(f"CLIENT KILL {option}"), option


@pytest.mark.parametrize(
    "line",
    [
        "CLIENT KILL {plain.addr}",
        "CLIENT KILL {me.addr}",
        "CLIENT KILL ADDR {plain.addr}",
        "CLIENT KILL ADDR {me.addr}",
        "CLIENT KILL ADDR {me.addr} SKIPME no",
        "CLIENT KILL ID {plain.id} {kept.id} {plain.id}",
        "CLIENT KILL ID {plain.id} {me.id} SKIPME no",
        "CLIENT KILL TYPE pubsub",
        "CLIENT KILL NAME guest-queueing",
        "CLIENT KILL FLAGS e",
        "CLIENT KILL FLAGS x NAME guest-queueing USER default",
        "CLIENT KILL LIB-NAME lettuce LIB-VER 6.1",
        "CLIENT KILL DB 3",
        "CLIENT KILL CAPA r",
        "CLIENT KILL MAXAGE 1000",
        "CLIENT KILL SKIPME yes",
        "CLIENT KILL SKIPME no TYPE normal",
    ],
)
def test_client_kill_closes_whom_a_plain_server_closes(both: tuple[Guests, Guests], line: str) -> None:
    ours, theirs = both
    left, right = ours.ask(line), theirs.ask(line)
    if "guest" in line or "{" in line or left[:1] != b":":
        assert left == right
    assert ours.gone() == theirs.gone()


def test_what_is_pipelined_behind_ones_own_end_does_not_run(wire: Wire, endpoint: Up) -> None:
    with Wire.to(endpoint.redis_url) as client:
        me = integer_value(client.call("CLIENT", "ID"))
        client.send_raw(b"SET a 1\r\nCLIENT KILL ID %d SKIPME no\r\nSET a 2\r\n" % me)
        assert [client.receive(), client.receive()] == [b"+OK\r\n", b":1\r\n"]
        assert client.at_eof()
    assert wire.call("GET", "a") == b"$1\r\n1\r\n"


def test_a_killed_client_leaves_nothing_behind(wire: Wire, endpoint: Up) -> None:
    with Wire.to(endpoint.redis_url) as client, Wire.to(endpoint.redis_url) as waiter:
        client.pipeline([["HELLO", 3], ["CLIENT", "TRACKING", "ON"], ["WATCH", "a"], ["MULTI"], ["SET", "a", "1"]])
        waiter.call("SET", "b", "1")
        waiter.send("WAIT", "9", "0")
        until(lambda: b"flags=b" in wire.call("CLIENT", "LIST"), "it blocks")
        assert wire.call("CLIENT", "KILL", "SKIPME", "yes") == b":2\r\n"
        assert client.at_eof() and waiter.at_eof()
    assert wire.call("GET", "a") == b"$-1\r\n"
    assert b"tracking_clients:0\r\n" in wire.call("INFO", "clients")
    assert b"blocked_clients:0\r\n" in wire.call("INFO", "clients")


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize(
    "dialog",
    [
        "CLIENT NO-EVICT on/CLIENT NO-EVICT maybe/CLIENT NO-EVICT/CLIENT NO-EVICT off/CLIENT NO-EVICT on off",
        "CLIENT NO-TOUCH on/CLIENT NO-TOUCH maybe/CLIENT NO-TOUCH/CLIENT NO-TOUCH OFF/CLIENT NO-TOUCH on off",
        "CLIENT IMPORT-SOURCE on/CLIENT IMPORT-SOURCE off/CLIENT IMPORT-SOURCE maybe/CLIENT IMPORT-SOURCE",
        "CLIENT CAPA/CLIENT CAPA redirect/CLIENT CAPA foo bar",
        "CLIENT GETREDIR/CLIENT GETREDIR x/CLIENT TRACKING on/CLIENT GETREDIR/CLIENT TRACKING off/CLIENT GETREDIR",
        "CLIENT KILL/CLIENT UNBLOCK/CLIENT UNBLOCK x/CLIENT UNBLOCK 1 WRONG/CLIENT WRONG/CLIENT/CLIENT ID x",
        "CLIENT HELP/CLIENT HELP x/CLIENT INFO x/CLIENT LIST ID",
        "CLIENT TRACKING/CLIENT TRACKING maybe/CLIENT TRACKING maybe BCAST/CLIENT TRACKING on x/CLIENT TRACKINGINFO x",
        "CLIENT TRACKINGINFO/CLIENT TRACKING on/CLIENT TRACKINGINFO/CLIENT TRACKING on BCAST/CLIENT TRACKING on OPTIN/"
        "CLIENT TRACKINGINFO/CLIENT TRACKING on OPTOUT/CLIENT CACHING no/CLIENT CACHING maybe/CLIENT CACHING/"
        "CLIENT CACHING yes extra/CLIENT TRACKING on/CLIENT TRACKINGINFO/CLIENT TRACKING off/CLIENT TRACKINGINFO",
        "CLIENT TRACKING on OPTIN/CLIENT CACHING yes/CLIENT TRACKINGINFO/CLIENT GETNAME/CLIENT TRACKINGINFO/PING/"
        "CLIENT TRACKINGINFO/CLIENT CACHING yes/CLIENT CACHING yes/GET a/CLIENT TRACKINGINFO",
        "CLIENT TRACKING on OPTIN/CLIENT CACHING yes/MULTI/GET {a}1/GET {a}2/EXEC/CLIENT TRACKINGINFO",
        "CLIENT TRACKING on OPTIN/MULTI/CLIENT CACHING yes/CLIENT CACHING/GET a/EXEC",
        "CLIENT TRACKING on OPTIN/MULTI/CLIENT CACHING yes/CLIENT CACHING no/CLIENT CACHING x/GET a/EXEC/"
        "CLIENT TRACKINGINFO/MULTI/CLIENT TRACKING off/CLIENT TRACKINGINFO/EXEC/CLIENT TRACKINGINFO",
        "MULTI/CLIENT NO-TOUCH on/CLIENT NO-EVICT on/CLIENT NO-TOUCH x/CLIENT GETREDIR/CLIENT CAPA redirect/"
        "CLIENT LIST ID 0/CLIENT KILL ID 99/CLIENT LIST USER nobody/EXEC/CLIENT GETREDIR",
        "MULTI/CLIENT TRACKING on BCAST/CLIENT GETREDIR/CLIENT TRACKINGINFO/EXEC/CLIENT GETREDIR",
        "CLIENT TRACKING on OPTOUT NOLOOP/CLIENT CACHING yes/CLIENT CACHING no/CLIENT TRACKINGINFO/GET a/"
        "CLIENT TRACKINGINFO/CLIENT TRACKING on OPTIN",
        "CLIENT CACHING yes/CLIENT CACHING no/CLIENT CACHING",
        "CLIENT TRACKING on PREFIX a/CLIENT TRACKING on PREFIX/CLIENT TRACKING on BCAST PREFIX a PREFIX b/"
        "CLIENT TRACKING on BCAST PREFIX ab/CLIENT TRACKING on BCAST PREFIX c PREFIX cd/CLIENT TRACKINGINFO/"
        "CLIENT TRACKING on BCAST PREFIX e PREFIX f PREFIX fg/CLIENT TRACKING on BCAST PREFIX h OPTIN/"
        "CLIENT TRACKING on BCAST PREFIX x NOLOOP/CLIENT TRACKINGINFO/CLIENT TRACKING on BCAST/CLIENT TRACKINGINFO/"
        "CLIENT TRACKING off BCAST PREFIX a OPTIN/CLIENT TRACKINGINFO",
        'CLIENT TRACKING on PREFIX "" BCAST/CLIENT TRACKINGINFO/CLIENT TRACKING on BCAST PREFIX a PREFIX a',
        "CLIENT TRACKING on OPTIN OPTOUT/CLIENT TRACKING on NOLOOP wrong/CLIENT TRACKING on BCAST OPTOUT",
        "CLIENT TRACKING on REDIRECT 99999/CLIENT TRACKING on REDIRECT x/CLIENT TRACKING on REDIRECT/"
        "CLIENT TRACKING on REDIRECT 1 REDIRECT 2",
        "CLIENT TRACKING on/RESET/CLIENT TRACKINGINFO",
        "CLIENT REPLY on/CLIENT REPLY x/CLIENT REPLY",
    ],
)
def test_answers_are_those_of_a_plain_server(wire: Wire, direct: int, dialog: str, protocol: int) -> None:
    with Wire("127.0.0.1", direct) as plain:
        for each in (wire, plain):
            each.call("HELLO", protocol)
        for line in dialog.split("/"):
            assert wire.call(*split_inline(line.encode())) == plain.call(*split_inline(line.encode())), line


def fields(line: bytes) -> dict[str, str]:
    return dict(word.partition("=")[::2] for word in line.decode().split())


def test_client_info_tells_what_a_plain_server_tells(both: tuple[Guests, Guests]) -> None:
    """Where a proxy has the field at all, in the same order; what depends on the connection is left aside."""
    for name in ("me", "kept", "able", "library", "elsewhere"):
        left, right = (fields(bulk_value(side.say(name, "CLIENT INFO")) or b"") for side in both)
        assert list(left) == [field for field in right if field in left]
        same = set(left) - {"id", "addr", "laddr", "fd", "age", "idle", "qbuf", "oll", "omem", "tot-mem"}
        same -= {"argv-mem", "rbs", "rbp", "obl"}
        assert {field: left[field] for field in same} == {field: right[field] for field in same}
    for line in ("NAME guest-subscriber", "NAME guest-queueing", "NAME guest-watcher"):
        left, right = (fields(bulk_value(side.ask(f"CLIENT LIST {line}")) or b"") for side in both)
        assert {name: left[name] for name in ("flags", "sub", "multi", "watch", "resp", "cmd")} == {
            name: right[name] for name in ("flags", "sub", "multi", "watch", "resp", "cmd")
        }


def test_reset_forgets_what_a_plain_server_forgets(wire: Wire, direct: int) -> None:
    said = ["HELLO 3 SETNAME me", "CLIENT NO-EVICT on", "CLIENT NO-TOUCH on", "CLIENT CAPA redirect", "SELECT 2"]
    said += ["CLIENT SETINFO lib-name x", "CLIENT TRACKING on BCAST PREFIX a", "WATCH a", "MULTI", "GET a", "RESET"]
    with Wire("127.0.0.1", direct) as plain:
        lines = []
        for each in (wire, plain):
            for line in said:
                each.call(*split_inline(line.encode()))
            lines.append(fields(bulk_value(each.call("CLIENT", "INFO")) or b""))
        names = ("name", "flags", "capa", "db", "watch", "user", "redir", "resp", "lib-name")
        assert {name: lines[0][name] for name in names} == {name: lines[1][name] for name in names}
        assert wire.call("CLIENT", "TRACKINGINFO") == plain.call("CLIENT", "TRACKINGINFO")
        assert wire.call("CLIENT", "GETNAME") == plain.call("CLIENT", "GETNAME") == b"$-1\r\n"


def test_ids_are_of_the_proxy_and_grow(endpoint: Up, tmp_path: Path) -> None:
    with proxy_beside(endpoint, tmp_path) as url:
        ids = []
        for each in (endpoint.redis_url, url):
            with Wire.to(each) as one, Wire.to(each) as other:
                first, second = (integer_value(client.call("CLIENT", "ID")) for client in (one, other))
                assert first < second < 1 << 53
                assert decode(one.call("HELLO"))[7] == first
                ids.append(first >> 32)
        assert ids[0] != ids[1]


def test_info_counts_the_clients_of_the_proxy(wire: Wire, endpoint: Up) -> None:
    def figures() -> dict[str, int]:
        rows = (bulk_value(wire.call("INFO", "clients")) or b"").decode().split()
        return {name: int(value) for name, _, value in (row.partition(":") for row in rows) if value.isdigit()}

    before = figures()
    with Wire.to(endpoint.redis_url) as tracks, Wire.to(endpoint.redis_url) as subscribes:
        tracks.call("CLIENT", "TRACKING", "on")
        tracks.call("WATCH", "a")
        subscribes.call("SUBSCRIBE", "news")
        now = figures()
    expected = {"connected_clients": 2, "tracking_clients": 1, "pubsub_clients": 1, "watching_clients": 1}
    assert {name: now[name] - before[name] for name in expected} == expected
    assert now["maxclients"] == 10000 and now["blocked_clients"] == 0


def test_no_touch_leaves_idle_times_alone(wire: Wire, endpoint: Up) -> None:
    for shard in whole(endpoint):
        with node(shard["primary"]["address"]) as primary:
            primary.config_set("maxmemory-policy", "allkeys-lfu")
    try:
        wire.call("SET", "a", "1")
        first = wire.call("OBJECT", "FREQ", "a")
        wire.call("CLIENT", "NO-TOUCH", "on")
        for _ in range(200):
            wire.call("GET", "a")
        assert wire.call("OBJECT", "FREQ", "a") == first
        wire.call("CLIENT", "NO-TOUCH", "off")
        for _ in range(200):
            wire.call("GET", "a")
        assert integer_value(wire.call("OBJECT", "FREQ", "a")) > integer_value(first)
    finally:
        for shard in whole(endpoint):
            with node(shard["primary"]["address"]) as primary:
                primary.config_set("maxmemory-policy", "noeviction")


@pytest.mark.parametrize(
    "line",
    [
        "COMMAND COUNT",
        "COMMAND COUNT x",
        "COMMAND INFO get set nosuch",
        "COMMAND INFO config|get",
        "COMMAND INFO",
        "COMMAND",
        "COMMAND DOCS get",
        "COMMAND DOCS nosuch",
        "COMMAND DOCS",
        "COMMAND LIST",
        "COMMAND LIST FILTERBY PATTERN x*",
        "COMMAND LIST FILTERBY ACLCAT hash",
        "COMMAND LIST FILTERBY MODULE none",
        "COMMAND LIST FILTERBY wrong x",
        "COMMAND GETKEYS MSET a 1 b 2",
        "COMMAND GETKEYS GET",
        "COMMAND GETKEYS PING",
        "COMMAND GETKEYS nosuch a",
        "COMMAND GETKEYSANDFLAGS SORT a STORE b",
        "COMMAND GETKEYSANDFLAGS",
        "COMMAND HELP",
        "COMMAND WRONG",
    ],
)
@pytest.mark.parametrize("protocol", [2, 3])
def test_command_answers_as_a_plain_server_does(wire: Wire, direct: int, line: str, protocol: int) -> None:
    with Wire("127.0.0.1", direct) as plain:
        for each in (wire, plain):
            each.call("HELLO", protocol)
        left, right = (each.call(*split_inline(line.encode())) for each in (wire, plain))
        assert left == right or sorted_reply(left) == sorted_reply(right)


def sorted_reply(frame: bytes) -> object:
    """The engine lists commands, and subcommands, in the order of hash tables with seeds of their own."""

    def sort(value: object) -> object:
        if isinstance(value, dict):
            value = list(value.items())
        return sorted((sort(each) for each in value), key=repr) if isinstance(value, list | tuple) else value

    return sort(decode(frame))


def test_an_import_source_sees_what_has_expired(wire: Wire, direct: int) -> None:
    """The flag is the connection's at the shard: the session has lanes that bear it, and leaves them again."""
    dialog = "CLIENT IMPORT-SOURCE maybe/CLIENT IMPORT-SOURCE on/SET k v PXAT 1000/GET k/CLIENT IMPORT-SOURCE off/GET k"
    with Wire("127.0.0.1", direct) as plain:
        for each in (wire, plain):
            each.call("CONFIG", "SET", "import-mode", "yes")
        try:
            for line in dialog.split("/"):
                assert wire.call(*split_inline(line.encode())) == plain.call(*split_inline(line.encode())), line
                flags = [fields(bulk_value(each.call("CLIENT", "INFO")) or b"")["flags"] for each in (wire, plain)]
                assert flags[0] == flags[1]
        finally:
            for each in (wire, plain):
                each.call("CONFIG", "SET", "import-mode", "no")
                each.call("DEL", "k")
