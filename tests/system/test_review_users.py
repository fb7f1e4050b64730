"""Users who try what a plain server would not let them: in transactions, made anew, deleted while a node is healed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from proxy.topology.logins import Logins
from proxy.topology.roster import NodeUsers, Roster, may_hear
from shard.client import Credentials, ReplyError
from tests.harness import Up, until
from tests.system.beside import everybody, on
from tests.system.users import users_on_both
from tests.system.wire import Closed, Wire, words

RULES = {
    "queues": "on >secret ~app:* &news:* +get +set +multi +exec +discard +acl|whoami +eval",
    "all": "on >secret ~* &* +@all",
}


@pytest.fixture(scope="module")
def doors(endpoint: Up, direct: int) -> Iterator[tuple[str, str]]:
    """URLs of the proxy and of a plain server with the same users."""
    with users_on_both(endpoint, direct, RULES) as urls:
        yield urls


@pytest.mark.parametrize(
    "line",
    [
        *("ACL SETUSER x on >p", "ACL DELUSER x", "ACL LOG RESET", "ACL LOAD", "CONFIG GET save", "CONFIG SET save x"),
        *("CLIENT KILL ID 99", "SCRIPT LOAD x", "FUNCTION FLUSH", "KEYS *", "FLUSHALL", "INFO", "DBSIZE", "TIME"),
        *("PUBLISH news:1 x", "PUBLISH other x", "ECHO x", "EVAL_RO 'return 1' 0", "EVAL 'return 1' 0", "SELECT 1"),
        *("AUTH all secret", "ACL WHOAMI"),
    ],
)
@pytest.mark.parametrize("before", ["MULTI", "MULTI/SET app:1 1"])
def test_what_may_not_be_queued_aborts_the_transaction(doors: tuple[str, str], before: str, line: str) -> None:
    """Also where no shard looks at it: it has no key, or only something in its stead is queued."""
    replies: list[list[bytes]] = []
    for url in doors:
        with Wire.to(url) as session, Wire.to(url) as admin:
            admin.call("DEL", "app:1")
            calls = ["AUTH queues secret", *before.split("/"), line, "EXEC"]
            replies.append([session.call(*words(each)) for each in calls])
            replies[-1].append(admin.call("GET", "app:1"))
    assert replies[0][:-2] == replies[1][:-2]
    assert [each[:10] for each in replies[0][-2:]] == [each[:10] for each in replies[1][-2:]]


@pytest.mark.parametrize(
    "line",
    [
        "HELLO 2 AUTH all secret AUTH all secret",
        "HELLO 2 SETNAME AUTH AUTH all secret",
        "HELLO 2 AUTH all secret SETNAME auth",
        "AUTH all secret",
    ],
)
def test_who_monitors_sees_no_password(doors: tuple[str, str], line: str) -> None:
    with Wire.to(doors[0]) as watcher, Wire.to(doors[0]) as client:
        assert watcher.call("MONITOR") == b"+OK\r\n"
        client.call(*words(line))
        client.call("ECHO", "mark")
        seen = [watcher.receive()]
        while b"mark" not in seen[-1]:
            seen.append(watcher.receive())
        assert len(seen) > 1 and b"(redacted)" in b"".join(seen)
        assert b"secret" not in b"".join(seen)


@pytest.mark.parametrize(
    ("rules", "stays"),
    [
        ("-subscribe resetchannels", False),
        ("-@all resetchannels &b* &a2", False),
        ("-@all resetchannels (&b* +get)", False),
        ("reset", False),
        ("-subscribe", True),
        ("-@all resetchannels &b* &a?", True),
        ("-@all resetchannels (~* &a1 +get)", True),
        ("off resetpass", True),
    ],
)
@pytest.mark.parametrize("word", ["SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"])
def test_who_loses_a_channel_hears_no_more_of_it(doors: tuple[str, str], rules: str, stays: bool, word: str) -> None:
    """Also one who may not subscribe any more, which alone ends nothing."""
    if word == "PSUBSCRIBE" and "&a?" in rules:
        stays = False  # a pattern has to be among those of the rules, as it is
    for url in doors:
        with Wire.to(url) as admin, Wire.to(url) as subscriber:
            assert admin.call("ACL", "SETUSER", "hears", "reset", "on", ">secret", "&a*", "&a1", "+@all") == b"+OK\r\n"
            assert subscriber.call("AUTH", "hears", "secret") == b"+OK\r\n"
            subscriber.call("DBSIZE")  # it has its connections by now
            subscriber.call(word, "a1")
            subscriber.sock.settimeout(5)
            assert admin.call("ACL", "SETUSER", "hears", *rules.split()) == b"+OK\r\n"
            if stays:
                time.sleep(0.2)
                admin.call("SPUBLISH" if word[0] == "S" and word[1] == "S" else "PUBLISH", "a1", "message")
                assert b"message" in subscriber.receive()
            else:
                assert subscriber.at_eof()
            admin.call("ACL", "DELUSER", "hears")


@pytest.mark.parametrize("before", [["MULTI"], ["MULTI", "PING"]])
def test_multi_that_is_denied_by_the_time_it_is_sent_lets_nothing_behind_it_run(
    doors: tuple[str, str], before: list[str]
) -> None:
    came = []
    for door in doors:
        with Wire.to(door) as admin, Wire.to(door) as session:
            assert session.call("AUTH", "all", "secret") == b"+OK\r\n"
            frames = session.pipeline([[word] for word in before])
            admin.call("ACL", "SETUSER", "all", "-@transaction")
            try:
                frames += session.pipeline([["SET", "{app}k", 1], ["APPEND", "{app}k", 2]])
                frames.append(session.call("EXEC"))
            finally:
                admin.call("ACL", "SETUSER", "all", "reset", *RULES["all"].split())
            came.append([*frames, admin.call("GET", "{app}k")])
    assert came[0] == came[1]


def test_rules_that_changed_bind_what_was_queued_before(doors: tuple[str, str]) -> None:
    replies = []
    for url in doors:
        with Wire.to(url) as admin, Wire.to(url) as session:
            assert admin.call("FLUSHALL") == b"+OK\r\n"
            assert admin.call("ACL", "SETUSER", "late", "reset", "on", ">secret", "~*", "&*", "+@all") == b"+OK\r\n"
            queued = ["AUTH late secret", "MULTI", "SET k 1", "CLIENT SETNAME me", "FLUSHALL", "SELECT 1", "DBSIZE"]
            said = [session.call(*words(each)) for each in queued]
            assert admin.call("ACL", "SETUSER", "late", "-client", "-flushall", "-select") == b"+OK\r\n"
            said.append(session.call("EXEC"))
            assert admin.call("ACL", "SETUSER", "late", "+client") == b"+OK\r\n"
            said += [session.call("CLIENT", "GETNAME"), session.call("GET", "k"), session.call("DEL", "k")]
            replies.append(said)
            admin.call("ACL", "DELUSER", "late")
    assert replies[0] == replies[1]


@pytest.mark.parametrize("parked", [False, True])
def test_who_logged_in_as_a_user_that_was_deleted_is_not_another_of_that_name(
    endpoint: Up, doors: tuple[str, str], parked: bool
) -> None:
    """Deleted and made anew at the nodes themselves, or by another proxy, faster than it could be seen here."""
    nodes = everybody(endpoint)
    on(nodes, "ACL", "SETUSER", "name", "reset", "on", ">former", "~*", "+@all", "-set")
    with Wire.to(doors[0]) as former, Wire.to(doors[0]) as latter, Wire.to(doors[0]) as admin:
        until(lambda: former.call("AUTH", "name", "former") == b"+OK\r\n", "the user is known")
        keys = [f"k{number}" for number in range(20)]
        for key in keys:
            assert former.call("SET", key, 1).startswith(b"-NOPERM")
        for address in nodes:
            on([address], "ACL", "DELUSER", "name")
            on([address], "ACL", "SETUSER", "name", "on", ">latter", "~*", "+@all")
        assert latter.call("AUTH", "name", "latter") == b"+OK\r\n"
        if not parked:
            assert latter.call("SET", "k0", 1) == b"+OK\r\n"
        with contextlib.suppress(ConnectionError):
            for key in keys:
                former.send("SET", key, 1)
        replies = received(former)
        assert b"+OK\r\n" not in replies
        assert latter.call("DEL", *keys).startswith(b":" if parked else b":1\r\n")
        assert admin.call("ACL", "DELUSER", "name") == b":1\r\n"


def received(session: Wire) -> list[bytes]:
    """All replies up to the end of the connection."""
    replies = []
    with contextlib.suppress(Closed, ConnectionError):
        while True:
            replies.append(session.receive())
    return replies


def test_another_password_leaves_those_who_live(endpoint: Up, doors: tuple[str, str]) -> None:
    """Also when their connections to the nodes are lost, as long as what they gave is still right."""
    with Wire.to(doors[0]) as admin, Wire.to(doors[0]) as one, Wire.to(doors[0]) as other:
        assert admin.call("ACL", "SETUSER", "two", "on", ">a", ">b", "~*", "+@all") == b"+OK\r\n"
        assert one.call("AUTH", "two", "a") == other.call("AUTH", "two", "b") == b"+OK\r\n"
        on(everybody(endpoint), "CLIENT", "KILL", "USER", "two")
        for session in (one, other):
            until(lambda session=session: session.call("GET", "k") == b"$-1\r\n", "served again")  # type: ignore[misc]
        assert admin.call("ACL", "DELUSER", "two") == b":1\r\n"


# -- healing, logging in: what happens in between ----------------------------------------------------------------------


class Nodes:
    """Three nodes of which the last one has just begun anew, and its connection, which keeps what it is told."""

    def __init__(self) -> None:
        self.credentials = Credentials()
        self.said: list[tuple[Any, ...]] = []
        watches = [SimpleNamespace(address=("h", port), engine="valkey", version="9", alive=True) for port in range(3)]
        self.nodes = {watch.address: watch for watch in watches}
        self.roster = Roster(cast(Any, self), True, lambda: None)
        for watch in watches:
            known = self.roster._nodes[watch.address] = NodeUsers("run", newborn=watch.address[1] == 2)
            known.take([b"user default on nopass"] if known.newborn else [b"user default on nopass", b"user app on"])
            known.asked_at = trio.current_time()

    async def call(self, *args: Any) -> None:
        self.said.append(args)

    async def look(self) -> None:
        """The newborn node was read so often that it is to be given what it lacks."""
        for _ in range(5):
            watch = self.nodes["h", 2]
            await self.roster._compare(cast(Any, watch), self.roster._nodes["h", 2], cast(Any, self))


async def test_a_node_is_not_given_a_user_that_is_being_deleted(autojump_clock: trio.testing.MockClock) -> None:
    nodes = Nodes()
    roster = nodes.roster
    await trio.sleep(1)
    await nodes.look()
    assert not nodes.said  # what is known of the others was read before
    async with trio.open_nursery() as nursery:

        async def read_on() -> None:
            while True:
                await trio.sleep(0.01)
                for port in range(2):
                    roster._nodes["h", port].asked_at = trio.current_time()

        nursery.start_soon(read_on)
        async with roster.changing(None):
            nursery.start_soon(nodes.look)
            await trio.sleep(10)
        assert not nodes.said
        await nodes.look()
        assert nodes.said[0][:4] == ("ACL", "SETUSER", b"app", "reset")
        nursery.cancel_scope.cancel()


async def test_a_password_that_comes_while_others_are_tried_is_tried_too() -> None:
    logins = Logins(
        cast(Any, None), primaries=list, renewed=lambda user: None, mends=lambda address, run_id, user: False
    )
    logins._keep("app", b"old")

    class Connection:
        async def call(self, command: str, user: bytes, password: bytes) -> None:
            if password == b"old":
                logins._keep("app", b"new")
                raise ReplyError("WRONGPASS")

    await logins.log_in(cast(Any, Connection()), "app", "run")


def test_channels_are_found_in_rules() -> None:
    rules = b"on #12 ~&x resetchannels &a* &b? (~* resetchannels &c +get) +@all"
    for names, patterns, may in (
        ([b"a1", b"b2", b"c"], False, True),
        ([b"a1", b"d"], False, False),
        ([b"x"], False, False),
        ([b"a*", b"b?"], True, True),
        ([b"a1"], True, False),
    ):
        assert may_hear(rules, names, patterns) is may
    assert may_hear(b"on ~* &* +@all", [b"x"], False)
    assert not may_hear(b"", [b"x"], False)
