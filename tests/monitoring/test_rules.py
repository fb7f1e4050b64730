"""The rules: right by Prometheus' own tools, every alert tried both ways, every figure known and every page written."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.harness import ROOT
from tests.monitoring.conftest import Watched
from tests.monitoring.prometheus import FOLDER, program, rules

CASES = sorted((Path(__file__).parent / "rules").glob("*.test.yml"))


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


@pytest.mark.monitoring
def test_prometheus_takes_the_configuration() -> None:
    command = [program("promtool", "prometheus"), "check", "config", str(FOLDER / "prometheus.yml")]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.monitoring
@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_alerts_fire_when_they_should_and_are_silent_when_not(file: Path) -> None:
    command = [program("promtool", "prometheus"), "test", "rules", str(file)]
    tried = subprocess.run(command, capture_output=True, text=True)
    assert tried.returncode == 0, tried.stdout + tried.stderr


@pytest.mark.parametrize("fires", [True, False], ids=["firing", "silent"])
def test_every_alert_is_tried(fires: bool) -> None:
    tried = {
        each["alertname"]
        for file in CASES
        for case in yaml.safe_load(file.read_text())["tests"]
        for each in case["alert_rule_test"]
        if bool(each["exp_alerts"]) is fires
    }
    assert tried == set(ALERTS)


def test_every_alert_says_what_to_do() -> None:
    runbook = (FOLDER / "RUNBOOK.md").read_text()
    headings = re.findall(r"^### (\w+)$", runbook, re.MULTILINE)
    assert sorted(headings) == sorted(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        first, _, page = rule["annotations"]["runbook"].rpartition(" ")
        assert first and page == f"RUNBOOK.md#{name.lower()}", name
        assert rule["annotations"]["summary"], name


def test_the_runbook_asks_for_what_the_rules_do() -> None:
    """Thresholds and times are told once more there: they must be the same."""
    runbook = (FOLDER / "RUNBOOK.md").read_text()
    for name, rule in ALERTS.items():
        told = re.search(rf"^### {name}\n\n\*(.+)\*$", runbook, re.MULTILINE)
        assert told, f"{name} has no line that tells when it fires"
        severity, _, rest = told[1].partition(", ")
        assert severity == rule["labels"]["severity"], name
        assert rest == (f"after {rule['for']}" if "for" in rule else "at once"), name


@pytest.mark.monitoring
def test_every_figure_that_rules_ask_for_is_there(watched: Watched) -> None:
    asked = " ".join(str(rule["expr"]) for rule in rules())
    names = set(re.findall(r"\b(?:ackgate|process)_\w+", re.sub(r"\w+:\w+:\w+", "", asked)))
    assert {name for name in names if not watched.prometheus.query(f"max_over_time({name}[5m])")} == set()


def test_figures_that_are_recorded_are_used() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    texts = [str(rule["expr"]) for rule in rules()]
    texts += [file.read_text() for file in (ROOT / "deploy").glob("prometheus/consoles/*.html")]
    assert {name for name in recorded if not any(name in text for text in texts)} == set()
