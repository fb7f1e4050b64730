"""``ackgate`` run as a user runs it, for the tests that look at it from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from shard.layout import PortReservation, create_layout
from shard.settings import ClusterSettings

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
READY = re.compile(r"^ready (redis://127\.0\.0\.1:\d+) admin (http://127\.0\.0\.1:\d+)\n$")
SMALL = ("--shards", "1", "--replicas", "0", "--port", "0", "--admin-port", "0")
PATIENCE_S = 60


def until(condition: Callable[[], Any], what: str) -> Any:
    """Polls ``condition`` until it holds and returns its value."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE_S} s: {what}")


class Up:
    """A running ``ackgate up`` that has printed its ready line."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        assert process.stdout is not None
        self.process = process
        self.line = process.stdout.readline()
        match = READY.match(self.line)
        assert match, f"{self.line!r}\n{errors.read_text()}"
        self.redis_url, self.admin_url = match.groups()

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.redis_url, decode_responses=True)

    def topology(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.admin_url}/topology", timeout=10) as answer:
            topology = json.load(answer)
        assert isinstance(topology, dict)
        return topology

    def pids(self) -> list[int]:
        return [node["pid"] for shard in self.topology()["shards"] for node in [shard["primary"], *shard["replicas"]]]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@contextmanager
def up(tmp_path: Path, *args: str, name: str = "data") -> Iterator[Up]:
    errors = tmp_path / f"{name}.err"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "up", *args, "--dir", str(tmp_path / name)],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    with process:
        try:
            yield Up(process, errors)
        finally:
            with suppress(ProcessLookupError):
                process.kill()  # the nodes die with it, as a test below proves


def gone(pids: list[int]) -> bool:
    return not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ackgate(*args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", *args],
        env=ENVIRONMENT | more.pop("env", {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        **more,
    )


def free_port() -> int:
    """A port whose bus port is free, too, below those that the system gives to outgoing connections."""
    reservation = PortReservation()
    try:
        return create_layout(ClusterSettings(shards=1, replicas=0), reservation).nodes[0].port
    finally:
        reservation.release()
