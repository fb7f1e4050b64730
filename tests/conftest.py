"""For all tests: what is compiled must be what stands in the sources."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

PROXY = Path(__file__).parents[1] / "proxy"


def _outdated() -> Iterator[Path]:
    for library in PROXY.rglob("*.so"):
        sources = library.parent.glob(library.name.partition(".")[0] + ".p*")
        if any(source.stat().st_mtime > library.stat().st_mtime for source in sources):
            yield library


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what is started here inherits it; under nohup it would be ignored
    for library in _outdated():
        pytest.exit(f"{library} is older than its source: run make test, or pip install -e .", returncode=3)
