"""What is told of commands by name: counts, errors, times at the proxy and at the shard, widths; on real servers."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import SMALL, Up, until, up
from tests.system.wire import Wire

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
ERRORS = "ackgate_command_errors_total"
KINDS = "ackgate_errors_total"
CALLS = "ackgate_command_calls_total"


def scraped(running: Up) -> str:
    with urllib.request.urlopen(f"{running.admin_url}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def samples(running: Up) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(scraped(running))
        for sample in family.samples
    }


class Risen:
    """By how much figures are above what they were when this was made."""

    def __init__(self, running: Up) -> None:
        self._running = running
        self._before = samples(running)

    def __call__(self, name: str, **labels: str) -> float:
        key = name, tuple(sorted(labels.items()))
        return samples(self._running).get(key, 0.0) - self._before.get(key, 0.0)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("commands"), *SMALL) as found:
        yield found


@pytest.fixture
def client(running: Up) -> Iterator[Wire]:
    with Wire.to(running.redis_url) as connection:
        yield connection


def test_commands_are_counted_by_name(running: Up, client: Wire) -> None:
    risen = Risen(running)
    for number in range(20):
        client.call("SET", f"key:{number}", "value")
    client.call("get", "key:1")
    client.call("CONFIG", "GET", "maxmemory")
    client.call("EVAL", "return 1", 1, "key:1")
    client.call("MGET", *[f"key:{number}" for number in range(20)])
    client.call("PING")
    assert risen(CALLS, command="set") == 20
    for name in ("get", "config|get", "eval", "mget", "ping"):
        assert risen(CALLS, command=name) == 1, name
    assert risen("ackgate_command_seconds_count", command="set") == 20
    assert 0 < risen("ackgate_command_seconds_sum", command="set") < 20


def test_a_transaction_counts_each_of_its_commands(running: Up, client: Wire) -> None:
    risen = Risen(running)
    client.call("MULTI")
    client.call("INCR", "{t}one")
    client.call("INCR", "{t}two")
    client.call("EXEC")
    assert [risen(CALLS, command=name) for name in ("multi", "incr", "exec")] == [1, 2, 1]


def test_errors_are_counted_by_their_first_word(running: Up, client: Wire) -> None:
    risen = Risen(running)
    client.call("SET", "text", "x")
    client.call("LPUSH", "text", "x")
    client.call("INCR", "text")
    client.call("EVAL", "return redis.error_reply('MINE is a secret')", 1, "text")
    client.call("GET")
    client.call("NOSUCH", "secret")
    client.call("CLIENT", "NOSUCH")
    assert risen(ERRORS, command="lpush", error="WRONGTYPE") == 1
    assert risen(ERRORS, command="incr", error="ERR") == 1
    assert risen(ERRORS, command="eval", error="other") == 1
    assert risen(ERRORS, command="get", error="ERR") == 1
    assert risen(ERRORS, command="unknown", error="ERR") == 1
    assert risen(ERRORS, command="client", error="ERR") == 1
    assert risen(ERRORS, command="set", error="ERR") == 0
    assert [risen(KINDS, error=word) for word in ("ERR", "WRONGTYPE", "other", "OOM")] == [4, 1, 1, 0]


def test_kinds_of_errors_are_there_before_there_is_one(tmp_path: Path) -> None:
    """What appears with its first events is missed by a rate: a burst of errors would not be seen at all."""
    with up(tmp_path, *SMALL) as fresh:
        kinds = {dict(labels)["error"]: value for (name, labels), value in samples(fresh).items() if name == KINDS}
    assert {"ERR", "CLUSTERDOWN", "UNBLOCKED", "UNCONFIRMED", "LOADING", "other"} <= set(kinds)
    assert set(kinds.values()) == {0}


def test_clients_cannot_make_labels_grow(running: Up, client: Wire) -> None:
    words = re.compile(r'(\w+)="([^"]*)"')
    client.call("PING")
    client.call("NOSUCH")
    client.call("EVAL", "return redis.error_reply('FIRST')", 1, "key")
    before = {found for found in words.findall(scraped(running)) if found[0] != "le"}
    for number in range(50):
        client.call(f"SECRET{number}", f"secret{number}")
        client.call("CLIENT", f"SECRET{number}")
        client.call("EVAL", f"return redis.error_reply('SECRET{number}')", 1, f"secret{number}")
    client.call("AUTH", "secret0", "secret1")
    text = "".join(line for line in scraped(running).splitlines(keepends=True) if not line.startswith("#"))
    assert not re.search("secret[0-9]", text, re.IGNORECASE)
    after = {found for found in words.findall(text) if found[0] != "le"}
    assert after - before <= {("command", "auth"), ("error", "WRONGPASS")}


def test_what_users_who_may_not_do_everything_call_is_counted_as_the_same_commands(running: Up, client: Wire) -> None:
    assert client.call("ACL", "SETUSER", "counted", "on", ">pw", "~*", "+@all", "-flushall") == b"+OK\r\n"
    with Wire.to(running.redis_url) as other:
        until(lambda: other.call("AUTH", "counted", "pw") == b"+OK\r\n", "all nodes know the user")
        risen = Risen(running)
        other.call("MGET", *[f"key:{number}" for number in range(20)])
        other.call("SET", "key", "v")
        other.call("DBSIZE")
        other.call("FLUSHALL")
    for name in ("mget", "set", "dbsize", "flushall"):
        assert risen(CALLS, command=name) == 1, name
    assert risen(ERRORS, command="flushall", error="NOPERM") == 1


def test_times_at_the_shard_are_those_of_the_commands_that_were_timed(running: Up, client: Wire) -> None:
    risen = Risen(running)

    def timed() -> bool:
        for _ in range(50):
            client.call("HSET", "hash", "field", "value")
            client.call("EVAL", "return redis.call('GET', KEYS[1])", 1, "key:1")
        return all(risen("ackgate_command_shard_seconds_count", command=name) > 0 for name in ("hset", "eval"))

    until(timed, "one of each was timed")
    for name in ("hset", "eval"):
        assert risen("ackgate_command_shard_seconds_sum", command=name) > 0
        at_shard = risen("ackgate_command_shard_seconds_count", command=name)
        assert at_shard <= risen("ackgate_command_seconds_count", command=name)


def test_time_in_a_blocking_command_is_its_time_at_the_proxy(running: Up, client: Wire) -> None:
    risen = Risen(running)
    client.call("BLPOP", "nothing:here", 0.3)
    assert risen("ackgate_command_seconds_bucket", command="blpop", le="0.25") == 0
    assert risen("ackgate_command_seconds_bucket", command="blpop", le="10.0") == 1


def test_how_wide_commands_were(running: Up, client: Wire) -> None:
    risen = Risen(running)
    client.call("MSET", "a", "1", "b", "2", "c", "3")
    client.call("DEL", "a")
    client.call("DBSIZE")
    assert (risen("ackgate_split_parts_count"), risen("ackgate_split_parts_sum")) == (2, 4)
    assert (risen("ackgate_fanout_shards_count"), risen("ackgate_fanout_shards_sum")) == (1, 1)


def test_without_metrics_by_command_there_are_none(tmp_path: Path) -> None:
    config = tmp_path / "uncounted.yaml"
    config.write_text("proxy: {admin: {command_metrics: false}}\n")
    with up(tmp_path, *SMALL, "--config", str(config)) as uncounted, Wire.to(uncounted.redis_url) as client:
        for _ in range(50):
            client.call("SET", "key", "value")
        found = samples(uncounted)
        assert not any(name.startswith("ackgate_command_") or name == KINDS for name, _ in found)
        assert found["ackgate_commands_total", ()] == 50
