"""The steps of a write's way, measured on real processes: each has data after traffic, and none that is not true."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.server import SAMPLE_EVERY
from tests.harness import Up, until
from tests.system.nodes import Shard, configured, shards_of
from tests.system.wire import Wire

STEPS = ("dispatch", "execute", "relay", "replicate", "persist")


def total(running: Up, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    with urllib.request.urlopen(f"{running.admin_url}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found = [sample for family in families for sample in family.samples if sample.name == name]
    assert found, name
    return sum(sample.value for sample in found if labels.items() <= sample.labels.items())


def timed(running: Up, step: str) -> float:
    return total(running, "ackgate_step_seconds_count", step=step)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One shard, whose replica may be stopped for a while without being taken for dead."""
    folder = tmp_path_factory.mktemp("steps")
    with configured(folder, "cluster: {node_timeout_ms: 10000}", "--shards", "1") as running:
        yield running


@pytest.fixture
def shard(cluster: Up) -> Shard:
    """The replica in step."""
    [found] = shards_of(cluster)
    with Wire.to(cluster.redis_url) as client:

        def in_step() -> bool:
            client.call("SET", "key", "in step")
            return client.call("WAITAOF", 1, 1, 100) == b"*2\r\n:1\r\n:1\r\n"

        until(in_step, "the replica is in step")
        assert client.call("WAIT", 1, 0) == b":1\r\n", "so that no probe is due for a while"
    return found


@pytest.fixture
def session(cluster: Up) -> Iterator[Wire]:
    with Wire.to(cluster.redis_url) as connection:
        yield connection


# ---- the five steps ------------------------------------------------------------------------------------------------


def test_every_step_has_data_after_traffic(cluster: Up, shard: Shard, session: Wire) -> None:
    before = {step: timed(cluster, step) for step in STEPS}

    def measured() -> bool:
        session.call("SET", "key", "value")
        session.call("WAIT", 1, 1000)
        session.call("WAITAOF", 1, 1, 1000)
        return all(timed(cluster, step) > before[step] for step in STEPS)

    until(measured, "every step was timed")
    for step in STEPS:
        assert total(cluster, "ackgate_step_seconds_sum", step=step) > 0


def test_a_few_commands_are_timed_however_many_there_are(cluster: Up, session: Wire) -> None:
    before, started = timed(cluster, "dispatch"), time.monotonic()
    commands = total(cluster, "ackgate_commands_total")
    for number in range(200):
        assert session.pipeline([["SET", "key", number], ["GET", "key"]] * 50)[-1].endswith(b"%d\r\n" % number)
    count = timed(cluster, "dispatch") - before
    assert total(cluster, "ackgate_commands_total") - commands == 20_000
    assert 0 < count <= 3 * (time.monotonic() - started) / SAMPLE_EVERY + 1, "by chance, but not by much, more often"


