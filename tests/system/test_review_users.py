"""Users who try what a plain server would not let them: in transactions, made anew, deleted while a node is healed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from proxy.codec import split_inline
from proxy.topology.roster import NodeUsers
from tests.harness import Up, until
from tests.system.beside import everybody, on
from tests.system.wire import Wire

RULES = {
    "queues": "on >secret ~app:* &news:* +get +set +multi +exec +discard +acl|whoami +eval",
    "all": "on >secret ~* &* +@all",
}


def words(line: str) -> list[bytes]:
    parts = split_inline(line.encode())
    assert parts is not None
    return parts


@pytest.fixture(scope="module")
def doors(endpoint: Up, direct: int) -> Iterator[tuple[str, str]]:
    """URLs of the proxy and of a plain server with the same users."""
    urls = endpoint.redis_url, f"redis://127.0.0.1:{direct}"
    for url in urls:
        with Wire.to(url) as admin:
            for name, rules in RULES.items():
                assert admin.call("ACL", "SETUSER", name, "reset", *rules.split()) == b"+OK\r\n"
    yield urls
    for url in urls:
        with Wire.to(url) as admin:
            admin.call("ACL", "DELUSER", *RULES)
            admin.call("FLUSHALL")


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
    try:
        while True:
            replies.append(session.receive())
    except Exception as ended:  # noqa: BLE001 -- closed or reset
        assert not isinstance(ended, TimeoutError)
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
