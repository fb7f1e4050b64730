"""Users: the engine checks their passwords and rules, also of what the proxy answers itself, as a plain server does."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from proxy.codec.reply import decode, elements, is_error
from proxy.sessions.brake import Brake
from proxy.topology.roster import read_users, transacts, unrestricted
from tests.harness import Up, until
from tests.system.beside import everybody, node, on, primaries, proxy_beside
from tests.system.load import tag
from tests.system.nodes import metric, shards_of
from tests.system.users import users_on_both
from tests.system.wire import Closed, Wire, words

NARROW = "on >secret ~app:* &news:* +@read +@write +@connection +multi +exec +subscribe +publish -client -ping"
USERS = {
    "narrow": NARROW,
    "reader": "on >secret ~* &* +@read -scan -select",
    "full": "on >secret >other ~* &* +@all",
    "open": "on nopass ~* &* +@all",
    "off": "off >secret ~* &* +@all",
    "one": "on >secret ~* &* +@all resetdbs db=1",
    "admin": "on >secret ~* &* +@all -debug",
    "mute": "on >secret ~app:* +get +multi +set",
}


@pytest.fixture(scope="module")
def doors(endpoint: Up, direct: int) -> Iterator[tuple[str, str]]:
    """URLs of the proxy and of a plain server with the same users."""
    with users_on_both(endpoint, direct, USERS) as urls:
        yield urls


@contextlib.contextmanager
def logged_in(url: str, user: str, password: str = "secret") -> Iterator[Wire]:
    with Wire.to(url) as connection:
        assert connection.call("AUTH", user, password) == b"+OK\r\n"
        yield connection


def users_of(address: str) -> dict[str, str]:
    with contextlib.closing(node(address)) as server:
        rows: list[Any] = server.execute_command("ACL LIST")  # type: ignore[no-untyped-call]
    return {row.split(" ")[1]: row for row in rows}


def everywhere(running: Up, user: str) -> set[str | None]:
    return {users_of(address).get(user) for address in everybody(running)}


def set_user(running: Up, user: str, rules: str) -> None:
    with Wire.to(running.redis_url) as admin:
        assert admin.call("ACL", "SETUSER", user, *rules.split()) == b"+OK\r\n"


# -- who it is ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dialog",
    [
        "AUTH narrow wrong/AUTH nobody secret/AUTH off secret/ACL WHOAMI",
        "AUTH full secret/ACL WHOAMI/AUTH full wrong/ACL WHOAMI/AUTH full other/ACL WHOAMI",
        "AUTH open anything/ACL WHOAMI/AUTH default x/ACL WHOAMI/AUTH x/ACL WHOAMI",
        "AUTH full secret/SET a 1/GET a/RESET/ACL WHOAMI/GET a/DEL a",
        "AUTH full secret/SELECT 3/SET a 1/AUTH open x/GET a/AUTH full secret/DEL a/SELECT 0/GET a",
        "HELLO 2 AUTH full wrong/HELLO 2 AUTH nobody wrong SETNAME x/CLIENT GETNAME/ACL WHOAMI",
        'HELLO 2 AUTH full secret SETNAME "a b"/ACL WHOAMI/CLIENT GETNAME',
        "AUTH a b c/AUTH/AUTH full/ACL WHOAMI",
        "AUTH narrow secret/ACL WHOAMI/CLIENT ID/CONFIG GET save/AUTH default x/ACL WHOAMI",
    ],
)
def test_a_user_logs_in_as_at_a_plain_server(doors: tuple[str, str], dialog: str) -> None:
    same(doors, dialog)


def same(doors: tuple[str, str], dialog: str, user: str | None = None) -> None:
    ours, theirs = (Wire.to(url) for url in doors)
    with ours, theirs:
        assert ours.call("FLUSHALL") == theirs.call("FLUSHALL") == b"+OK\r\n"
        if user is not None:
            dialog = f"AUTH {user} secret/{dialog}"
        for line in dialog.split("/"):
            left, right = ours.call(*words(line)), theirs.call(*words(line))
            assert left == right, line


@pytest.mark.parametrize("protocol", [2, 3])
def test_hello_with_a_user_changes_both(doors: tuple[str, str], protocol: int) -> None:
    for url in doors:
        with Wire.to(url) as connection:
            assert not is_error(connection.call("HELLO", protocol, "AUTH", "full", "secret", "SETNAME", "me"))
            assert connection.call("ACL", "WHOAMI") == b"$4\r\nfull\r\n"
            assert connection.call("CLIENT", "GETNAME") == b"$2\r\nme\r\n"
            assert connection.call("GET", "none") == (b"_\r\n" if protocol == 3 else b"$-1\r\n")


def test_identity_changes_within_a_pipeline_keep_order(doors: tuple[str, str]) -> None:
    lines = (
        "SET app:x 1/AUTH narrow secret/GET app:x/GET x/ACL WHOAMI/AUTH narrow wrong/GET app:x/SELECT 2/GET app:x/"
        "AUTH full secret/GET app:x/SELECT 0/GET app:x/PING/DEL app:x/RESET/ACL WHOAMI"
    )
    calls: list[list[bytes | str | int]] = [[*words(line)] for line in lines.split("/")]
    replies = []
    for url in doors:
        with Wire.to(url) as connection:
            replies.append(connection.pipeline(calls))
    assert replies[0] == replies[1]


# -- what it may -------------------------------------------------------------------------------------------------------

MAY_OR_NOT = """
    GET app:1
    GET x
    SET app:1 x
    SET x 1
    MGET app:1 app:2
    MGET app:1 x
    MSET app:1 1 app:2 2
    MSET app:1 1 app:2 2 x 3
    DEL app:1 app:2 x
    UNLINK app:1 x
    EXISTS app:1 x
    TOUCH x app:1
    DEL app:1 app:2
    EVAL "return 1" 0
    EVAL "return 1" 1 x
    PING
    PING x
    ECHO x
    SCAN 0
    KEYS nothing*
    DBSIZE
    RANDOMKEY
    INFO server
    WAIT 0 0
    WAITAOF 0 0 0
    SELECT 1
    SELECT 99
    SELECT x
    SELECT 0
    CLIENT ID
    CLIENT GETNAME
    CLIENT SETNAME x
    CLIENT LIST
    CLIENT INFO
    ROLE
    READONLY
    COMMAND COUNT
    CONFIG GET save
    CONFIG SET save x
    FLUSHALL
    FLUSHDB
    SCRIPT LOAD x
    SCRIPT FLUSH
    SCRIPT KILL
    FUNCTION FLUSH
    ACL WHOAMI
    ACL LIST
    ACL SETUSER x
    ACL DELUSER x
    ACL LOG
    ACL LOAD
    ACL SAVE
    PUBLISH other x
    PUBLISH news:1 x
    SWAPDB 0 1
    WATCH app:1
    WATCH x
    UNWATCH
    MULTI
    DISCARD
    NOSUCHCOMMAND
    CLIENT NOSUCH
    GET
    HELLO 9
