"""Pages as Grafana's JSON (dashboards of schema 39: Grafana 10.4 and later).

What lives here: the form, nothing of what is shown. Every panel and query names the data source by the page's variable,
so that the files serve with any Prometheus.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from deploy.dashboards.panels import BLUE, GREEN, WIDTH, Column, Mark, Page, Panel, Row, Variable

SCHEMA: Final = 39
TAG: Final = "ackgate"
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
# Ids of shards are 40 hexadecimal digits: eight tell them apart.
SHORT_IDS: Final = {
    "id": "renameByRegex",
    "options": {"regex": "([0-9a-f]{8})[0-9a-f]{32}", "renamePattern": "$1"},
}
_HEADING: Final = 1
_TYPES: Final = {
    "graph": "timeseries",
    "stat": "stat",
    "table": "table",
    "states": "state-timeline",
    "heatmap": "heatmap",
    "text": "text",
}


def dashboard(page: Page) -> dict[str, Any]:
    """The page as Grafana reads it."""
    return {
        "uid": f"ackgate-{page.uid}",
        "title": f"Ackgate: {page.title}",
        "description": page.help,
        "tags": [TAG],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,  # one crosshair over all panels
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "timepicker": {},
        "fiscalYearStartMonth": 0,
        "links": [
            {
                "type": "dashboards",
                "title": "Ackgate",
                "tags": [TAG],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "templating": {"list": [_source_variable(), *(_variable(each) for each in page.variables)]},
        "annotations": {"list": [_mark(each) for each in page.marks]},
        "panels": list(_panels(page.rows)),
    }


def _source_variable() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
        "refresh": 1,
        "regex": "",
        "multi": False,
        "includeAll": False,
        "current": {},
        "options": [],
    }


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "label": variable.title,
        "type": "query",
        "datasource": SOURCE,
        "definition": variable.values,
        "query": {"qryType": 1, "query": variable.values, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,  # when the time range changes: shards and proxies come and go
        "sort": 1,
        "regex": "",
        "hide": 0,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
    }


def _mark(mark: Mark) -> dict[str, Any]:
    return {
        "name": mark.name,
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": mark.colour,
        "expr": mark.expr,
        "step": "10s",
        "titleFormat": mark.name,
        "textFormat": mark.text,
        "tagKeys": "",
        "useValueForTime": False,
    }


def _panels(rows: tuple[Row, ...]) -> Iterator[dict[str, Any]]:
    top, number = 0, 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": _HEADING},
            "panels": [],
        }
        top += _HEADING
        left, tallest = 0, 0
        for panel in row.panels:
            number += 1
            if left + panel.width > WIDTH:
                top, left, tallest = top + tallest, 0, 0
            yield _panel(number, panel, left, top)
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest


def _panel(number: int, panel: Panel, left: int, top: int) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "id": number,
        "type": _TYPES[panel.kind],
        "title": panel.title,
        "description": panel.help,
        "gridPos": {"x": left, "y": top, "w": panel.width, "h": panel.height},
    }
    if panel.kind == "text":
        return shape | {"options": {"mode": "markdown", "content": panel.text}, "transparent": True}
    return shape | {
        "datasource": SOURCE,
        "targets": list(_targets(panel)),
        "fieldConfig": {"defaults": _defaults(panel), "overrides": list(_overrides(panel))},
        "options": _options(panel),
        "transformations": _transformations(panel),
    }


def _targets(panel: Panel) -> Iterator[dict[str, Any]]:
    instant = panel.kind == "table"
    form = {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series")
    for letter, query in zip("ABCDEFGHIJKLMNOP", panel.queries, strict=False):
        yield {
            "refId": letter,
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "format": form,
            "instant": instant,
            "range": not instant,
            "legendFormat": query.legend or ("{{le}}" if panel.kind == "heatmap" else "__auto"),
        }


def _defaults(panel: Panel) -> dict[str, Any]:
    steps = panel.steps or ((None, GREEN if panel.kind == "stat" else BLUE),)
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if panel.kind in ("stat", "table", "states") else "palette-classic"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": colour, "value": value} for value, colour in steps],
        },
        "custom": _custom(panel),
        "mappings": _mappings(panel),
    }
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.kind == "graph" and not panel.logarithmic:
        defaults["min"] = 0
    if panel.most is not None:
        defaults["max"] = panel.most
    return defaults


def _mappings(panel: Panel) -> list[dict[str, Any]]:
    if not panel.states:
        return []
    named = {
        value: {"text": text, "color": colour, "index": index}
        for index, (value, (text, colour)) in enumerate(panel.states.items())
    }
    return [{"type": "value", "options": named}]


def _custom(panel: Panel) -> dict[str, Any]:
    if panel.kind == "states":
        return {"fillOpacity": 70, "lineWidth": 0}
    if panel.kind == "table":
        return {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": False}
    if panel.kind != "graph":
        return {}
    scale = {"type": "log", "log": 10} if panel.logarithmic else {"type": "linear"}
    return {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 40 if panel.stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "scaleDistribution": scale,
        "thresholdsStyle": {"mode": "dashed" if panel.steps else "off"},
        "axisPlacement": "auto",
    }


def _overrides(panel: Panel) -> Iterator[dict[str, Any]]:
    for pattern, colour in panel.colours.items():
        yield {
            "matcher": {"id": "byRegexp", "options": f"/{pattern}/"},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
    for column in panel.columns:
        if properties := list(_column(column)):
            yield {"matcher": {"id": "byName", "options": column.title}, "properties": properties}


def _column(column: Column) -> Iterator[dict[str, Any]]:
    if column.unit:
        yield {"id": "unit", "value": column.unit}
    if column.steps:
        steps = [{"color": colour, "value": value} for value, colour in column.steps]
        yield {"id": "thresholds", "value": {"mode": "absolute", "steps": steps}}
        yield {"id": "custom.cellOptions", "value": {"type": "color-text"}}


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "auto",
            "wideLayout": True,
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}}
    if panel.kind == "states":
        return {
            "mergeValues": True,
            "showValue": "auto",
            "alignValue": "left",
            "rowHeight": 0.8,
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
            "tooltip": {"mode": "single", "sort": "none"},
        }
    if panel.kind == "heatmap":
        return {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Blues", "scale": "exponential", "exponent": 0.5, "steps": 32},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
            "yAxis": {"unit": panel.unit, "axisPlacement": "left", "reverse": False},
        }
    return {
        "legend": {
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["lastNotNull", "max"],
            "sortBy": "Last *",
            "sortDesc": True,
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _transformations(panel: Panel) -> list[dict[str, Any]]:
    if panel.kind != "table":
        return [] if panel.kind == "heatmap" else [SHORT_IDS]
    order = {column.source: index for index, column in enumerate(panel.columns)}
    names = {column.source: column.title for column in panel.columns}
    kept = {"id": "filterFieldsByName", "options": {"include": {"names": list(order)}}}
    named = {"id": "organize", "options": {"excludeByName": {}, "indexByName": order, "renameByName": names}}
    return [{"id": "merge", "options": {}}, kept, named]
