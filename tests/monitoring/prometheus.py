"""A real Prometheus with the project's own configuration, rules and consoles, on a free port of loopback.

Of ``deploy/prometheus`` everything is taken as it stands, but for what a test cannot wait for or have: it scrapes the
addresses it is given instead of a name, every second, and alerts need not last as long (``for``).
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness import ROOT, until

FOLDER = ROOT / "deploy" / "prometheus"
INTERVAL_S = 1


def program(name: str, package: str) -> str:
    """The path of a program that these tests cannot do without."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: apt-get install --no-install-recommends {package}", pytrace=False)
    return found


def rules() -> list[dict[str, Any]]:
    """The rules as they are shipped, of all files."""
    return [
        rule
        for file in sorted((FOLDER / "rules").glob("*.yml"))
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]


class Prometheus:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: str | float) -> Any:
        """What the API answers. Raises AssertionError with its words when it refuses."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {json.load(error)['error']}") from None

    def query(self, expr: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=expr)["result"]
        return found

    def range(self, expr: str, start: float, end: float) -> list[dict[str, Any]]:
        answer = self.get("query_range", query=expr, start=start, end=end, step=INTERVAL_S)
        found: list[dict[str, Any]] = answer["result"]
        return found

    def firing(self) -> list[dict[str, Any]]:
        """The alerts that fire."""
        return [each for each in self.get("alerts")["alerts"] if each["state"] == "firing"]


@contextmanager
def prometheus(folder: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """Runs one that scrapes the admin endpoints ``targets`` (``http://host:port``)."""
    folder.mkdir()
    binary = program("prometheus", "prometheus")
    rules = folder / "rules"
    rules.mkdir()
    for file in (FOLDER / "rules").glob("*.yml"):
        (rules / file.name).write_text(re.sub(r"for: \w+", f"for: {2 * INTERVAL_S}s", file.read_text()))
    configuration = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    configuration["global"] |= {"scrape_interval": f"{INTERVAL_S}s", "evaluation_interval": f"{INTERVAL_S}s"}
    configuration["global"]["scrape_timeout"] = f"{INTERVAL_S}s"
    configuration["scrape_configs"] = [
        {"job_name": "ackgate", "static_configs": [{"targets": [target.removeprefix("http://") for target in targets]}]}
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                f"--web.console.templates={FOLDER / 'consoles'}",
                f"--web.console.libraries={FOLDER / 'console_libraries'}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        until(lambda: process.poll() is not None or _ready(port), "Prometheus is ready")
        assert process.poll() is None, (folder / "log").read_text()
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(30)


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
