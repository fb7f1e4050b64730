"""A pytest plugin for other people's suites: one line of JSON for each test, and a plain client even on a cluster.

It lives in a folder of its own because those suites are packages called ``tests`` as well.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

RANK = {"passed": 0, "skipped": 1, "failed": 2}
OUT = open(os.environ["ACKGATE_RECORD"], "w", buffering=1)  # noqa: SIM115 -- open as long as the process lives
_outcomes: dict[str, str] = {}
_reasons: dict[str, str] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """The suites ask INFO whether to use their client for clusters: here it is always the plain one that is tested."""
    for name, module in list(sys.modules.items()):
        ask = getattr(module, "_get_info", None)
        if ask is not None and name.rpartition(".")[2] == "conftest":
            module._get_info = _plain(ask)  # type: ignore[attr-defined]


def _plain(ask: Any) -> Any:
    def answer(url: str) -> dict[str, Any]:
        return {**ask(url), "cluster_enabled": 0}

    return answer


def pytest_collection_finish(session: pytest.Session) -> None:
    OUT.write(json.dumps({"collected": len(session.items)}) + "\n")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """The worst of set-up, call and tear-down is the test's outcome."""
    before = _outcomes.setdefault(report.nodeid, "passed")
    if RANK[report.outcome] > RANK[before]:
        _outcomes[report.nodeid] = report.outcome
        _reasons[report.nodeid] = _reason(report)
    if report.when == "teardown":
        outcome, reason = _outcomes[report.nodeid], _reasons.get(report.nodeid, "")
        OUT.write(json.dumps({"test": report.nodeid, "outcome": outcome, "reason": reason}) + "\n")


def _reason(report: pytest.TestReport) -> str:
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longrepr)[:400]
