"""A part of ``make chaos``: what is done to proxies and the network, which takes a network of the storm's own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.harness import ENVIRONMENT, ROOT
from tests.namespace import why_not

WHY_NOT = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(WHY_NOT is not None, reason=f"no network of one's own: {WHY_NOT}")]

KINDS = (
    "primary cut off",
    "pause of writes",
    "one proxy cut off from a primary",
    "primary cut off from the other nodes alone",
    "pause, and its proxy killed",
    "switchover by a proxy",
    "slow way to a primary",
)


def test_nothing_is_lost_and_no_invariant_broken() -> None:
    only = [word for kind in KINDS for word in ("--only", kind)]
    command = [sys.executable, "-m", "tests.chaos", "--seconds", "1", *only]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    for kind in KINDS:
        assert f"fault, longest stall: {kind} " in done.stdout
