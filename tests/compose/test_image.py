"""The image: what is in it, how soon it serves, and that it fronts a cluster it knows nothing of."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
import redis

from tests.compose.stack import Stack, docker, inspect
from tests.harness import ENVIRONMENT, until

pytestmark = pytest.mark.compose

READY_S = 2.0
MOST_BYTES = 200e6
COMPILERS = ("cc", "gcc", "c++", "g++", "clang", "ld", "make", "cython", "pip")
PLAIN = """
cluster: {seeds: ["SEED"]}
listen: {port: 0}
admin: {port: 0}
"""


@pytest.fixture(scope="module")
def image(stack: Stack) -> str:
    return stack.environment["ACKGATE_IMAGE"]


def in_image(image: str, *command: str) -> str:
    return docker("run", "--rm", "--network", "none", "--entrypoint", command[0], image, *command[1:])


def test_it_holds_the_compiled_code_and_no_compiler(image: str) -> None:
    assert "codec cython, data plane cython" in in_image(image, "ackgate", "--version")
    search = 'for name; do command -v "$name"; done; true'
    assert in_image(image, "sh", "-c", search, "sh", *COMPILERS) == ""


def test_it_adds_less_than_200_mb_to_its_base(image: str) -> None:
    base = os.environ.get("BASE_IMAGE", "python:3.13-slim")
    size, below = (int(docker("image", "inspect", "-f", "{{.Size}}", each)) for each in (image, base))
    assert size - below < MOST_BYTES


def test_it_does_not_run_as_root(image: str) -> None:
    assert in_image(image, "id", "-u") == "10001"
    assert in_image(image, "sh", "-c", "find /opt/ackgate -writable | head") == ""


def test_its_health_check_says_why(image: str) -> None:
    refused = subprocess.run(
        ["docker", "run", "--rm", "--entrypoint", "python3", image, "-ISE", "/opt/ackgate/bin/healthy.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("the admin port of the proxy does not answer: ")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a node of a cluster on this machine, which no container belongs to."""
    folder = tmp_path_factory.mktemp("cluster")
    command = [sys.executable, "-m", "proxy", "shard", "start", "--shards", "3", "--dir", str(folder / "data")]
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    with process:
        try:
            line = process.stdout.readline()
            assert line.startswith("ready "), (folder / "errors").read_text()
            yield line.split()[1]
        finally:
            process.send_signal(signal.SIGTERM)


@contextmanager
def proxy_in_front_of(seed: str, image: str, folder: Path) -> Iterator[str]:
    """The image's container on this machine's own network."""
    file = folder / "proxy.yaml"
    file.write_text(PLAIN.replace("SEED", seed))
    hardened = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    place = ["--network", "host", "--volume", f"{file}:/etc/ackgate/proxy.yaml:ro"]
    container = docker("run", "--detach", *hardened, *place, image)
    try:
        yield container
    finally:
        docker("rm", "--force", container)


def ready_line(container: str) -> tuple[str, str] | None:
    found = re.search(r"^ready (\S+) admin (\S+)$", docker("logs", container), re.MULTILINE)
    return (found[1], found[2]) if found else None


def test_it_fronts_any_cluster(image: str, cluster: str, tmp_path: Path) -> None:
    with proxy_in_front_of(cluster, image, tmp_path) as container:
        url, admin = until(lambda: ready_line(container), "the proxy is ready")
        with redis.Redis.from_url(url, decode_responses=True, single_connection_client=True) as client:
            client.mset({f"order:{number}": number for number in range(100)})
            assert client.dbsize() == 100
            assert client.wait(1, 1000) == 1
            assert client.waitaof(1, 1, 1000) == [1, 1]
        port = admin.rpartition(":")[2]
        assert docker("exec", container, "python3", "-ISE", "/opt/ackgate/bin/healthy.py", port) == ""
        docker("stop", "--time", "5", container)
        assert inspect(container)["State"]["ExitCode"] == 0


def moment(text: str) -> float:
    """Seconds of what Docker writes: RFC 3339 with nanoseconds, in UTC."""
    return datetime.fromisoformat(text[:26].rstrip("Z") + "+00:00").timestamp()


def waited(pid: int) -> float:
    """Seconds that a process was ready to run and had no CPU, since others had it."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def test_it_serves_within_two_seconds(image: str, cluster: str, tmp_path: Path) -> None:
    """Of its own time: what else this machine does meanwhile is not the image's."""

    def start() -> float:
        with proxy_in_front_of(cluster, image, tmp_path) as container:
            until(lambda: ready_line(container), "the proxy is ready")
            state = inspect(container)["State"]
            lines = docker("logs", "--timestamps", container).splitlines()
            [ready] = [line.split()[0] for line in lines if " ready redis:" in line]
            return moment(ready) - moment(state["StartedAt"]) - waited(state["Pid"])

    times = [start() for _ in range(3)]
    assert min(times) < READY_S, times
