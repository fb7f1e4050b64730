"""A page as a console of Prometheus itself: a template that its server fills in, and graphs that a script draws.

What lives here: the page's frame. How it looks and is drawn stands in ``prometheus/console_libraries/ackgate.lib``.
It brings all it needs along: the libraries that came with Prometheus 2 are not in Prometheus 3.

Some facts about console templates (https://prometheus.io/docs/visualization/consoles/) that this relies on:
- they are Go's html/template: what is between two braces is run, and its result escaped for where it stands;
- ``query`` asks at the moment of the request; ``ge`` and ``eq`` compare a sample with a floating-point number only, and
  a value that is no number is not equal to itself.
"""

from __future__ import annotations

import html
import json
from typing import Final

from deploy.dashboards.panels import Page, Panel

SERVED: Final = {"$proxy": ".*", "$shard": ".*", "$__rate_interval": "1m", "$__range": "30m"}
"""What stands for a page's variables in the queries of the server; the script has windows of its own."""
_FORMS: Final = {
    "short": "humanize",
    "ops": "humanize",
    "s": "humanizeDuration",
    "percentunit": "humanizePercentage",
}
_AFTER: Final = {"ops": "/s"}

_FRAME: Final = """<!DOCTYPE html>
<!-- Made by `make dashboards` from deploy/dashboards: do not edit. -->
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Ackgate: @TITLE@</title>
<style>{{ template "ackgate_style" }}</style>
</head>
<body>
<header>
<h1>Ackgate</h1>
<nav id="marks"></nav>
<nav id="ranges"></nav>
<nav><a href="../alerts">Alerts</a> <a href="../targets">Targets</a></nav>
</header>
<main>
<section id="now" class="tiles">
@TILES@
</section>
<section id="alerts"></section>
<section id="shards">
<table>
<thead><tr><th>Shard</th><th>Primary</th><th>Slots</th><th>Replicas online</th><th>Behind</th></tr></thead>
<tbody>
{{- range query "shard:ackgate_shard_up:max" | sortByLabel "shard" }}
<tr><td>{{ printf "%.8s" .Labels.shard }}</td>
{{- if ge (. | value) 1.0 }}<td class="green">answers</td>{{ else }}<td class="red">none</td>{{ end }}
@SLOTS@
@REPLICAS@
@BEHIND@</tr>
{{- else }}
<tr><td colspan="5">No proxy was scraped yet.</td></tr>
{{- end }}
</tbody>
</table>
</section>
<div id="graphs"></div>
</main>
<script type="application/json" id="page">@PAGE@</script>
<script>{{ template "ackgate_script" }}</script>
</body>
</html>
"""


# What a row of the table asks about its shard.
_CELL: Final = "<td>{{ with printf \"@EXPR@\" .Labels.shard | query }}{{ . | first | value@FORM@ }}{{ end }}</td>"
_CELLS: Final = {
    "@SLOTS@": ("max(ackgate_shard_slots{shard='%s'})", ""),
    "@REPLICAS@": ("shard:ackgate_shard_replicas_online:max{shard='%s'}", ""),
    "@BEHIND@": ("max(replica:ackgate_replica_lag_seconds:max{shard='%s'})", " | humanizeDuration"),
}


def console(page: Page) -> str:
    """The template: the first row's panels are tiles that the server fills in, the others are drawn by the script."""
    first, *others = page.rows
    graphs = {
        "rows": [{"title": row.title, "panels": [_graph(panel) for panel in row.panels]} for row in others],
        "marks": [{"name": mark.name, "expr": mark.expr, "colour": mark.colour} for mark in page.marks],
    }
    data = json.dumps(graphs, separators=(",", ":")).replace("<", "\\u003c").replace("{{", "{\\u007b")
    tiles = "\n".join(_tile(panel) for panel in first.panels)
    text = _FRAME.replace("@TITLE@", html.escape(page.title)).replace("@TILES@", tiles)
    for name, (expr, form) in _CELLS.items():
        text = text.replace(name, _CELL.replace("@EXPR@", expr).replace("@FORM@", form))
    return text.replace("@PAGE@", data)


def _tile(panel: Panel) -> str:
    (query,) = panel.queries
    expr = query.expr
    for name, served in SERVED.items():
        expr = expr.replace(name, served)
    assert "`" not in expr, f"a raw string of a template cannot hold {expr}"
    shown = f"{{{{ $v | {_FORMS[panel.unit]} }}}}{_AFTER.get(panel.unit, '')}"
    number = f'<b class="{_tone(panel)}">{shown}</b>'
    return (
        f'<div class="tile" title="{html.escape(panel.help)}"><span>{html.escape(panel.title)}</span>'
        f"{{{{ with query `{expr}` }}}}{{{{ $v := . | first | value }}}}"
        f"{{{{ if eq $v $v }}}}{number}{{{{ else }}}}<b>–</b>{{{{ end }}}}{{{{ else }}}}<b>–</b>{{{{ end }}}}</div>"
    )


def _tone(panel: Panel) -> str:
    """The colour of the highest threshold that the value has reached."""
    (_, tone), *rest = panel.steps
    for least, colour in rest:
        assert least is not None
        tone = f"{{{{ if ge $v {float(least)} }}}}{colour}{{{{ else }}}}{tone}{{{{ end }}}}"
    return tone


def _graph(panel: Panel) -> dict[str, object]:
    return {
        "title": panel.title,
        "help": panel.help,
        "unit": panel.unit,
        "log": panel.logarithmic,
        "colours": dict(panel.colours),
        "queries": [
            {"expr": query.expr, "legend": query.legend.replace("{{", "{").replace("}}", "}")}
            for query in panel.queries
        ],
    }
