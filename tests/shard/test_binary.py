"""Which server program is run, and what is said when none can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from shard.binary import Server, find_server
from shard.errors import ShardError


def program(folder: Path, name: str, says: str, mode: int = 0o755) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(mode)
    return path


def test_the_wheel_serves_where_path_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    server = find_server()
    assert server.engine == "valkey"
    assert server.version >= (9, 0, 0)
    assert str(server).startswith("valkey 9.")


def test_path_goes_before_the_wheel_and_valkey_before_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    redis = program(tmp_path, "redis-server", "Redis server v=7.2.4 sha=00000000:0 malloc=libc bits=64")
    assert find_server() == Server(redis, "redis", (7, 2, 4))
    valkey = program(tmp_path, "valkey-server", "Valkey server v=8.1.0 sha=00000000:0 malloc=libc bits=64")
    assert find_server() == Server(valkey, "valkey", (8, 1, 0))


def test_one_too_old_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    program(tmp_path, "redis-server", "Redis server v=7.0.15 sha=00000000:0")
    assert find_server().engine == "valkey"


def test_a_configured_program_is_taken_or_refused_never_replaced(tmp_path: Path) -> None:
    old = program(tmp_path, "old", "Redis server v=6.2.0 sha=0")
    for configured, words in (
        (str(old), "too old: 7.2 or later"),
        (str(program(tmp_path, "cat", "meow")), "is not a Valkey or Redis server"),
        (str(tmp_path / "missing"), "does not exist"),
        (str(tmp_path), "is a folder"),
        (str(program(tmp_path, "plain", "Valkey server v=9.1.2", mode=0o644)), "chmod"),
    ):
        with pytest.raises(ShardError, match=words) as caught:
            find_server(configured)
        assert "\n" not in str(caught.value)


def test_versions_are_compared_engine_by_engine() -> None:
    valkey = Server(Path("x"), "valkey", (9, 0, 3))
    assert valkey.has(valkey=(9, 0, 0))
    assert not valkey.has(valkey=(9, 1, 0))
    assert not valkey.has(redis=(7, 2, 0))
