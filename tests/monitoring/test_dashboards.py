"""The dashboards as they are shipped: well formed, up to date, and every query of every panel answered with data."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.dashboards.__main__ import files
from tests.harness import ROOT
from tests.monitoring.conftest import Watched
from tests.monitoring.prometheus import INTERVAL_S, rules

GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARDS = {file.stem: json.loads(file.read_text()) for file in sorted((GRAFANA / "dashboards").glob("*.json"))}
NAMES = sorted(DASHBOARDS)
KNOWN = {"row", "text", "timeseries", "stat", "table", "state-timeline", "heatmap"}
UNITS = {"short", "ops", "s", "bytes", "Bps", "percentunit", "bool_yes_no"}
COLOURS = re.compile(r"^((light-|dark-|semi-dark-)?(green|yellow|orange|red|blue|purple)|gray|transparent)$")
WINDOW = f"{8 * INTERVAL_S}s"


def panels(name: str, kinds: set[str] = KNOWN - {"row", "text"}) -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARDS[name]["panels"] if panel["type"] in kinds]


def expressions(name: str) -> Iterator[tuple[str, str, bool]]:
    """(panel, PromQL, whether it is asked for one moment) of all that a dashboard asks."""
    for panel in panels(name):
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["instant"]
    for mark in DASHBOARDS[name]["annotations"]["list"]:
        yield mark["name"], mark["expr"], False


def asked(expr: str, span: float) -> str:
    """The expression as Grafana sends it, everything being chosen."""
    for variable in ("proxy", "shard", "command"):
        expr = expr.replace(f"${variable}", ".*")
    return expr.replace("$__rate_interval", WINDOW).replace("$__range", f"{int(span)}s")


def test_what_is_shipped_is_what_is_written_for() -> None:
    stale = [str(file.relative_to(ROOT)) for file, text in files().items() if file.read_text() != text]
    assert not stale, f"{stale}: write them anew with make dashboards"
    assert set(files()) >= set((GRAFANA / "dashboards").glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_is_well_formed(name: str) -> None:
    board = DASHBOARDS[name]
    assert board["uid"] == f"ackgate-{name}" and len(board["uid"]) <= 40
    assert board["title"].startswith("Ackgate: ") and board["tags"] == ["ackgate"]
    assert board["schemaVersion"] >= 39 and board["refresh"] and board["description"]
    assert {panel["type"] for panel in board["panels"]} <= KNOWN
    counted = Counter(panel["id"] for panel in board["panels"])
    assert max(counted.values()) == 1
    titles = Counter(panel["title"] for panel in board["panels"])
    assert [title for title, count in titles.items() if count > 1 or not title] == []


@pytest.mark.parametrize("name", NAMES)
def test_panels_lie_beside_each_other_and_within_the_page(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARDS[name]["panels"]:
        at = panel["gridPos"]
        assert at["x"] >= 0 and at["x"] + at["w"] <= 24 and at["w"] > 0 and at["h"] > 0, panel["title"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_says_what_it_shows_and_in_which_unit(name: str) -> None:
    for panel in panels(name):
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"] in UNITS, panel["title"]
        assert panel["description"], panel["title"]
        steps = defaults["thresholds"]["steps"]
        assert steps[0]["value"] is None and all(step["value"] is not None for step in steps[1:]), panel["title"]
        assert [step["value"] for step in steps[1:]] == sorted(step["value"] for step in steps[1:]), panel["title"]
        used = [step["color"] for step in steps]
        used += [each["value"]["fixedColor"] for each in properties(panel) if each["id"] == "color"]
        assert [colour for colour in used if not COLOURS.match(colour)] == [], panel["title"]


def properties(panel: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for override in panel["fieldConfig"]["overrides"] for each in override["properties"]]


@pytest.mark.parametrize("name", NAMES)
def test_whatever_asks_names_the_chosen_data_source(name: str) -> None:
    board = DASHBOARDS[name]
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels(name):
        assert panel["datasource"] == source, panel["title"]
        assert all(target["datasource"] == source for target in panel["targets"]), panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters) > 0, panel["title"]
    first, *others = board["templating"]["list"]
    assert first["name"] == "datasource" and first["query"] == "prometheus"
    assert all(each["datasource"] == source for each in (*others, *board["annotations"]["list"]))
    assert [each["name"] for each in board["annotations"]["list"]] == ["Failover", "Switchover", "Pause"]


@pytest.mark.parametrize("name", NAMES)
def test_variables_that_are_asked_with_exist_and_all_of_them_are(name: str) -> None:
    known = {each["name"] for each in DASHBOARDS[name]["templating"]["list"]} - {"datasource"}
    texts = " ".join(target["expr"] for panel in panels(name) for target in panel["targets"])
    asked_with = set(re.findall(r"\$(\w+)", texts)) - {"__rate_interval", "__range"}
    assert asked_with == known


@pytest.mark.parametrize("name", NAMES)
def test_columns_of_tables_are_of_their_queries(name: str) -> None:
    for panel in panels(name, {"table"}):
        letters = {f"Value #{target['refId']}" for target in panel["targets"]}
        kept, renamed = panel["transformations"][1]["options"], panel["transformations"][2]["options"]
        names = kept["include"]["names"]
        assert {each for each in names if each.startswith("Value")} <= letters
        heads = renamed["renameByName"]
        assert list(heads) == names and len(set(heads.values())) == len(names)
        overridden = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
        assert overridden <= set(heads.values())


def test_every_figure_asked_for_is_one_of_the_page_of_metrics() -> None:
    known = set(re.findall(r"`(\w+)`", (ROOT / "METRICS.md").read_text()))
    texts = [expr for name in NAMES for _, expr, _ in expressions(name)]
    texts += [str(rule["expr"]) for rule in rules()]
    names = {name for text in texts for name in re.findall(r"(?<![:\w])ackgate_\w+(?!\w*:)", text)}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in names} <= known


def test_provisioning_names_what_is_there() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    (source,) = sources["datasources"]
    assert source["type"] == "prometheus" and source["uid"] and source["isDefault"]
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]
    boards = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "ackgate.yaml").read_text())
    (provider,) = boards["providers"]
    assert provider["type"] == "file" and Path(provider["options"]["path"]).is_absolute()


@pytest.mark.monitoring
@pytest.mark.parametrize("name", NAMES)
def test_every_query_of_every_panel_is_answered_with_data(name: str, watched: Watched) -> None:
    span = watched.end - watched.start
    empty = []
    for title, expr, instant in expressions(name):
        query = asked(expr, span)
        # A table is of one moment: the last.
        found = watched.prometheus.range(query, watched.end if instant else watched.start, watched.end)
        if not any(math.isfinite(float(value)) for series in found for _, value in series["values"]):
            empty.append(f"{title}: {expr}")
    assert not empty, "\n".join(empty)


@pytest.mark.monitoring
@pytest.mark.parametrize("name", NAMES)
def test_every_variable_offers_a_choice(name: str, watched: Watched) -> None:
    for variable in DASHBOARDS[name]["templating"]["list"][1:]:
        family, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
        assert len(watched.prometheus.get(f"label/{label}/values", **{"match[]": family})) >= 2, variable["name"]


@pytest.mark.monitoring
@pytest.mark.parametrize("name", NAMES)
def test_names_in_legends_are_labels_of_what_is_shown(name: str, watched: Watched) -> None:
    for panel in panels(name, KNOWN - {"table", "row", "text"}):
        for target in panel["targets"]:
            wanted = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            query = asked(target["expr"], watched.end - watched.start)
            for series in watched.prometheus.range(query, watched.start, watched.end):
                missing = wanted - set(series["metric"])
                assert not missing, (panel["title"], missing, series["metric"])
