"""Nodes known by host names: whatever their addresses are, and when all of these change."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from tests.harness import ENVIRONMENT, PATIENCE_S, READY, ROOT, until
from tests.shard.containers import Container, Network, containers

NAMED = [sys.executable, str(ROOT / "tests" / "system" / "named.py")]


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """A shard of two and two of one, formed."""
    with containers(tmp_path) as network:
        one, two, three, replica = network.add(4)
        network.start()
        network.form([one, replica], [two], [three])
        yield network


@pytest.fixture
def endpoint(network: Network) -> Iterator[tuple[str, str]]:
    """A proxy that was told two of them by name: its URL and that of its admin endpoint."""
    cluster = {"seeds": [f"node-{n}:{network.port}" for n in (1, 2)], "password_file": str(network.secret)}
    config, errors = network.folder / "proxy.yaml", network.folder / "proxy.err"
    config.write_text(yaml.safe_dump({"cluster": cluster, "listen": {"port": 0}, "admin": {"port": 0}}))
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [*NAMED, "proxy", "--config", str(config)], env=environment(network), stdout=subprocess.PIPE, stderr=stderr
        )
    with process:
        try:
            assert process.stdout is not None
            match = READY.match(process.stdout.readline().decode())
            assert match, errors.read_text()
            yield match[1], match[2]
        finally:
            process.kill()


def environment(network: Network) -> dict[str, str]:
    return {**ENVIRONMENT, "HOSTS": str(network.file)}


def ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def ackgate(network: Network, *words: str) -> str:
    ended = subprocess.run([*NAMED, *words], env=environment(network), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def addresses(shards: list[dict[str, Any]]) -> set[str]:
    return {node["address"] for shard in shards for node in (shard["primary"], *shard["replicas"])}


def test_the_proxy_follows_names_to_new_addresses(network: Network, endpoint: tuple[str, str]) -> None:
    url, admin = endpoint
    names = {f"node-{n}:{network.port}" for n in (1, 2, 3, 4)}
    assert addresses(ask(f"{admin}/topology")["shards"]) == names
    told = ackgate(network, "status", "--json", "--admin", admin, "--password-file", str(network.secret))
    assert addresses(json.loads(told)["shards"]) == names

    with redis.Redis.from_url(url, decode_responses=True) as client:
        keys = {f"key:{number}": str(number) for number in range(100)}
        client.mset(keys)
        traced = ackgate(network, "trace", "--json", "--wait", "1", "--url", url, "--admin", admin, "SET", "{06S}", "x")
        [replica] = json.loads(traced)["replicas"]
        assert replica["address"] == f"node-4:{network.port}"
        assert replica["acknowledged_ms"] is not None

        before = network.picture()
        network.stop()
        network.place(dict(zip(network.hosts, network.new_addresses(4), strict=True)))
        network.start()
        until(lambda: served(url), "the shards are served again")
        assert client.mget(list(keys)) == list(keys.values())
    until(lambda: addresses(ask(f"{admin}/topology")["shards"]) == names, "the same names")
    assert network.picture() == before
    ackgate(network, "switchover", f"node-1:{network.port}", "--to", f"node-4:{network.port}", "--admin", admin)
    leader = next(shard["primary"] for shard in ask(f"{admin}/topology")["shards"] if [0, 5460] in shard["slots"])
    assert leader["address"] == f"node-4:{network.port}"


@pytest.mark.slow
def test_a_stopped_node_whose_name_is_gone_is_replaced_as_fast(network: Network, endpoint: tuple[str, str]) -> None:
    url, _ = endpoint
    dead, _, _, replica = network.containers
    with redis.Redis.from_url(url, decode_responses=True, socket_timeout=PATIENCE_S) as client:
        for turn in range(3):  # look-ups that are not answered add up
            client.set("{06S}", turn)
            assert dead.call("WAIT", 1, 5000) == 1
            network.publish({name: address for name, address in network.hosts.items() if name != dead.name})
            dead.kill()
            assert client.set("{06S}", f"again {turn}")  # within timeouts.hold
            network.publish(network.hosts)
            dead.start()
            until(partial(follows, dead), "it is back")
            dead, replica = replica, dead


def follows(node: Container) -> bool:
    return node.role() == "slave" and bool(node.call("ROLE")[3] == "connected")


def served(url: str) -> bool:
    """A write on every shard, and a replica's acknowledgment of one, on a new connection."""
    with redis.Redis.from_url(url, socket_timeout=PATIENCE_S, single_connection_client=True) as client:
        try:
            return bool(client.mset({"{06S}a": 1, "b": 2, "c": 3, "a": 4}) and client.execute_command("PING"))
        except redis.RedisError:
            return False