"""


@pytest.mark.parametrize("user", ["narrow", "reader", "mute", "one"])
def test_the_engine_says_what_a_user_may_also_of_what_the_proxy_answers(
    doors: tuple[str, str], user: str
) -> None:
    ours, theirs = (Wire.to(url) for url in doors)
    with ours, theirs:
        for side in (ours, theirs):
            assert side.call("AUTH", user, "secret") == b"+OK\r\n"
        for line in MAY_OR_NOT.strip().splitlines():
            left, right = ours.call(*words(line)), theirs.call(*words(line))
            if right.startswith(b"-NOPERM") or left.startswith(b"-NOPERM"):
                assert left == right, line


def test_a_multi_key_command_that_may_not_is_not_begun(doors: tuple[str, str]) -> None:
    keys = [f"app:{number}" for number in range(20)]
    with Wire.to(doors[0]) as admin, logged_in(doors[0], "narrow") as narrow:
        admin.call("MSET", *(word for key in keys for word in (key, 1)))
        pairs = [word for key in keys for word in (key, 2)]
        for line in (["DEL", *keys, "x"], ["UNLINK", "x", *keys], ["MSET", *pairs, "x", 1]):
            assert narrow.call(*line) == b"-NOPERM No permissions to access a key\r\n"
        assert decode(admin.call("MGET", *keys)) == [b"1"] * 20
        assert narrow.pipeline([["SET", "app:1", 5], ["DEL", *keys], ["SET", "app:1", 6], ["GET", "app:1"]]) == [
            *(b"+OK\r\n", b":20\r\n", b"+OK\r\n", b"$1\r\n6\r\n")
        ]
        admin.call("DEL", *keys)


@pytest.mark.parametrize(
    "dialog",
    [
        "MULTI/SET app:1 1/PING/EXEC/GET app:1",
        "MULTI/SET app:1 1/GET x{app:1}/EXEC/GET app:1",
        "MULTI/SET app:1 1/GET app:1/EXEC/DEL app:1",
    ],
)
def test_transactions_obey_the_rules(doors: tuple[str, str], dialog: str) -> None:
    same(doors, dialog, "narrow")


def test_exec_may_be_forbidden_alone(doors: tuple[str, str]) -> None:
    same(doors, "MULTI/SET app:1 1/EXEC/GET app:1/EXEC", "mute")


def test_databases_are_the_users_too(doors: tuple[str, str]) -> None:
    same(doors, "GET a/SELECT 0/SELECT 1/SET a 1/GET a/DBSIZE/KEYS */SELECT 2/COPY a b DB 0/DEL a/PING", "one")


def test_who_may_scan_needs_to_know_nothing_of_clusters(doors: tuple[str, str]) -> None:
    with Wire.to(doors[0]) as admin, logged_in(doors[0], "narrow") as narrow:
        admin.call("FLUSHALL")
        admin.call("MSET", *(word for number in range(100) for word in (f"app:{number}", 1)))
        seen, cursor = set(), b"0"
        while True:
            returned, keys = elements(narrow.call("SCAN", cursor))
            seen |= set(decode(keys))
            cursor = decode(returned)
            if cursor == b"0":
                break
        assert len(seen) == 100
        assert decode(narrow.call("RANDOMKEY")).startswith(b"app:")
        admin.call("FLUSHALL")


def test_what_was_watched_as_somebody_else_counts_as_changed(doors: tuple[str, str]) -> None:
    with logged_in(doors[0], "full") as session:
        session.pipeline([["WATCH", "app:k"], ["AUTH", "narrow", "secret"], ["MULTI"], ["SET", "x", 1]])
        assert is_error(session.call("EXEC"))
        assert session.pipeline([["MULTI"], ["SET", "app:k", 1], ["EXEC"], ["DEL", "app:k"]])[2] == b"*1\r\n+OK\r\n"


# -- rules that change -------------------------------------------------------------------------------------------------


def test_changed_rules_bind_living_sessions_at_once(endpoint: Up, doors: tuple[str, str]) -> None:
    with logged_in(doors[0], "full") as living:
        assert living.call("SET", "k", 1) == b"+OK\r\n"
        assert living.call("PING") == b"+PONG\r\n"
        set_user(endpoint, "full", "-set -ping -client -del resetkeys ~k*")
        try:
            assert living.call("SET", "k", 2).startswith(b"-NOPERM")
            assert living.call("PING").startswith(b"-NOPERM")
            assert living.call("CLIENT", "ID").startswith(b"-NOPERM")
            assert living.call("GET", "x").startswith(b"-NOPERM")
            assert living.call("GET", "k") == b"$1\r\n1\r\n"
        finally:
            set_user(endpoint, "full", "reset " + USERS["full"])
        assert living.call("PING") == b"+PONG\r\n"
        assert living.call("DEL", "k") == b":1\r\n"


def test_rules_changed_behind_the_proxys_back_bind_within_a_second(endpoint: Up, doors: tuple[str, str]) -> None:
    with logged_in(doors[0], "open") as living:
        assert living.call("PING") == b"+PONG\r\n"
        on(everybody(endpoint), "ACL", "SETUSER", "open", "-ping")
        try:
            began = time.monotonic()
            until(lambda: living.call("PING").startswith(b"-NOPERM"), "the change is seen")
            assert time.monotonic() - began < 2
        finally:
            set_user(endpoint, "open", "reset " + USERS["open"])


def test_password_changes_and_off_leave_living_sessions(endpoint: Up, doors: tuple[str, str]) -> None:
    set_user(endpoint, "brief", "on >first ~* &* +@all")
    with logged_in(doors[0], "brief", "first") as living:
        for number in range(10):
            living.call("SET", f"k{number}", 1)
        set_user(endpoint, "brief", "resetpass >second off")
        for number in range(10):
            assert living.call("GET", f"k{number}") == b"$1\r\n1\r\n"
        assert living.call("AUTH", "brief", "first").startswith(b"-WRONGPASS")
        assert living.call("AUTH", "brief", "second").startswith(b"-WRONGPASS")
        set_user(endpoint, "brief", "on")
        with Wire.to(doors[0]) as other:
            assert other.call("AUTH", "brief", "first").startswith(b"-WRONGPASS")
            assert other.call("AUTH", "brief", "second") == b"+OK\r\n"
            assert living.call("DEL", *(f"k{number}" for number in range(10))) == b":10\r\n"
            assert other.call("ACL", "DELUSER", "brief") == b":1\r\n"
            assert other.at_eof()
        assert living.at_eof()


def test_who_needs_a_connection_that_cannot_be_had_any_more_is_told_why_and_closed(
    endpoint: Up, doors: tuple[str, str]
) -> None:
    set_user(endpoint, "late", "on >first ~* &* +@all")
    with logged_in(doors[0], "late", "first") as leases, logged_in(doors[0], "late", "first") as lives:
        assert lives.call("GET", "k") == b"$-1\r\n"
        set_user(endpoint, "late", "resetpass >second")
        assert lives.call("GET", "k") == b"$-1\r\n"
        leases.send("WATCH", "k")  # a connection of its own
        assert leases.receive() == b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
        assert leases.at_eof()
        assert lives.call("GET", "k") == b"$-1\r\n"
        with Wire.to(doors[0]) as admin:
            assert admin.call("ACL", "DELUSER", "late") == b":1\r\n"
        assert lives.at_eof()


def test_a_user_made_anew_is_another(endpoint: Up, doors: tuple[str, str]) -> None:
    set_user(endpoint, "twice", "on >secret ~* &* +@all")
    with logged_in(doors[0], "twice") as session, Wire.to(doors[0]) as admin:
        again: list[list[bytes | str | int]] = [
            ["ACL", "DELUSER", "twice"],
            ["ACL", "SETUSER", "twice", "on", ">secret", "~*", "+@all"],
        ]
        assert admin.pipeline(again) == [b":1\r\n", b"+OK\r\n"]
        assert session.at_eof()
        assert admin.call("ACL", "DELUSER", "twice") == b":1\r\n"


def test_a_name_may_be_any_bytes(endpoint: Up, doors: tuple[str, str]) -> None:
    name = b"na\xffme\xc3\xa9"
    for url in doors:
        with Wire.to(url) as admin, Wire.to(url) as session:
            assert admin.call("ACL", "SETUSER", name, "on", ">secret", "~*", "+@all") == b"+OK\r\n"
            assert session.call("AUTH", name, "secret") == b"+OK\r\n"
            assert session.call("ACL", "WHOAMI") == b"$7\r\n" + name + b"\r\n"
            assert session.call("GET", "k") == b"$-1\r\n"
            assert b" user=" + name + b" " in session.call("CLIENT", "INFO")
            assert admin.call("ACL", "DELUSER", name) == b":1\r\n"
            assert session.at_eof()


@pytest.mark.parametrize("protocol", [2, 3])
def test_deluser_disconnects_all_its_sessions_and_nobody_else(
    endpoint: Up, doors: tuple[str, str], protocol: int
) -> None:
    set_user(endpoint, "doomed", "on >secret ~* &* +@all")
    with Wire.to(doors[0]) as admin, logged_in(doors[0], "full") as other, contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(logged_in(doors[0], "doomed")) for _ in range(5)]
        for at, session in enumerate(sessions):
            assert not is_error(session.call("HELLO", protocol))
            if at % 2:
                assert not is_error(session.call("SET", f"k{at}", 1))
        sessions[2].send("SUBSCRIBE", "channel")
        assert sessions[2].receive()[1:2] == b"3"
        sessions[3].send("BLPOP", "nothing", 0)
        sessions[4].send("WAIT", 9, 0)
        assert admin.call("ACL", "DELUSER", "doomed", "nobody") == b":1\r\n"
        for session in sessions:
            assert ended(session)
        assert other.call("DEL", "k1", "k3") == b":2\r\n"
        assert admin.call("AUTH", "doomed", "secret").startswith(b"-WRONGPASS")


def ended(session: Wire) -> bool:
    """Whether the connection is closed; what was under way on it may be told so before."""
    try:
        assert is_error(session.receive())
    except (Closed, ConnectionError):
        return True
    return session.at_eof()


def test_acl_commands_reach_every_node(endpoint: Up, doors: tuple[str, str]) -> None:
    with logged_in(doors[0], "admin") as admin:
        assert admin.call("ACL", "SETUSER", "walker", "on", ">p", "~a", "+get") == b"+OK\r\n"
        [rules] = everywhere(endpoint, "walker")
        assert rules is not None and rules.encode() in decode(admin.call("ACL", "LIST"))
        assert b"walker" in decode(admin.call("ACL", "USERS"))
        assert admin.call("ACL", "SETUSER", "walker", "nonsense") == (
            b"-ERR Error in ACL SETUSER modifier 'nonsense': Syntax error\r\n"
        )
        assert admin.call("ACL", "DRYRUN", "walker", "get", "a") == b"+OK\r\n"
        assert admin.call("ACL", "DELUSER", "walker") == b":1\r\n"
        assert everywhere(endpoint, "walker") == {None}


@pytest.mark.parametrize(
    "line",
    [
        *("ACL SETUSER", "ACL SETUSER x foo", "ACL DELUSER", "ACL DELUSER default", "ACL DELUSER nobody", "ACL SAVE"),
        *("ACL LOAD", "ACL LOG RESET", "ACL LOG x", "ACL LOG 1 2", "ACL GETUSER nobody", "ACL GETUSER narrow"),
        *("ACL GETUSER default", "ACL LIST", "ACL USERS", "ACL CAT", "ACL CAT wrong", "ACL DRYRUN narrow get x"),
        *("ACL DRYRUN nobody get x", "ACL WRONG", "ACL HELP", "ACL GENPASS x", "ACL SETUSER default on nopass +@all"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 3])
def test_acl_commands_answer_as_a_plain_server(doors: tuple[str, str], line: str, protocol: int) -> None:
    ours, theirs = (Wire.to(url) for url in doors)
    with ours, theirs:
        for side in (ours, theirs):
            side.call("HELLO", protocol)
        left, right = ours.call(*words(line)), theirs.call(*words(line))
        if line == "ACL CAT":
            left, right = (b"".join(sorted(elements(each))) for each in (left, right))
        assert left == right


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_log_is_that_of_all_nodes_newest_first(doors: tuple[str, str], protocol: int) -> None:
    with Wire.to(doors[0]) as admin, logged_in(doors[0], "narrow") as narrow:
        admin.call("HELLO", protocol)
        assert admin.call("ACL", "LOG", "RESET") == b"+OK\r\n"
        for number in range(15):
            narrow.call("GET", f"x{number}")
        narrow.call("AUTH", "narrow", "wrong")
        entries = decode(admin.call("ACL", "LOG"))
        rows = [each if isinstance(each, dict) else dict(zip(each[::2], each[1::2], strict=True)) for each in entries]
        assert len(rows) == 10
        times = [row[b"timestamp-created"] for row in rows]
        assert times == sorted(times, reverse=True)
        assert (b"auth", b"narrow") in [(row[b"reason"], row[b"username"]) for row in rows]
        assert len(decode(admin.call("ACL", "LOG", 3))) == 3
        assert len(decode(admin.call("ACL", "LOG", 100))) == 16


def test_what_would_lock_the_proxy_out_is_refused(doors: tuple[str, str]) -> None:
    with Wire.to(doors[0]) as admin:
        for rules in ("off", ">secret", "reset", "-@all", "resetkeys", "nopass -get"):
            reply = admin.call("ACL", "SETUSER", "default", *rules.split())
            assert reply.startswith(b"-ERR ACL SETUSER of 'default' is refused by the proxy"), rules
        assert admin.call("PING") == b"+PONG\r\n"


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_wrong_passwords_are_answered_later_and_later_and_right_ones_at_once(endpoint: Up, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("right\n")
    with proxy_beside(endpoint, tmp_path, auth={"password_file": str(secret)}) as url, Wire.to(url) as guesser:
        took = []
        for user in ("default", "nobody") * 8:
            began = time.monotonic()
            assert guesser.call("AUTH", user, "wrong").startswith(b"-WRONGPASS")
            took.append(time.monotonic() - began)
        assert took[-1] > 0.5 > max(took[:9])
        with Wire.to(url) as client:
            began = time.monotonic()
            assert client.call("AUTH", "right") == b"+OK\r\n"
            assert time.monotonic() - began < 0.5


def test_identities_are_bounded_and_those_unused_make_room(
    endpoint: Up, tmp_path: Path, doors: tuple[str, str]
) -> None:
    few = {"identities": 3}
    with proxy_beside(endpoint, tmp_path, lanes=few) as url, Wire.to(url) as first, Wire.to(url) as second:
        for database in range(1, 8):  # one after the other is one at a time
            assert first.call("SELECT", database) == b"+OK\r\n"
            assert first.call("GET", "nothing") == b"$-1\r\n"
        assert second.call("SELECT", 1) == b"+OK\r\n"
        refused = b"-ERR all 3 identities (user, database, protocol) are in use (lanes.identities): try again\r\n"
        with Wire.to(url) as third:
            assert third.call("SELECT", 2) == refused
            assert third.call("AUTH", "full", "secret") == refused
            assert third.call("HELLO", 3) == refused
            assert third.call("ACL", "WHOAMI") == b"$7\r\ndefault\r\n"
            assert third.call("SELECT", 7) == b"+OK\r\n"  # which first is in
        assert second.call("SELECT", 0) == b"+OK\r\n"
        assert second.call("AUTH", "full", "secret") == b"+OK\r\n"


def test_passwords_are_in_no_log(endpoint: Up, tmp_path: Path, doors: tuple[str, str]) -> None:
    with proxy_beside(endpoint, tmp_path, log={"level": "debug"}) as url:
        with Wire.to(url) as connection:
            connection.call("ACL", "SETUSER", "spy", "on", ">never-seen", "~*", "+@all")
            assert connection.call("AUTH", "spy", "never-sEen").startswith(b"-WRONGPASS")
            assert connection.call("AUTH", "spy", "never-seen") == b"+OK\r\n"
            connection.call("GET", "x")
        with Wire.to(url) as connection:
            connection.call("ACL", "DELUSER", "spy")
        assert "never-s" not in (tmp_path / "proxy.err").read_text()


# -- durability, CLIENT LIST -------------------------------------------------------------------------------------------


def test_durability_rules_are_by_the_user(endpoint: Up, tmp_path: Path, doors: tuple[str, str]) -> None:
    rules = [{"user": "full", "replicas": 9, "timeout": "50ms"}]
    sections: dict[str, Any] = {"durability": rules}
    with proxy_beside(endpoint, tmp_path, **sections) as url, Wire.to(url) as plain, logged_in(url, "full") as full:
        assert plain.call("SET", "k", 1) == b"+OK\r\n"
        assert full.call("SET", "k", 1).startswith(b"-UNCONFIRMED")
        assert full.call("AUTH", "open", "x") == b"+OK\r\n"
        assert full.call("DEL", "k") == b":1\r\n"


def test_client_list_shows_the_user(doors: tuple[str, str]) -> None:
    with logged_in(doors[0], "full") as connection:
        assert b" user=full " in connection.call("CLIENT", "INFO")


def test_rules_are_read_as_the_engine_writes_them() -> None:
    lines = [b"user a on nopass ~* &* +@all", b"user b off #12 ~* &* +@all +get", b"user d on ~a* resetchannels -@all"]
    users = read_users(lines)
    assert users[b"d"] == b"on ~a* resetchannels -@all"
    assert [unrestricted(users[name]) for name in (b"a", b"b", b"d")] == [True, True, False]
    for rules in (b"on ~* &* +@all -get", b"on ~* &* db=1 +@all", b"on %R~* &* +@all", b"on ~* +@all", b"off"):
        assert not unrestricted(rules)
    for rules in (b"on ~* +@all", b"~a* -@all +get +multi +discard +unwatch", b"-@all +@transaction", b"+@fast"):
        assert transacts(rules)
    for rules in (b"off", b"+@all -discard", b"+@all -@transaction", b"+@all -multi", b"+@all -@all +@read"):
        assert not transacts(rules)


async def test_the_brake_grows_and_lets_go(autojump_clock: trio.testing.MockClock) -> None:
    brake, took = Brake(), []
    for _ in range(20):
        began = trio.current_time()
        await brake.wrong("1.2.3.4")
        took.append(round(trio.current_time() - began, 6))
    assert took[:10] == [0] * 10
    assert took == sorted(took) and took[-1] == 1.6
    began = trio.current_time()
    await brake.wrong("5.6.7.8")
    assert trio.current_time() == began
    await trio.sleep(60)
    await brake.wrong("1.2.3.4")
    assert trio.current_time() == began + 60


# -- nodes that differ -------------------------------------------------------------------------------------------------


def test_a_node_that_comes_back_without_users_gets_them_and_nobody_notices(fresh: Any) -> None:
    running: Up = fresh("--shards", "3", "--replicas", "0")
    set_user(running, "app", "on >secret ~* &c* (~other +get) +@all -config")
    wanted = everywhere(running, "app")
    assert len(wanted) == 1
    shards = running.topology()["shards"]
    lost, other = shards[0]["primary"], shards[1]["primary"]["address"]
    with logged_in(running.redis_url, "app") as living:
        key = "key" + tag(shards[0]["slots"][0][0])
        assert living.call("SET", key, 1) == b"+OK\r\n"
        os.kill(lost["pid"], signal.SIGKILL)
        assert living.call("GET", key) == b"$1\r\n1\r\n"
    assert everywhere(running, "app") == wanted
    assert metric(running, "ackgate_users_given_to_nodes_total") >= 1
    until(lambda: "users_differ" not in running.topology(), "nothing differs")
    # What somebody deleted on purpose stays so, and is reported.
    on([other], "ACL", "DELUSER", "app")
    until(lambda: running.topology().get("users_differ") == {other: ["app"]}, "the difference is reported")
    assert users_of(other).get("app") is None
    assert metric(running, "ackgate_nodes_with_differing_users") == 1


@pytest.mark.slow
def test_after_a_failover_who_cannot_log_in_any_more_is_told_and_closed(fresh: Any) -> None:
    running: Up = fresh("--shards", "3")
    set_user(running, "app", "on >secret ~* &* +@all")
    shards = shards_of(running)
    with logged_in(running.redis_url, "app") as needs, logged_in(running.redis_url, "app") as elsewhere:
        for session in (needs, elsewhere):
            assert session.call("SET", shards[0].key, 1) == b"+OK\r\n"
        set_user(running, "app", "resetpass >other")
        os.kill(shards[0].primary.pid, signal.SIGKILL)
        reply = needs.call("GET", shards[0].key)
        assert reply == b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
        assert needs.at_eof()
        assert elsewhere.call("SET", shards[1].key, 1) == b"+OK\r\n"
        with logged_in(running.redis_url, "app", "other") as renewed:
            until(lambda: renewed.call("GET", shards[0].key) == b"$1\r\n1\r\n", "served again")
        assert elsewhere.call("GET", shards[0].key) == b"$1\r\n1\r\n"  # by lanes that the new password opened


@pytest.mark.slow
def test_a_node_that_hangs_holds_up_nobody_who_logs_in(fresh: Any) -> None:
    running: Up = fresh("--shards", "3")
    set_user(running, "app", "on >secret ~* &* +@all")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Wire.to(running.redis_url)) for _ in range(30)]
        assert clients[0].call("AUTH", "app", "secret") == b"+OK\r\n"
        stack.enter_context(shards_of(running)[0].primary.stopped())
        began = time.monotonic()
        for client in clients:
            client.send("AUTH", "app", "secret")
        assert {client.receive() for client in clients} == {b"+OK\r\n"}
        assert time.monotonic() - began < 10  # one deadline, not one for each


# -- a proxy with a user of its own, nodes that ask everybody ----------------------------------------------------------


def test_the_proxys_own_user_need_not_be_default(fresh: Any, tmp_path: Path) -> None:
    running: Up = fresh("--shards", "1", "--replicas", "1")
    secret = tmp_path / "secret"
    secret.write_text("p\n")
    for address in everybody(running):
        on([address], "ACL", "SETUSER", "ackgate", "on", ">p", "~*", "&*", "+@all")
    cluster = {"seeds": primaries(running), "username": "ackgate", "password_file": str(secret)}
    with proxy_beside(running, tmp_path / "proxy", cluster=cluster) as url, Wire.to(url) as client:
        assert client.call("SET", "k", 1) == b"+OK\r\n"
        assert client.call("ACL", "SETUSER", "app", "on", ">s", "~app:*", "+@all") == b"+OK\r\n"
        assert client.call("ACL", "DELUSER", "ackgate").startswith(b"-ERR ACL DELUSER of 'ackgate' is refused")
        assert client.call("ACL", "SETUSER", "ackgate", "off").startswith(b"-ERR ACL SETUSER of 'ackgate' is refused")
        with logged_in(url, "app", "s") as app:
            assert app.call("SET", "app:1", 1) == b"+OK\r\n"
            assert app.call("SET", "x", 1).startswith(b"-NOPERM")
            assert app.call("ACL", "WHOAMI") == b"$3\r\napp\r\n"
