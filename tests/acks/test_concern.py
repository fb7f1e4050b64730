"""Write concern: replies to writes that come only when the write is acknowledged as the configuration asks."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.acks.arguments import Asked
from proxy.acks.concern import DEPENDS, PATIENCE, Concern, Concerns, Rule
from proxy.configfile import load
from proxy.settings import ProxySettings
from tests.acks.sides import Ackgate
from tests.harness import ROOT, until
from tests.system.load import tag
from tests.system.nodes import configured, metric, shards_of
from tests.system.wire import Wire, request

OK = b"+OK\r\n"
LATE = b"-UNCONFIRMED applied, not acknowledged by 1 replicas within 200 ms\r\n"
RULES = """
cluster: {node_timeout_ms: 10000}
proxy:
  durability:
    - {prefix: "free:"}
    - {prefix: "soft:", replicas: 1, timeout: 200ms, on_timeout: ack}
    - {prefix: "short:", replicas: 1, timeout: 200ms}
    - {prefix: "own:", fsync: local, timeout: 200ms}
    - {prefix: "disk:", fsync: both, timeout: 200ms}
    - {prefix: "copy:", fsync: replica, timeout: 200ms}
    - {prefix: "both:", fsync: local, replicas: 1, timeout: 1m, on_timeout: ack}
    - {prefix: "like any:", replicas: 1, timeout: 1m}
    - {user: somebody else, replicas: 5, timeout: 200ms}
    - {replicas: 1, timeout: 1m}
