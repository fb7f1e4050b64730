"""Real nodes for the tests of ``shard``: each test its own, but for those that only look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from shard.settings import ClusterSettings

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0
"""Seconds after which a condition that should come about is held for one that never will."""


@pytest.fixture
def quick() -> Callable[..., ClusterSettings]:
    """Settings with a short node timeout, so that failovers do not take the suite's time."""

    def settings(**changes: Any) -> ClusterSettings:
        return ClusterSettings(**{"node_timeout_ms": 1000, **changes})

    return settings


@pytest.fixture
def until() -> Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]:
    """Wait until an async condition holds; fail when it never does."""

    async def wait(condition: Callable[[], Awaitable[object]]) -> None:
        with trio.fail_after(PATIENCE):
            while not await condition():  # noqa: ASYNC110 -- processes set no trio.Event
                await trio.sleep(0.02)

    return wait


@pytest.fixture
def supervisor() -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], list[dict[str, Any]]]]]:
    """Start a cluster in a process of its own: returns the process and, once it is ready, its nodes."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(directory: Path, **settings: Any) -> tuple[subprocess.Popen[bytes], list[dict[str, Any]]]:
        process = _supervise(directory, settings)
        processes.append(process)
        return process, _nodes(process)

    yield start
    for process in processes:
        _end(process)


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[str, int]]]:
    """Addresses of a formed cluster of 3 + 3 that lives as long as the session; tests must not harm it."""
    process = _supervise(tmp_path_factory.mktemp("standing"), {"node_timeout_ms": 1000})
    try:
        yield [(node["host"], node["port"]) for node in _nodes(process)]
    finally:
        _end(process)


def _supervise(directory: Path, settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    program = Path(__file__).with_name("supervisor.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command: list[str | Path] = [sys.executable, program, directory, json.dumps({"node_timeout_ms": 1000, **settings})]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)


def _nodes(process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the supervisor ended without a word"
    nodes: list[dict[str, Any]] = json.loads(line)
    return nodes


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