def test_what_is_timed_of_a_pipeline_ends_with_it(cluster: Up, session: Wire) -> None:
    """A client that goes away with its replies unread, again and again, keeps nothing from being timed."""
    for _ in range(20):
        with Wire.to(cluster.redis_url) as hasty:
            hasty.send_raw(b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n" * 500)
    before = timed(cluster, "relay")
    until(lambda: session.call("GET", "key") and timed(cluster, "relay") > before, "commands are timed")


def test_a_replica_that_lags_is_no_measurement_until_it_has_it(cluster: Up, shard: Shard, session: Wire) -> None:
    before = timed(cluster, "replicate")
    with shard.replica.stopped():
        session.call("SET", "key", "value")
        assert session.call("WAIT", 1, 100) == b":0\r\n"
        assert timed(cluster, "replicate") == before
        session.send("WAIT", 1, 0)
        until(lambda: total(cluster, "ackgate_waits_open") == 1, "it waits")
        stopped = time.monotonic()
        until(lambda: time.monotonic() - stopped > 0.3, "the replica is behind for a while")
        seconds = total(cluster, "ackgate_step_seconds_sum", step="replicate")
    assert session.receive() == b":1\r\n"
    assert timed(cluster, "replicate") == before + 1
    assert total(cluster, "ackgate_step_seconds_sum", step="replicate") - seconds >= 0.3


def test_where_nobody_waits_a_probe_measures(tmp_path: Path) -> None:
    with configured(tmp_path, "cluster: {shards: 2}\nproxy: {acks: {probe_interval: 1s}}") as running:
        until(lambda: timed(running, "replicate") >= 2 and timed(running, "persist") >= 2, "both shards were probed")


def test_a_shard_without_aof_is_probed_without_a_write(tmp_path: Path) -> None:
    with configured(tmp_path, "cluster: {shards: 1, aof: off}\nproxy: {acks: {probe_interval: 1s}}") as running:
        [shard] = shards_of(running)
        until(lambda: timed(running, "replicate") >= 1, "it was probed")
        with pytest.raises(KeyError):
            shard.primary.direct.info("commandstats")["cmdstat_function|restore"]
        assert timed(running, "persist") == 0


def test_a_time_to_an_fsync_that_is_not_believed_is_none(tmp_path: Path) -> None:
    """With everysec Valkey acknowledges WAITAOF before the fsync."""
    text = "cluster: {shards: 1, aof: everysec}\nproxy: {acks: {untrusted_waitaof: pass}}"
    with configured(tmp_path, text) as running, Wire.to(running.redis_url) as session:
        session.call("SET", "key", "value")
        assert session.call("WAITAOF", 1, 1, 5000) == b"*2\r\n:1\r\n:1\r\n"
        assert total(running, "ackgate_ack_rounds_total") > 0
        assert session.call("WAIT", 1, 5000) == b":1\r\n"
        assert timed(running, "dispatch") >= 0
        assert total(running, "ackgate_step_seconds_count", step="persist") == 0


# ---- rounds and waits ----------------------------------------------------------------------------------------------


def test_waits_are_counted_by_result_and_by_replicas(cluster: Up, shard: Shard, session: Wire) -> None:
    def results() -> dict[tuple[str, str], float]:
        names = ("reached", "deadline", "unconfirmed", "refused", "gone")
        return {
            (command, name): total(cluster, "ackgate_wait_seconds_count", command=command, result=name)
            for command in ("wait", "waitaof")
            for name in names
        }

    before = results()
    copies = {number: total(cluster, "ackgate_wait_replicas_total", replicas=number) for number in ("0", "1")}
    session.call("SET", "key", "value")
    assert session.call("WAIT", 1, 0) == b":1\r\n"
    assert session.call("WAITAOF", 1, 1, 0) == b"*2\r\n:1\r\n:1\r\n"
    with shard.replica.stopped():
        session.call("SET", "key", "value")
        assert session.call("WAIT", 1, 20) == b":0\r\n"
        assert session.call("WAITAOF", 1, 1, 20) == b"*2\r\n:1\r\n:0\r\n"
        with Wire.to(cluster.redis_url) as impatient:
            impatient.send("WAIT", 5, 0)
            until(lambda: total(cluster, "ackgate_waits_open") == 1, "it waits")
        until(lambda: total(cluster, "ackgate_waits_open") == 0, "it is gone")
    assert session.call("WAIT", "many", 0).startswith(b"-ERR ")
    assert session.call("WAITAOF", 2, 0, 0).startswith(b"-ERR ")
    new = {key: count - before[key] for key, count in results().items()}
    assert {key: count for key, count in new.items() if count} == {
        ("wait", "reached"): 1,
        ("wait", "deadline"): 1,
        ("wait", "refused"): 1,
        ("wait", "gone"): 1,
        ("waitaof", "reached"): 1,
        ("waitaof", "deadline"): 1,
        ("waitaof", "refused"): 1,
    }
    for number in ("0", "1"):
        assert total(cluster, "ackgate_wait_replicas_total", replicas=number) - copies[number] == 2


def test_who_waits_for_a_life_that_ended_is_counted_as_unconfirmed(tmp_path: Path) -> None:
    with configured(tmp_path, "cluster: {shards: 1, replicas: 0, aof: off}") as running:
        [row] = running.topology()["shards"]
        with Wire.to(running.redis_url) as session:
            session.call("SET", "key", "value")
            session.send("WAIT", 1, 0)
            until(lambda: total(running, "ackgate_waits_open") == 1, "it waits")
            with Wire(*_address(row["primary"]["address"])) as primary:
                primary.send("SHUTDOWN", "NOSAVE")
            assert session.receive().startswith(b"-UNBLOCKED ")
        assert total(running, "ackgate_wait_seconds_count", command="wait", result="unconfirmed") == 1


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def test_how_many_share_a_round_is_told(cluster: Up, shard: Shard) -> None:
    rounds, waiters = (total(cluster, f"ackgate_ack_round_waiters_{what}") for what in ("count", "sum"))
    commands = total(cluster, "ackgate_commands_total")
    with ExitStack() as stack:
        sessions = [stack.enter_context(Wire.to(cluster.redis_url)) for _ in range(40)]
        with shard.primary.stopped():  # so that all are answered in one go, and begin to wait together
            for session in sessions:
                session.send("SET", "key", "value")
                session.send("WAIT", 1, 0)
            until(lambda: total(cluster, "ackgate_commands_total") == commands + 80, "all were read")
        for session in sessions:
            assert (session.receive(), session.receive()) == (b"+OK\r\n", b":1\r\n")
    new = total(cluster, "ackgate_ack_round_waiters_sum") - waiters
    assert new >= total(cluster, "ackgate_ack_round_waiters_count") - rounds + 10, "many had one round"


def test_a_marker_that_is_refused_is_counted(cluster: Up, shard: Shard, session: Wire) -> None:
    before = total(cluster, "ackgate_ack_markers_refused_total")
    session.call("SET", "key", "value")
    with shard.primary.set("min-replicas-to-write", "2"):
        assert session.call("WAITAOF", 1, 1, 1000).startswith(b"-ERR WAITAOF cannot be answered")
    assert total(cluster, "ackgate_ack_markers_refused_total") > before


def test_what_goes_another_way_than_the_usual_is_counted(cluster: Up, shard: Shard, session: Wire) -> None:
    before = total(cluster, "ackgate_ack_fallbacks_total", kind="alone")
    session.call("SET", "key", "value")
    session.call("WAIT", 0, 0)  # nobody to be waited for: what there is, at once
    assert total(cluster, "ackgate_ack_fallbacks_total", kind="alone") == before + 1


# ---- lag -----------------------------------------------------------------------------------------------------------


def test_the_lag_of_a_replica_that_stands_still_rises_and_falls(cluster: Up, shard: Shard, session: Wire) -> None:
    replica = f"{shard.replica.host}:{shard.replica.port}"

    def lag(unit: str) -> float:
        return total(cluster, f"ackgate_replica_lag_{unit}", replica=replica)

    until(lambda: lag("bytes") == 0 and lag("seconds") == 0, "the replica is level")
    with shard.replica.stopped():
        session.call("SET", "key", "x" * 100_000)
        until(lambda: lag("bytes") >= 100_000, "it is seen to be behind in bytes")
        first = lag("seconds")
        until(lambda: lag("seconds") > first + 0.5, "it is seen to be behind for longer and longer")
    until(lambda: lag("bytes") == 0 and lag("seconds") == 0, "the replica is level again")


# ---- traces, as the admin endpoint tells them ----------------------------------------------------------------------


def status(running: Up, path: str, method: str = "GET") -> int:
    data = b"{}" if method == "POST" else None
    request = urllib.request.Request(f"{running.admin_url}{path}", method=method, data=data)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_only_who_asks_for_it_by_name_is_traced(cluster: Up, session: Wire) -> None:
    with Wire.to(cluster.redis_url) as traced:
        traced.call("CLIENT", "SETNAME", "ackgate-trace")
        session.call("CLIENT", "SETNAME", "ackgate-trac")
        numbers = [int(each.call("CLIENT", "ID")[1:]) for each in (traced, session)]
        for each in (traced, session):
            each.call("SET", "key", "value")
        until(lambda: status(cluster, f"/traces/{numbers[0]}") == 200, "it is traced")
        assert status(cluster, f"/traces/{numbers[1]}") == 404
        assert status(cluster, "/traces/key") == 404


def test_the_admin_endpoint_takes_nothing_in(cluster: Up) -> None:
    for path in ("/", "/healthz", "/readyz", "/metrics", "/topology", "/traces/1"):
        assert status(cluster, path, "POST") == 405


def test_traces_without_end_are_not_kept(cluster: Up, shard: Shard) -> None:
    numbers = []
    for _ in range(70):
        with Wire.to(cluster.redis_url) as traced:
            traced.call("CLIENT", "SETNAME", "ackgate-trace")
            numbers.append(int(traced.call("CLIENT", "ID")[1:]))
            traced.call("SET", "key", "value")
            until(lambda: status(cluster, f"/traces/{numbers[-1]}") == 200, "it is traced")
    assert status(cluster, f"/traces/{numbers[0]}") == 404
