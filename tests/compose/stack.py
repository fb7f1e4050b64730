"""deploy/compose.yaml run as a user runs it, under a project name, ports and passwords of its own.

Images come from the environment as in compose.yaml (VALKEY_IMAGE, PROM_IMAGE, BASE_IMAGE, HAPROXY_IMAGE), so that
others can stand in where those cannot be pulled. Grafana is left out: it has nothing to do with what is tested.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import redis

from tests.harness import ROOT, until

COMPOSE_FILE = ROOT / "deploy" / "compose.yaml"
NODES = tuple(f"node-{number}" for number in range(1, 7))
HAPROXY_STAND_IN = "localhost/ackgate-test-haproxy"
COMMAND_S = 300
Shards = list[dict[str, Any]]


def run(*command: str, **more: Any) -> str:
    """The standard output of a command that must succeed."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False, **more)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"
    return result.stdout.strip()


def docker(*arguments: str) -> str:
    return run("docker", *arguments)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def writable_folder(image: str, *candidates: str) -> str:
    """The first of the folders that an image has: its own one for data."""
    script = 'for folder; do [ ! -d "$folder" ] || { echo "$folder"; exit; }; done'
    return docker("run", "--rm", "--entrypoint", "sh", image, "-c", script, "sh", *candidates)


def inspect(container: str) -> dict[str, Any]:
    [found] = json.loads(docker("inspect", container))
    assert isinstance(found, dict)
    return found


