"""Several workers on one port, as users and operators see them: real processes, killed, stopped and ended."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ENVIRONMENT, PATIENCE_S, SMALL, Up, ackgate, gone, until, up
from tests.system.wire import Closed, Wire

WORKERS = 3
LOW_BITS = 255  # of a CLIENT ID: the worker's number


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("workers"), *SMALL, "--workers", str(WORKERS)) as found:
        yield found


@pytest.fixture
def one_each(running: Up) -> Iterator[dict[int, Wire]]:
    """A client of each worker, by its number."""
    with ExitStack() as stack:
        yield of_each(running, stack)


def of_each(running: Up, stack: ExitStack) -> dict[int, Wire]:
    found: dict[int, Wire] = {}
    for _ in range(1000):
        wire = Wire.to(running.redis_url)
        number = id_of(wire) & LOW_BITS
        if number in found:
            wire.close()
        else:
            found[number] = stack.enter_context(wire)
        if len(found) == WORKERS:
            return found
    raise AssertionError(f"a thousand connections came to workers {sorted(found)} only")


def id_of(wire: Wire) -> int:
    return int(wire.call("CLIENT", "ID")[1:])


def workers(running: Up) -> dict[int, dict[str, Any]]:
    return {row["worker"]: row for row in running.topology()["workers"]}


def figures(running: Up) -> dict[str, float]:
    """Samples by name and labels."""
    with urllib.request.urlopen(f"{running.admin_url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^([a-z]\S*(?: \S+)*) (\S+)$", text, re.MULTILINE)}


def get(running: Up, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(running.admin_url + path, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def all_accept(running: Up) -> bool:
    return all(row["accepts"] for row in workers(running).values())


# ---- one endpoint --------------------------------------------------------------------------------------------------


def test_clients_land_on_all_workers_and_their_ids_tell_which(running: Up, one_each: dict[int, Wire]) -> None:
    assert sorted(one_each) == [1, 2, 3]
    ids = [id_of(wire) for wire in one_each.values()]
    assert len(set(ids)) == WORKERS and max(ids) < 2**53
    first, *others = one_each.values()
    assert first.call("SET", "shared", "value") == b"+OK\r\n"
    assert [other.call("GET", "shared") for other in others] == [b"$5\r\nvalue\r\n"] * 2
    pids = {row["pid"] for row in workers(running).values()}
    assert len(pids) == WORKERS and running.process.pid not in pids


def test_client_list_shows_the_clients_of_all(one_each: dict[int, Wire]) -> None:
    ids = {id_of(wire) for wire in one_each.values()}
    for wire in one_each.values():
        assert ids <= {int(found) for found in re.findall(rb"^id=(\d+) ", _text(wire.call("CLIENT", "LIST")), re.M)}
        wanted = [str(each) for each in ids]
        assert _text(wire.call("CLIENT", "LIST", "ID", *wanted)).count(b"\n") == WORKERS
        assert _text(wire.call("CLIENT", "LIST", "USER", "default", "NAME", "nobody")) == b""
        assert wire.call("CLIENT", "LIST", "NONSENSE", "1").startswith(b"-ERR")


def _text(frame: bytes) -> bytes:
    head, _, body = frame.partition(b"\r\n")
    assert head.startswith(b"$"), frame
    return body.removesuffix(b"\r\n")


def test_client_kill_reaches_the_clients_of_all(one_each: dict[int, Wire]) -> None:
    one, two, three = one_each.values()
    assert one.call("CLIENT", "KILL", "ID", id_of(two)) == b":1\r\n"
    assert two.at_eof()
    address = "{}:{}".format(*three.sock.getsockname())
    assert one.call("CLIENT", "KILL", address) == b"+OK\r\n"
    assert three.at_eof()
    assert one.call("CLIENT", "KILL", address) == b"-ERR No such client\r\n"
    assert one.call("CLIENT", "KILL", "ID", 12345) == b":0\r\n"


def test_client_kill_counts_itself_and_the_others(one_each: dict[int, Wire]) -> None:
    for wire in one_each.values():
        assert wire.call("CLIENT", "SETNAME", "doomed") == b"+OK\r\n"
    one, *others = one_each.values()
    assert one.call("CLIENT", "KILL", "NAME", "doomed", "SKIPME", "no") == b":3\r\n"
    assert all(wire.at_eof() for wire in (one, *others))


@pytest.mark.parametrize("blocking", [("BLPOP", "no-such-list", 0), ("WAIT", 5, 0)], ids=["at the engine", "in WAIT"])
@pytest.mark.parametrize("reason", ["TIMEOUT", "ERROR"])
def test_client_unblock_reaches_the_clients_of_all(
    running: Up, one_each: dict[int, Wire], blocking: tuple[str | int, ...], reason: str
) -> None:
    one, other, _ = one_each.values()
    number = id_of(other)
    assert one.call("CLIENT", "UNBLOCK", number, reason) == b":0\r\n", "it is not blocked"
    other.send(*blocking)
    until(lambda: one.call("CLIENT", "UNBLOCK", number, reason) == b":1\r\n", "it was blocked, and was unblocked")
    ended = other.receive()
    assert ended.startswith(b"-UNBLOCKED") if reason == "ERROR" else ended in (b"*-1\r\n", b":0\r\n")
    assert one.call("CLIENT", "UNBLOCK", 12345) == b":0\r\n"


def test_info_counts_the_clients_of_all(running: Up, one_each: dict[int, Wire]) -> None:
    one, two, three = one_each.values()
    two.send("BLPOP", "no-such-list", 0)
    assert three.call("SUBSCRIBE", "channel").startswith(b"*3")

    def told() -> bool:
        lines = _text(one.call("INFO", "clients")).splitlines()
        return {b"connected_clients:3", b"blocked_clients:1", b"pubsub_clients:1", b"maxclients:30000"} <= set(lines)

    until(told, "all three are counted, and what they do")
    assert one.call("MULTI") == b"+OK\r\n"
    assert one.call("INFO", "clients") == b"+QUEUED\r\n"
    assert b"connected_clients:3\r\n" in one.call("EXEC")


def test_a_pause_holds_the_clients_of_all_and_so_does_its_end(running: Up, one_each: dict[int, Wire]) -> None:
    one, two, three = one_each.values()
    assert one.call("CLIENT", "PAUSE", 600000, "WRITE") == b"+OK\r\n"
    two.send("SET", "paused", "1")
    assert three.call("GET", "no-such-key") == b"$-1\r\n"
    until(lambda: figures(running)["ackgate_parked_commands"] == 1, "the write is held")
    assert three.call("CLIENT", "UNPAUSE") == b"+OK\r\n"
    assert two.receive() == b"+OK\r\n"


def test_a_trace_finds_the_worker_that_has_it(running: Up) -> None:
    for _ in range(3):  # whichever worker it comes to
        told = ackgate("trace", "--admin", running.admin_url, "--json", "SET", "traced", "1")
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["steps_ms"]["execute"] > 0
    assert get(running, "/traces/12345")[0] == 404


def test_status_and_the_admin_paths_are_those_of_one_proxy(running: Up) -> None:
    assert get(running, "/healthz") == (200, {"status": "ok"})
    assert get(running, "/readyz") == (200, {"ready": True})
    assert running.topology()["shards"][0]["slots"] == [[0, 16383]]
    shown = ackgate("status", "--admin", running.admin_url)
    assert shown.returncode == 0, shown.stderr
    with urllib.request.urlopen(running.admin_url, timeout=10) as answer:
        assert answer.read().startswith(b"Ackgate admin: ")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{running.admin_url}/nothing", timeout=10)
    with pytest.raises(urllib.error.HTTPError, match="413"):
        urllib.request.urlopen(f"{running.admin_url}/nothing", data=bytes(100_000), timeout=10)


# ---- figures -------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_all_workers_together(running: Up, one_each: dict[int, Wire]) -> None:
    before = figures(running)
    for wire in one_each.values():
        for _ in range(10):
            wire.call("PING")
    after = figures(running)
    assert after["ackgate_commands_total"] - before["ackgate_commands_total"] == 10 * WORKERS
    assert after["ackgate_clients_open"] == WORKERS
    assert [after[f'ackgate_worker_clients_open{{worker="{number}"}}'] for number in (1, 2, 3)] == [1, 1, 1]
    assert after["ackgate_workers"] == WORKERS
    assert after["ackgate_ready"] == 1
    assert after["ackgate_slots_covered"] == 16384
    assert after['ackgate_wait_seconds_bucket{command="wait",le="+Inf",result="reached"}'] >= 0


# ---- when one dies -------------------------------------------------------------------------------------------------


def test_one_that_is_killed_is_restarted_and_the_others_notice_nothing(running: Up) -> None:
    with ExitStack() as stack:
        clients = of_each(running, stack)
        for wire in clients.values():
            for _ in range(20):
                wire.call("PING")
        before = figures(running)
        pid = workers(running)[1]["pid"]
        os.kill(pid, signal.SIGKILL)
        assert clients[1].at_eof()
        least = before
        restarted = False
        while not restarted:  # all the time until it is back
            for number in (2, 3):
                assert clients[number].call("SET", f"key:{number}", "1") == b"+OK\r\n"
            with Wire.to(running.redis_url) as anew:
                assert anew.call("PING") == b"+PONG\r\n", "nobody is sent to one that is not there"
            assert get(running, "/readyz")[0] == 200
            now = figures(running)
            assert {name: (least[name], now[name]) for name in least if _counts(name) and now[name] < least[name]} == {}
            least = now
            restarted = all_accept(running)
        again = workers(running)[1]
        assert again["pid"] != pid and again["restarts"] >= 1
        assert figures(running)['ackgate_worker_restarts_total{worker="1"}'] == again["restarts"]
        assert 1 in of_each(running, stack), "it takes clients again"


def _counts(name: str) -> bool:
    return bool(re.match(r"ackgate_\w+_(total|count|sum|bucket)\b", name))


def test_one_that_ends_by_itself_loses_no_figure(running: Up) -> None:
    """Asked to end, it says what it had counted."""
    until(lambda: all_accept(running), "all are there")
    with ExitStack() as stack:
        clients = of_each(running, stack)
        before = figures(running)["ackgate_commands_total"]
        for _ in range(50):
            clients[2].call("PING")
        pid = workers(running)[2]["pid"]
        os.kill(pid, signal.SIGTERM)
        assert clients[2].at_eof()
        until(lambda: workers(running)[2]["pid"] not in (None, pid), "another takes its place")
        assert figures(running)["ackgate_commands_total"] - before >= 50
        until(lambda: all_accept(running), "it accepts clients")


def test_one_that_hangs_is_told_of(running: Up) -> None:
    until(lambda: all_accept(running), "all are there")
    before = figures(running)
    pid = workers(running)[3]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert get(running, "/readyz") == (503, {"ready": False, "reason": "worker 3 does not answer"})
        now = figures(running)
        assert now['ackgate_worker_up{worker="3"}'] == 0
        assert now["ackgate_commands_total"] >= before["ackgate_commands_total"]
        assert get(running, "/topology")[0] == 200
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: get(running, "/readyz")[0] == 200, "it is well again")
    assert figures(running)['ackgate_worker_up{worker="3"}'] == 1


# ---- the end, and what keeps it from beginning ---------------------------------------------------------------------


def test_sigterm_ends_all_of_them_and_is_a_success(tmp_path: Path) -> None:
    with up(tmp_path, *SMALL, "--workers", "2") as running:
        os.kill(workers(running)[2]["pid"], signal.SIGKILL)
        until(lambda: workers(running)[2]["restarts"] == 1 and all_accept(running), "it is there again")
        pids = [*running.pids(), *(row["pid"] for row in workers(running).values())]
        assert len(pids) == 3 and not gone(pids)
        assert running.client().set("k", "v")
        assert running.stop() == 0
        assert gone(pids)
        assert running.process.stdout is not None
        assert running.process.stdout.read() == "", "the ready line is all of standard output"
    told = (tmp_path / "data.err").read_text()
    assert "Traceback" not in told
    assert "worker=1" in told and "worker=2" in told, "each says which it is"
    [line] = [line for line in told.splitlines() if "a worker ended" in line]
    assert "worker=2" in line and "SIGKILL" in line


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    with up(tmp_path, *SMALL, "--workers", "2") as running:
        pids = [*running.pids(), *(row["pid"] for row in workers(running).values())]
        os.kill(workers(running)[1]["pid"], signal.SIGSTOP)
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
        until(lambda: gone(pids), "they die with their parent")


@pytest.mark.parametrize("ours", ["1", "2"])
def test_a_port_that_workers_serve_is_in_use(running: Up, tmp_path: Path, ours: str) -> None:
    assert_in_use(running.redis_url, tmp_path, ours)
    assert running.client().ping()


def test_a_port_that_another_listens_on_is_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert_in_use(f"redis://127.0.0.1:{other.getsockname()[1]}", tmp_path, "2")


def assert_in_use(url: str, tmp_path: Path, workers: str) -> None:
    port = url.rpartition(":")[2]
    config = tmp_path / "proxy.yaml"
    config.write_text(
        f"cluster: {{seeds: ['127.0.0.1:1']}}\nlisten: {{port: {port}}}\nadmin: {{port: 0}}\nworkers: {workers}\n"
    )
    told = ackgate("proxy", "--config", str(config))
    assert (told.returncode, told.stdout) == (1, "")
    [line] = told.stderr.splitlines()
    assert line.startswith(f"ackgate: cannot listen on 127.0.0.1:{port}: Address already in use; stop what uses it")


def test_what_no_worker_can_do_is_one_clear_line(tmp_path: Path) -> None:
    config = tmp_path / "proxy.yaml"
    config.write_text(
        "cluster: {seeds: ['127.0.0.1:1'], password_file: /no/such/file}\n"
        "listen: {port: 0}\nadmin: {port: 0}\nworkers: 2\n"
    )
    told = ackgate("proxy", "--config", str(config))
    assert (told.returncode, told.stdout) == (1, "")
    assert "Traceback" not in told.stderr
    assert "ackgate: /no/such/file:1: password_file: cannot be read" in told.stderr


def test_the_proxy_alone_may_have_workers_and_waits_for_the_cluster(running: Up, tmp_path: Path) -> None:
    config = tmp_path / "proxy.yaml"
    seed = running.topology()["shards"][0]["primary"]["address"]
    config.write_text(f"cluster: {{seeds: ['{seed}']}}\nlisten: {{port: 0}}\nadmin: {{port: 0}}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "proxy", "--config", str(config), "--workers", "2"],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            beside = Up(process, tmp_path / "none")
            assert len(workers(beside)) == 2
            assert beside.client().ping()
            with Wire.to(beside.redis_url) as wire:
                process.send_signal(signal.SIGINT)
                with pytest.raises((Closed, ConnectionError)):
                    wire.receive()
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("word", ["0", "many"])
def test_a_wrong_number_of_workers_is_a_misuse(word: str) -> None:
    told = ackgate("up", f"--workers={word}")
    assert told.returncode == 2
    [line] = told.stderr.splitlines()
    assert "'--workers'" in line and "is not a whole number from 1 to 128, and not auto" in line


def test_auto_is_one_for_each_usable_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import proxy.workers as room

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(room, "_QUOTA", quota)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert room.count("auto") == 6
    quota.write_text("max 100000\n")
    assert room.count("auto") == 6
    quota.write_text("150000 100000\n")
    assert room.count("auto") == 2
    quota.write_text("10000 100000\n")
    assert room.count("auto") == 1
    assert room.count(5) == 5
