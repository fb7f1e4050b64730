"""One deployment for all tests of this folder; each leaves it whole."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.compose.stack import Stack
from tests.harness import ROOT


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    found = Stack(tmp_path_factory.mktemp("deployment") / "secrets")
    subprocess.run([ROOT / "deploy" / "make-secrets.sh"], env=found.environment, check=True)
    try:
        found.compose("build")
        found.up()
        yield found
    finally:
        found.compose("down", "--volumes", "--timeout", "1", "--remove-orphans")


@pytest.fixture
def whole(stack: Stack) -> Stack:
    """The deployment, with nothing broken in it, not even by a test that failed."""
    if not stack.is_whole():
        stack.up()
        stack.until_whole()
    return stack