"""


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ackgate]:
    with configured(tmp_path_factory.mktemp("concern"), RULES) as running:
        yield Ackgate(running)


@pytest.fixture
def session(side: Ackgate) -> Iterator[Wire]:
    with side.session() as connection:
        yield connection


def key(side: Ackgate, prefix: str, shard: int = 0) -> str:
    return f"{prefix}{{{tag(side.shards[shard].slot)}}}"


def replies(side: Ackgate, result: str) -> float:
    return side.metric(f'ackgate_concern_replies_total{{result="{result}"}}')


def until_held(side: Ackgate, questions: int = 1) -> None:
    until(lambda: side.metric("ackgate_concern_questions_open") == questions, f"{questions} are held")


def silent(session: Wire) -> bool:
    return not select.select([session.sock], [], [], 0)[0]


# ---- what is kept back, and what is not -----------------------------------------------------------------------------


def test_the_reply_comes_when_the_replica_has_the_write(side: Ackgate, session: Wire) -> None:
    mine = key(side, "any:")
    with side.replica.stopped():
        session.send("SET", mine, "held")
        until_held(side)
        with side.session() as other:
            assert other.call("GET", mine) == b"$4\r\nheld\r\n"  # it is applied, and reading waits for nobody
            assert other.call("SET", key(side, "any:", 1), "elsewhere") == OK
        assert silent(session)
    assert session.receive() == OK


def test_replies_stay_in_order_and_commands_behind_run_at_once(side: Ackgate, session: Wire) -> None:
    mine, elsewhere = key(side, "any:"), key(side, "any:", 1)
    with side.replica.stopped():
        for command in (["SET", mine, "1"], ["SET", elsewhere, "2"], ["GET", mine], ["INCR", elsewhere]):
            session.send(*command)
        with side.session() as other:
            until(lambda: other.call("GET", elsewhere) == b"$1\r\n3\r\n", "what is behind the held write has run")
        until_held(side)
        assert silent(session)
    assert [session.receive() for _ in range(4)] == [OK, OK, b"$1\r\n1\r\n", b":3\r\n"]


def test_an_exempted_key_waits_for_nobody(side: Ackgate, session: Wire) -> None:
    with side.replica.stopped():
        assert session.call("SET", key(side, "free:"), "1") == OK
        assert silent(session)


def test_who_leaves_leaves_nothing_behind(side: Ackgate) -> None:
    with side.replica.stopped(), side.session() as leaving:
        leaving.send("SET", key(side, "any:"), "1")
        until_held(side)
    until_held(side, 0)
    until(lambda: side.metric("ackgate_clients_open") == 0, "the client is gone")


def test_a_wait_behind_a_held_write_comes_behind_it(side: Ackgate, session: Wire) -> None:
    with side.replica.stopped():
        session.send("SET", key(side, "any:"), "1")
        session.send("WAIT", 1, 0)
        until_held(side)
    assert [session.receive(), session.receive()] == [OK, b":1\r\n"]


def test_many_replies_are_kept_in_few_questions(side: Ackgate, session: Wire) -> None:
    numbers = range(500)
    before = replies(side, "reached")
    found = session.pipeline([["SET", f"any:{number}", number] for number in numbers])
    assert found == [OK] * len(numbers)
    assert replies(side, "reached") - before == len(numbers)
    lines: list[list[bytes | str | int]] = [["GET" if number % 2 else "INCR", f"any:{number}"] for number in numbers]
    odd = [b"$%d\r\n%d\r\n" % (len(str(number)), number) for number in numbers]
    even = [b":%d\r\n" % (number + 1) for number in numbers]
    assert session.pipeline(lines) == [odd[number] if number % 2 else even[number] for number in numbers]


def test_replies_that_come_behind_a_question_are_gathered(side: Ackgate, session: Wire) -> None:
    """Writes that come one by one do not each make a question of their own."""
    numbers = range(1, 201)
    with side.replica.stopped(), side.session() as other, side.primary.wire() as past:
        other.send("DEL", key(side, "any:"))
        until_held(side)
        started = time.monotonic()
        for number in numbers:
            session.send("INCR", key(side, "any:"))
            while past.call("GET", key(side, "any:")) != b"$%d\r\n%d\r\n" % (len(str(number)), number):
                pass
        most = (time.monotonic() - started) / PATIENCE + 2
        until(lambda: side.metric("ackgate_concern_questions_open") > 1, "they are held")
        assert side.metric("ackgate_concern_questions_open") <= most
    assert [session.receive() for _ in numbers] == [b":%d\r\n" % number for number in numbers]


def test_classes_that_take_turns_are_kept_in_few_questions_too(side: Ackgate, session: Wire) -> None:
    numbers = range(400)
    lines: list[list[bytes | str | int]]
    lines = [["INCR", key(side, "like any:" if number % 2 else "any:")] for number in numbers]
    with side.session() as other:
        other.call("DEL", key(side, "any:"), key(side, "like any:"))
        with side.replica.stopped():
            session.send_raw(b"".join(request(*line) for line in lines))
            until(lambda: other.call("GET", key(side, "like any:")) == b"$3\r\n200\r\n", "all have run")
            until(lambda: side.metric("ackgate_concern_questions_open") >= 2, "they are held")
            assert side.metric("ackgate_concern_questions_open") < 100
    assert [session.receive() for _ in lines] == [b":%d\r\n" % (number // 2 + 1) for number in numbers]


def test_a_client_is_not_kept_more_replies_than_its_output_may_hold(tmp_path: Path) -> None:
    text = "cluster: {shards: 1}\nproxy: {clients: {output_limit: 8mb}, durability: [{replicas: 2, timeout: 1m}]}"
    with configured(tmp_path, text) as running, Wire.to(running.redis_url) as session:
        with shards_of(running)[0].primary.wire() as past:
            assert past.call("SET", "large", "x" * 1_000_000) == OK
        for _ in range(20):
            session.send("GETEX", "large", "PERSIST")
        assert session.at_eof()


def test_a_transaction_whose_reply_is_kept_back_keeps_no_lane(tmp_path: Path) -> None:
    rules = "[{prefix: 'free:'}, {replicas: 2, timeout: 5m}]"
    text = f"cluster: {{shards: 1}}\nproxy: {{lanes: {{leased_per_shard: 1}}, durability: {rules}}}"
    with configured(tmp_path, text) as running, Wire.to(running.redis_url) as one, Wire.to(running.redis_url) as other:
        one.send_raw(b"".join([request("MULTI"), request("SET", "any:", "1"), request("EXEC")]))
        until(lambda: metric(running, "ackgate_concern_questions_open") == 1, "its reply is kept back")
        lines: list[list[bytes | str | int]] = [["MULTI"], ["SET", "free:", "1"], ["EXEC"]]
        assert other.pipeline(lines) == [OK, b"+QUEUED\r\n", b"*1\r\n+OK\r\n"]
        one.receive(), one.receive()
        assert silent(one)


# ---- at the deadline ------------------------------------------------------------------------------------------------


def test_at_the_deadline_an_error_says_that_it_was_applied(side: Ackgate, session: Wire) -> None:
    mine = key(side, "short:")
    before = replies(side, "deadline")
    with side.replica.stopped():
        assert session.call("SET", mine, "1") == LATE
        assert session.call("GET", mine) == b"$1\r\n1\r\n"
    assert replies(side, "deadline") == before + 1


def test_at_the_deadline_ack_lets_the_reply_pass_and_counts_it(side: Ackgate, session: Wire) -> None:
    before = replies(side, "passed")
    with side.replica.stopped():
        assert session.call("SET", key(side, "soft:"), "1") == OK
    assert replies(side, "passed") == before + 1


def test_an_error_of_the_engine_stays_what_it_is(side: Ackgate, session: Wire) -> None:
    mine = key(side, "short:")
    assert session.call("SET", mine, "text") == OK
    with side.replica.stopped():
        assert session.call("LPUSH", mine, 1).startswith(b"-WRONGTYPE ")


@pytest.mark.parametrize(("protocol", "null"), [(2, b"*-1\r\n"), (3, b"_\r\n")])
def test_what_wrote_nothing_is_not_called_applied(protocol: int, null: bytes, side: Ackgate) -> None:
    """A transaction whose watched key has changed, and a blocking command whose time is up."""
    mine, watched, empty = key(side, "short:"), key(side, "free:watched:"), key(side, "short:empty:")
    with side.session(protocol) as session, side.replica.stopped():
        session.pipeline([["WATCH", watched], ["INCR", watched], ["MULTI"], ["SET", mine, "never"]])
        assert session.call("EXEC") == null
        assert session.call("GET", mine) != b"$5\r\nnever\r\n"
        assert session.call("BLPOP", empty, "0.01") == null
        assert session.call("BLMOVE", empty, empty, "LEFT", "LEFT", "0.01") == null
        assert session.call("SET", mine, "v", "GET").startswith(LATE[:-2]), "a null, too, but of a write"
        session.send("BLPOP", empty, 0)
        with side.session() as other:
            until(lambda: b"cmd=blpop" in other.call("CLIENT", "LIST"), "it blocks")
            other.send("RPUSH", empty, 1)
            assert session.receive() == LATE
            assert other.receive() == LATE


def test_every_way_to_write_is_kept_back(side: Ackgate, session: Wire) -> None:
    mine, other = key(side, "short:"), key(side, "short:", 1)
    script = "return redis.call('SET', KEYS[1], ARGV[1])"
    with side.replica.stopped():
        assert session.call("EVAL", script, 1, mine, "v") == LATE
        assert session.call("MSET", mine, "1", other, "2") == LATE
        assert session.call("DEL", other, mine) == LATE
        lines: list[list[bytes | str | int]] = [["MULTI"], ["SET", mine, "3"], ["EXEC"]]
        assert session.pipeline(lines)[-1] == LATE
        assert session.call("GET", mine) == b"$1\r\n3\r\n"
        read: list[list[bytes | str | int]] = [["MULTI"], ["GET", mine], ["EXEC"]]
        assert session.pipeline(read)[-1] == b"*1\r\n$1\r\n3\r\n"
        assert session.call("SET", mine, "x" * 2_000_000) == LATE  # on a lane of its own
    assert session.call("MSET", mine, "1", other, "2") == OK
    assert session.call("EVAL", script, 1, mine, "v") == OK


def test_a_key_of_several_that_asks_for_it_is_enough(side: Ackgate, session: Wire) -> None:
    with side.replica.stopped():
        assert session.call("MSET", key(side, "free:", 1), "1", key(side, "short:"), "1") == LATE
        same = tag(side.shards[0].slot)
        assert session.call("MSET", f"free:{{{same}}}", "1", f"short:{{{same}}}", "1") == LATE


def test_a_flush_is_kept_back_as_a_write_without_a_key(side: Ackgate, session: Wire) -> None:
    with side.replica.stopped():
        session.send("FLUSHALL")
        until_held(side)
    assert session.receive() == OK


# ---- on disk --------------------------------------------------------------------------------------------------------


def test_the_primarys_own_disk_does_not_wait_for_the_replica(side: Ackgate, session: Wire) -> None:
    with side.replica.stopped():
        assert session.call("SET", key(side, "own:"), "1") == OK


def test_both_disks_or_an_error(side: Ackgate, session: Wire) -> None:
    mine = key(side, "disk:")
    assert session.call("SET", mine, "1") == OK
    with side.replica.stopped():
        words = b"-UNCONFIRMED applied, not fsynced by the primary and 1 replicas within 200 ms\r\n"
        assert session.call("SET", mine, "2") == words


def test_the_replicas_disk_without_the_primarys(side: Ackgate, session: Wire) -> None:
    with side.primary.set("appendonly", "no"):
        assert session.call("SET", key(side, "copy:"), "1") == OK
        assert session.call("SET", key(side, "disk:"), "1").startswith(b"-UNCONFIRMED applied, not acknowledged: ")
    with side.replica.stopped():
        words = b"-UNCONFIRMED applied, not fsynced by 1 replicas within 200 ms\r\n"
        assert session.call("SET", key(side, "copy:"), "2") == words


def test_what_cannot_be_known_is_refused_with_the_reason(side: Ackgate, session: Wire) -> None:
    mine = key(side, "own:")
    before = replies(side, "refused")
    with side.primary.set("appendfsync", "everysec"):
        reply = session.call("SET", mine, "1")
        assert reply.startswith(b"-UNCONFIRMED applied, not acknowledged: "), reply
        assert b"everysec" in reply
    assert replies(side, "refused") == before + 1


def test_what_is_refused_lets_a_reply_pass_only_when_the_rest_is_there(side: Ackgate, session: Wire) -> None:
    before = replies(side, "passed")
    with side.primary.set("appendfsync", "everysec"):
        with side.replica.stopped():
            session.send("SET", key(side, "both:"), "1")
            until_held(side)  # of its two questions: the other was refused
            assert silent(session)
        assert session.receive() == OK
    assert replies(side, "passed") == before + 1


# ---- when the primary goes ------------------------------------------------------------------------------------------


def test_a_primary_that_goes_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    """Whatever the rule says of timeouts: nobody can say any more what became of the write."""
    rules = "[{prefix: 'soft:', replicas: 2, timeout: 5m, on_timeout: ack}, {replicas: 2, timeout: 5m}]"
    text = f"cluster: {{shards: 1}}\nproxy: {{durability: {rules}}}"
    with configured(tmp_path, text) as running, Wire.to(running.redis_url) as one, Wire.to(running.redis_url) as other:
        one.send("SET", "any:", "1")
        other.send("SET", "soft:", "1")
        until(lambda: metric(running, "ackgate_concern_questions_open") == 2, "both are held")
        os.kill(shards_of(running)[0].primary.pid, signal.SIGKILL)
        for session in (one, other):
            words = b"-UNCONFIRMED applied, but the primary that took it is no longer in charge: outcome unknown\r\n"
            assert session.receive() == words
        assert metric(running, 'ackgate_concern_replies_total{result="unconfirmed"}') == 2


# ---- which rule -----------------------------------------------------------------------------------------------------


def concerns(*rules: Rule) -> Concerns:
    return Concerns(
        rules,
        None,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        keys_of=lambda raw: raw.split(),
        observe=lambda result, count: None,
    )


def test_the_first_rule_that_matches_decides() -> None:
    one, none = Concern(replicas=1), Concern()
    found = concerns(Rule(none, prefix=b"a:"), Rule(one, "ann", b"a:"), Rule(one, "ann"), Rule(one, None, b"z:"))
    assert found.of_user("bob") == DEPENDS
    assert found.of_write("ann", b"a:1") == 0
    assert found.of_write("ann", b"b:1") == 3
    assert found.of_write("ann", b"") == 3
    assert found.of_write("ann", b"a:1 z:1") == 3
    assert found.of_write("bob", b"a:1 b:1") == 0
    assert found.of_write("bob", b"z:1 b:1") == 4


def test_who_has_no_rule_that_asks_for_anything_is_never_looked_at() -> None:
    found = concerns(Rule(Concern(replicas=1), "ann"), Rule(Concern(), prefix=b"a:"))
    assert found.of_user("ann") == 1
    assert found.of_user("bob") == 0


def test_the_rules_that_the_readme_shows_mean_what_it_says(tmp_path: Path) -> None:
    chapter = (ROOT / "README.md").read_text().partition("## What an acknowledgment means here")[2]
    block = chapter.partition("```yaml\n")[2].partition("```")[0]
    file = tmp_path / "proxy.yaml"
    file.write_text("cluster: {seeds: ['127.0.0.1:7000']}\n" + block)
    cache, order, app = load(file, ProxySettings).durability
    assert (cache.prefix, cache.replicas, cache.fsync) == ("cache:", 0, "none")
    assert (order.prefix, order.fsync, order.timeout, order.on_timeout) == ("order:", "both", 2.0, "error")
    assert (app.user, app.replicas, app.timeout, app.on_timeout) == ("app", 1, 0.5, "ack")


@pytest.mark.parametrize(
    ("concern", "asked"),
    [
        (Concern(replicas=2), [Asked(0, 2, 1.0, fsync=False)]),
        (Concern(fsync="local"), [Asked(1, 0, 1.0, fsync=True)]),
        (Concern(fsync="local", replicas=1), [Asked(1, 0, 1.0, fsync=True), Asked(0, 1, 1.0, fsync=False)]),
        (Concern(fsync="replica"), [Asked(0, 1, 1.0, fsync=True)]),
        (Concern(fsync="both", replicas=2), [Asked(1, 2, 1.0, fsync=True)]),
    ],
)
def test_a_concern_asks_what_wait_and_waitaof_would(concern: Concern, asked: list[Asked]) -> None:
    assert concern.questions() == asked
