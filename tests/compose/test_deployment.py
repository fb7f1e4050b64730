"""The deployment as it stands: what it lets in, what it shows, and that more of it or another `up` disturbs nobody."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from contextlib import ExitStack

import pytest

from tests.cli.test_readme import tour_blocks
from tests.compose.load import Load
from tests.compose.stack import COMMAND_S, NODES, Stack, docker, inspect
from tests.harness import ROOT, until

pytestmark = pytest.mark.compose

CHAPTER = (ROOT / "README.md").read_text().partition("\n## Run it for real\n")[2].partition("\n## ")[0]


def typed(stack: Stack, block: str) -> str:
    """A block of the README, in this deployment: its ports, its project, this Python."""
    text = "\n".join(line for line in block.splitlines() if "pip install" not in line)
    texts = {
        "6379": str(stack.port),
        "9090": str(stack.prometheus_port),
        ".venv/bin/python": shlex.quote(sys.executable),
        "deploy/secrets": str(stack.secrets),
        "-f deploy/compose.yaml": " ".join(f"-f {shlex.quote(str(file))}" for file in stack.all_files),
        "redis.Redis(": f"redis.Redis(password={stack.password()!r}, ",
    }
    text = re.sub("|".join(map(re.escape, texts)), lambda found: texts[found[0]], text)
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env=stack.environment | {"REDISCLI_AUTH": stack.password()},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_tour_is_true_of_the_published_endpoint(whole: Stack) -> None:
    with whole.client() as client:
        client.flushall()
    first, second, _ = tour_blocks()
    assert typed(whole, first).split() == ["OK", "OK", "Ada", "Grace", "Edsger", "3", "OK", "1", "1", "1"]
    assert typed(whole, second).splitlines() == ["['1', '999']", "1", "[1, 1]"]


def test_the_readme_is_true(whole: Stack) -> None:
    up, use, *_ = re.findall(r"```sh\n(.*?)```", CHAPTER, re.DOTALL)
    before = whole.containers(*NODES)
    typed(whole, up)
    assert whole.containers(*NODES) == before
    answers = typed(whole, use).splitlines()
    assert answers[:4] == ["OK", "1", "1", "1"]
    assert "all slots are served" in answers


def test_a_stranger_is_not_let_in(whole: Stack) -> None:
    result = subprocess.run(
        ["redis-cli", "-p", str(whole.port), "GET", "user:1"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("NOAUTH ")


def test_prometheus_reaches_every_target(whole: Stack) -> None:
    expected = [("ackgate", "up"), ("ackgate", "up"), ("prometheus", "up")]
    until(lambda: whole.targets() == expected, f"the targets are {expected}")
    [sample] = whole.prometheus("/api/v1/query?query=min(ackgate_ready)")["data"]["result"]
    assert sample["value"][1] == "1"


def test_prometheus_keeps_the_rules_and_shows_the_consoles(whole: Stack) -> None:
    groups = whole.prometheus("/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["type"] for rule in rules} == {"alerting", "recording"}
    assert [rule for rule in rules if rule["health"] == "err"] == []
    [shown] = re.findall(r"http://127.0.0.1:9090(/consoles/\S+\.html)", CHAPTER)
    assert "Ackgate" in whole.prometheus(shown)


def test_every_container_is_held_tight(whole: Stack) -> None:
    passwords = [whole.password(of) for of in ("engine", "endpoint", "grafana")]
    published = {}
    for container in whole.containers():
        found = inspect(container)
        host, service = found["HostConfig"], found["Config"]["Labels"]["com.docker.compose.service"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"] and not host["CapAdd"], service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert host["Memory"] and host["PidsLimit"], service
        assert found["Config"]["User"] not in {"", "0", "root"}, service
        networks = {name.rpartition("_")[2] for name in found["NetworkSettings"]["Networks"]}
        ports = [binding for bindings in host["PortBindings"].values() for binding in bindings]
        assert networks == ({"inside", "outside"} if ports else {"inside"}), service
        published |= {service: {port["HostIp"] for port in ports}} if ports else {}
        assert not any(password in str(found) for password in passwords), service
        if found["State"]["Running"]:
            shown = docker("top", container, "-eo", "pid,user,args") + docker("logs", container)
            assert not any(password in shown for password in passwords), service
            assert not re.search(r"^\s*\d+\s+root\s", shown, re.MULTILINE), service
    assert published == {"endpoint": {"127.0.0.1"}, "prometheus": {"127.0.0.1"}}


def test_nothing_inside_reaches_out(whole: Stack) -> None:
    assert docker("network", "inspect", "-f", "{{.Internal}}", f"{whole.project}_inside") == "true"


def test_a_planned_change_of_primaries_is_unnoticed(whole: Stack) -> None:
    replica = whole.shards()[0]["replicas"][0]["address"]
    with Load(whole.client, "planned").running() as writes:
        said = whole.compose("exec", "-T", "proxy", "ackgate", "switchover", replica)
        assert said.startswith(f"{replica} leads shard ")
        writes.goes_on()
    assert writes.errors == []
    assert writes.lost() == []


def test_a_third_proxy_gets_its_share(whole: Stack) -> None:
    before = whole.containers("proxy", *NODES)
    with Load(whole.client, "scaled").running() as writes:
        whole.up("--scale", "proxy=3", "--no-recreate")
        assert set(before) <= set(whole.containers("proxy", *NODES))
        until(lambda: whole.targets().count(("ackgate", "up")) == 3, "Prometheus finds the third proxy")
        until(lambda: serving(whole) == 3, "the endpoint hands connections to three proxies")
        whole.up("--scale", "proxy=2", "--no-recreate")
        writes.goes_on(200)
    assert writes.lost() == []
    assert len(writes.errors) <= 4, writes.errors


def serving(stack: Stack) -> int:
    """Proxies that have a share of nine connections to the endpoint."""
    with ExitStack() as connections:
        for _ in range(9):
            connections.enter_context(stack.client()).ping()
        return sum(stack.clients_open(proxy) > 0 for proxy in stack.proxies())
