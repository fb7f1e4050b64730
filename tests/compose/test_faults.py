"""What clients of the endpoint see when a container, or the way to one, is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

from tests.compose.load import Load
from tests.compose.stack import Stack, docker, inspect, name_of, run
from tests.harness import until

pytestmark = pytest.mark.compose


def pair(stack: Stack) -> tuple[str, str]:
    """Services of the first shard's primary and replica."""
    shard = stack.shards()[0]
    return name_of(shard["primary"]), name_of(shard["replicas"][0])


def leads(stack: Stack, node: str) -> bool:
    return stack.roles().get(node, "").startswith("primary")


@contextmanager
def cut_off(stack: Stack, service: str) -> Iterator[None]:
    """Nothing comes to a container or goes from it, its own loopback aside."""
    namespace = "nsenter", "--target", str(stack.pid(service)), "--net", "iptables"
    run(*namespace, "-I", "INPUT", "!", "-i", "lo", "-j", "DROP")
    run(*namespace, "-I", "OUTPUT", "!", "-o", "lo", "-j", "DROP")
    try:
        yield
    finally:
        run(*namespace, "-D", "INPUT", "!", "-i", "lo", "-j", "DROP")
        run(*namespace, "-D", "OUTPUT", "!", "-o", "lo", "-j", "DROP")


def test_a_killed_primary_is_replaced_by_its_replica_and_comes_back_as_one(whole: Stack) -> None:
    primary, replica = pair(whole)
    container = whole.container(primary)
    restarts = inspect(container)["RestartCount"]
    with Load(whole.client, "killed").running() as writes:
        whole.kill_process(primary)
        until(lambda: leads(whole, replica), "its replica takes over")
        writes.is_served()
        whole.until_whole()
        writes.goes_on()
    assert writes.lost() == []
    assert whole.roles()[primary].startswith("replica")
    assert inspect(container)["RestartCount"] == restarts + 1


def test_a_killed_primary_that_stays_down_is_replaced_too(whole: Stack) -> None:
    primary, replica = pair(whole)
    with Load(whole.client, "down").running() as writes:
        docker("kill", whole.container(primary))  # the restart policy leaves it down
        until(lambda: leads(whole, replica), "its replica takes over")
        writes.is_served()
        whole.compose("start", primary)
        whole.until_whole()
        writes.goes_on()
    assert writes.lost() == []
    assert whole.roles()[primary].startswith("replica")


def test_a_node_that_is_cut_off_is_replaced_and_comes_back_as_a_replica(whole: Stack) -> None:
    primary, replica = pair(whole)
    with Load(whole.client, "cut").running() as writes:
        with cut_off(whole, primary):
            until(lambda: leads(whole, replica), "its replica takes over")
            writes.is_served()
        whole.until_whole()
        writes.goes_on()
    assert writes.lost() == []
    assert whole.roles()[primary].startswith("replica")


@contextmanager
def lost(proxy: str, how: str, back: str) -> Iterator[None]:
    docker(how, proxy)
    try:
        yield
    finally:
        docker(back, proxy)


def test_a_killed_proxy_is_noticed_by_its_own_clients_alone(whole: Stack) -> None:
    killed, other = whole.containers("proxy")
    theirs = whole.address(other)
    with whole.client(theirs, 6379) as client, Load(whole.client, "endpoint").running() as writes:
        before = client.client_id()
        client.set("counted", 0)
        with lost(killed, "kill", "start"):
            for expected in range(1, 501):
                assert client.incr("counted") == expected
            assert client.wait(1, 1000) == 1
            assert client.client_id() == before
            writes.goes_on(200)
    # Its own clients came again through the endpoint: one error each, when their connection ended.
    assert len(writes.errors) <= writes.clients, writes.errors
    assert writes.lost() == []
    until(lambda: whole.targets().count(("ackgate", "up")) == 2, "Prometheus finds the proxy again")


def slowest_greeting(stack: Stack, times: int) -> float:
    """Seconds that the slowest of some new connections took to be served."""
    found = 0.0
    for _ in range(times):
        began = time.monotonic()
        with stack.client() as client:
            assert client.ping()
        found = max(found, time.monotonic() - began)
    return found


def test_new_clients_find_the_proxy_that_is_left(whole: Stack) -> None:
    killed, _ = whole.containers("proxy")
    with lost(killed, "kill", "start"):
        assert slowest_greeting(whole, 100) < 5


def test_a_proxy_that_hangs_is_given_no_new_clients(whole: Stack) -> None:
    hung, other = whole.containers("proxy")
    with Load(whole.client, "hung", clients=6).running() as writes:
        with lost(hung, "pause", "unpause"):
            until(lambda: whole.clients_open(whole.address(other)) >= 3, "the other has its share")
            until(lambda: is_left_out(whole), "the endpoint leaves the proxy that hangs out")
        writes.goes_on(200)
    assert writes.errors == []
    assert writes.lost() == []


def is_left_out(stack: Stack) -> bool:
    """Ten new connections in a row are served at once."""
    try:
        for _ in range(10):
            with stack.client(socket_timeout=0.5) as client:
                client.ping()
    except redis.TimeoutError:
        return False
    return True


def test_the_endpoint_itself_is_back_when_it_was_killed(whole: Stack) -> None:
    with Load(whole.client, "front").running() as writes:
        whole.kill_process("endpoint")
        until(lambda: writes.errors, "clients lose their connections")
        writes.goes_on(100)
    assert writes.lost() == []


def test_a_proxy_that_is_stopped_answers_what_it_was_sent(whole: Stack) -> None:
    stopped, _ = whole.containers("proxy")
    with Load(whole.client, "stopped").running() as writes, lost(stopped, "stop", "start"):
        assert inspect(stopped)["State"]["ExitCode"] == 0
        writes.goes_on(200)
    assert not any("outcome" in error for error in writes.errors), writes.errors
    assert len(writes.errors) <= writes.clients, writes.errors
    assert writes.lost() == []