class Stack:
    """A running deployment. ``files`` are compose files beside the project's own."""

    def __init__(self, secrets: Path) -> None:
        self.project = f"ackgate-test-{os.getpid()}"
        self.port = free_port()
        self.prometheus_port = free_port()
        self.secrets = secrets
        self.files: list[Path] = []
        self.environment = os.environ | {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_PROFILES": "",
            "ACKGATE_IMAGE": "localhost/ackgate-test",
            "PORT": str(self.port),
            "PROM_PORT": str(self.prometheus_port),
            "SECRETS": str(secrets),
        }
        if "BASE_IMAGE" in os.environ and "HAPROXY_IMAGE" not in os.environ:
            self._stand_in_for_haproxy(os.environ["BASE_IMAGE"])
        if "VALKEY_IMAGE" in os.environ:
            self.environment["NODE_DIR"] = writable_folder(os.environ["VALKEY_IMAGE"], "/data", "/var/lib/valkey")
        if "PROM_IMAGE" in os.environ:
            folders = "/prometheus", "/var/lib/prometheus/metrics2"
            self.environment["PROM_DIR"] = writable_folder(os.environ["PROM_IMAGE"], *folders)

    def _stand_in_for_haproxy(self, base: str) -> None:
        folder = ROOT / "tests" / "compose"
        file = str(folder / "haproxy.Dockerfile")
        docker("build", "-q", "-t", HAPROXY_STAND_IN, "--build-arg", f"BASE_IMAGE={base}", "-f", file, str(folder))
        self.environment["HAPROXY_IMAGE"] = HAPROXY_STAND_IN

    @property
    def all_files(self) -> list[Path]:
        return [COMPOSE_FILE, *self.files]

    # -- docker compose ---------------------------------------------------------------------------------
    def compose(self, *arguments: str) -> str:
        files = [word for file in self.all_files for word in ("-f", str(file))]
        return run("docker", "compose", *files, *arguments, env=self.environment)

    def up(self, *arguments: str) -> str:
        return self.compose("up", "--detach", "--wait", "--wait-timeout", "180", *arguments)

    def containers(self, *services: str) -> list[str]:
        return self.compose("ps", "--all", "--quiet", *services).split()

    def container(self, service: str) -> str:
        [found] = self.containers(service)
        return found

    def pid(self, service: str) -> int:
        """Of the first process of a service's only container, as this machine counts."""
        return int(inspect(self.container(service))["State"]["Pid"])

    def kill_process(self, service: str) -> None:
        os.kill(self.pid(service), signal.SIGKILL)

    def address(self, container: str) -> str:
        """On the network of the nodes; it can be reached from this machine."""
        return str(inspect(container)["NetworkSettings"]["Networks"][f"{self.project}_inside"]["IPAddress"])

    def addresses(self) -> dict[str, str]:
        return {node: self.address(self.container(node)) for node in NODES}

    # -- what runs in it --------------------------------------------------------------------------------
    def password(self, of: str = "endpoint") -> str:
        return (self.secrets / f"{of}_password").read_text().splitlines()[0]

    def client(self, host: str = "127.0.0.1", port: int | None = None, **more: Any) -> redis.Redis:
        """An ordinary client of the endpoint, or of one proxy.

        It repeats nothing by itself: a WAIT on a new connection would be about nothing.
        """
        usual: dict[str, Any] = {"decode_responses": True, "socket_timeout": 30, "single_connection_client": True}
        usual["retry"] = None
        place = {"host": host, "port": self.port if port is None else port, "password": self.password()}
        return redis.Redis(**place, **(usual | more))

    def proxies(self) -> list[str]:
        """Addresses of those that run."""
        return [self.address(each) for each in self.compose("ps", "--quiet", "proxy").split()]

    def clients_open(self, proxy: str) -> int:
        """Connections that a proxy has, by its own count."""
        with urllib.request.urlopen(f"http://{proxy}:9121/metrics", timeout=10) as answer:
            found = re.search(r"^ackgate_clients_open (\d+)", answer.read().decode(), re.MULTILINE)
        assert found
        return int(found[1])

    def topology(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{self.proxies()[0]}:9121/topology", timeout=10) as answer:
            found = json.load(answer)
        assert isinstance(found, dict)
        return found

    def shards(self) -> Shards:
        found: Shards = self.topology()["shards"]
        return found

    def roles(self) -> dict[str, str]:
        """``{"node-1": "primary of 0-5460", "node-4": "replica of 0-5460", ...}``."""
        found = {}
        for shard in self.shards():
            slots = ",".join(f"{first}-{last}" for first, last in shard["slots"])
            if shard["primary"]:
                found[name_of(shard["primary"])] = f"primary of {slots}"
            found |= {name_of(replica): f"replica of {slots}" for replica in shard["replicas"]}
        return found

    def is_healthy(self) -> bool:
        """Every container runs and says that it is well, but the one that has done its work."""
        states = [inspect(each)["State"] for each in self.containers()]
        return all(state["Health"]["Status"] == "healthy" for state in states if "Health" in state)

    def is_whole(self) -> bool:
        """All containers are well, every shard has a primary and a replica, which answer and follow."""
        if not self.is_healthy():
            return False
        if sorted(role.split()[0] for role in self.roles().values()) != ["primary"] * 3 + ["replica"] * 3:
            return False
        nodes = [node for shard in self.shards() for node in (shard["primary"], *shard["replicas"])]
        return all(node["health"] == "online" for node in nodes) and self._follows()

    def _follows(self) -> bool:
        """A replica of every shard has everything: with a write on each of them, WAIT says 1."""
        try:
            with self.client() as client:
                for number in range(30):
                    client.set(f"whole:{number}", "yes")
                return client.wait(1, 500) == 1
        except redis.RedisError:
            return False

    def until_whole(self) -> None:
        until(self.is_whole, "every shard has a primary and a replica that follows")

    # -- Prometheus -------------------------------------------------------------------------------------
    def prometheus(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.prometheus_port}{path}", timeout=10) as answer:
            body = answer.read()
        return json.loads(body) if path.startswith("/api/") else body.decode()

    def targets(self) -> list[tuple[str, str]]:
        """(job, health) of each."""
        active = self.prometheus("/api/v1/targets?state=active")["data"]["activeTargets"]
        return sorted((each["labels"]["job"], each["health"]) for each in active)


def name_of(node: dict[str, Any]) -> str:
    """The service of a node of /topology."""
    return str(node["address"].partition(":")[0])
