"""``ackgate drill --partition``: a primary is cut off from everybody, and can be reached again whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.commands.breaking import broken
from proxy.commands.packetfilter import Socket, everything_of, sockets_of
from tests.cli.test_errors import one_line
from tests.harness import ROOT, ackgate, up
from tests.namespace import inside, why_not
from tests.system.nodes import shards_of

WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=f"no network of one's own: {WHY_NOT}")


def in_a_network_of_its_own(*command: str) -> str:
    """What the command says; it must end well."""
    done = subprocess.run(inside(*command), capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cluster_with(folder: Path, *job: str) -> dict[str, Any]:
    """What a function of this file, run beside a cluster in a network of its own, told."""
    config = folder / "test.yaml"
    config.write_text("cluster: {node_timeout_ms: 1000}\n")
    ports = ("--port", "0", "--admin-port", "0")
    run = (sys.executable, "-m", "proxy", "up", *ports, "--config", str(config), "--", sys.executable, "-c")
    told = in_a_network_of_its_own(*run, f"from tests.cli.test_partition import *; {'; '.join(job)}")
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


def test_a_primary_that_is_cut_off_is_followed_and_comes_back_and_nothing_confirmed_is_lost(tmp_path: Path) -> None:
    told = cluster_with(tmp_path, "drill_and_look()")
    drill = told["drill"]
    mine, others = drill["clients"]
    assert (drill["how"], drill["whole"]) == ("partition", True)
    assert mine["confirmed"] > 0 and mine["lost"] == 0
    assert others["writes"] > 0 and others["errors"] == {}, "the other shards were left alone"
    events = [event["what"] for event in drill["events"]]
    assert events[0].startswith(f"primary {told['address']} cut off") and events[1] == f"{told['replica']} leads"
    assert f"{told['address']} can be reached again" in events and events[-1] == "every node is up"
    assert told["role"] == "slave", "the one that was cut off follows now"
    assert "DROP" not in told["rules"] and "ACKGATE" not in told["rules"]
    assert told["halted"] == {"dropped": True, "mended": True}


def drill_and_look() -> None:
    """Runs in the network of its own, beside its cluster."""
    topology = json.loads(ackgate("status", "--json").stdout)
    row = topology["shards"][0]
    address, replica = row["primary"]["address"], row["replicas"][0]["address"]
    halted = _killed_in_the_middle(row["primary"]["pid"], address)
    done = ackgate("drill", address, "--partition", "--json", "--seconds", "3")
    assert done.returncode == 0, done.stderr
    status = json.loads(ackgate("status", "--json").stdout)
    primaries = [shard["primary"]["address"] for shard in status["shards"]]
    told = {"drill": json.loads(done.stdout), "address": address, "replica": replica, "rules": rules()}
    print(json.dumps(told | {"halted": halted, "role": "master" if address in primaries else "slave"}))


def _killed_in_the_middle(pid: int, address: str) -> dict[str, bool]:
    """A drill that ends by SIGKILL as soon as packets are dropped: too soon for anybody to be elected."""
    child = os.fork()
    if child == 0:
        with broken(pid, address, "partition"):
            os.kill(os.getpid(), signal.SIGKILL if "DROP" in rules() else signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    return {"dropped": os.WTERMSIG(status) == signal.SIGKILL, "mended": _soon(lambda: "ACKGATE" not in rules())}


def _soon(condition: Any) -> bool:
    async def look() -> bool:
        with trio.move_on_after(20):
            while not condition():  # noqa: ASYNC110 -- the packet filter tells nobody
                await trio.sleep(0.02)
            return True
        return False

    return trio.run(look)


def rules() -> str:
    return subprocess.run(["iptables", "-S"], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def node(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that could be a node."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def state(process: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_halted_node_goes_on_even_when_the_drill_is_killed(node: subprocess.Popen[bytes]) -> None:
    child = os.fork()
    if child == 0:
        with broken(node.pid, "127.0.0.1:1", "stop"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert _soon(lambda: state(node) != "T")
    with broken(node.pid, "127.0.0.1:1", "stop"):
        assert _soon(lambda: state(node) == "T")
    assert _soon(lambda: state(node) != "T")


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to enter another network")
def test_a_node_in_a_container_is_cut_off_in_the_network_that_it_is_in() -> None:
    serving = "import socket, time; s = socket.create_server(('127.0.0.1', 7)); print('up', flush=True); time.sleep(60)"
    with subprocess.Popen(inside(sys.executable, "-c", serving), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        there = ("nsenter", f"--net=/proc/{process.pid}/ns/net", "iptables", "-S")
        try:
            with broken(process.pid, "127.0.0.1:7", "partition"):
                dropped = subprocess.run(there, capture_output=True, text=True, check=True).stdout
                assert "ACKGATE" not in rules(), "our own is left alone"
            after = subprocess.run(there, capture_output=True, text=True, check=True).stdout
        finally:
            process.kill()
    assert "--dport 7 " in dropped and "ackgate drill: 127.0.0.1:7 is cut off" in dropped
    assert "ACKGATE" not in after


def test_the_sockets_of_a_process_are_seen_and_all_their_packets_meant() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("::1", 0), family=10) as six:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as made:
            mine, out = sockets_of(os.getpid()), made.getsockname()[1]
            assert Socket(4, "127.0.0.1", port, None) in mine
            assert Socket(6, "::1", six.getsockname()[1], None) in mine
            assert Socket(4, "127.0.0.1", out, ("127.0.0.1", port)) in mine
            told = [" ".join(rule.words) for rule in everything_of(mine)]
    assert f"-m addrtype --dst-type LOCAL --dport {port}" in told
    assert f"-m addrtype --src-type LOCAL --sport {port}" in told
    assert f"-s 127.0.0.1 --sport {out} -d 127.0.0.1 --dport {port}" in told
    assert f"-s 127.0.0.1 --sport {port} -d 127.0.0.1 --dport {out}" in told
    assert f"--syn -s 127.0.0.1 -d 127.0.0.1 --dport {port}" in told


@pytest.mark.slow
def test_who_may_not_drop_packets_is_told_so_in_one_line_and_nothing_is_broken(tmp_path: Path) -> None:
    with up(tmp_path, "--port", "0", "--admin-port", "0", "--shards", "3") as running:
        ask = ("drill", shards_of(running)[0].primary.id[:10], "--admin", running.admin_url, "--partition")
        ask = (*ask[:1], f"127.0.0.1:{shards_of(running)[0].primary.port}", *ask[2:])
        tools = tmp_path / "tools"
        tools.mkdir()
        (tools / "sh").symlink_to(shutil.which("sh") or "/bin/sh")
        without = ackgate(*ask, env={"PATH": str(tools)})
        assert "which is not installed; install it" in one_line(without)
        refusing = tools / "iptables"
        refusing.write_text("#!/bin/sh\necho 'iptables: Permission denied (you must be root)' >&2; exit 4\n")
        refusing.chmod(0o755)
        assert "iptables refuses: iptables: Permission denied" in one_line(ackgate(*ask, env={"PATH": str(tools)}))
        with running.client() as client:
            assert client.set("key", "value")
