"""The words pages are made of: queries, panels, rows, variables and marks of events.

What lives here: data only. An expression is PromQL with ``$proxy`` and ``$shard`` (regular expressions of what the
reader chose), ``$__rate_interval`` (the window of a rate) and ``$__range`` (what is shown) in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["graph", "stat", "table", "states", "heatmap", "text"]
WIDTH = 24  # columns of a page, as in Grafana

GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "gray"


@dataclass(frozen=True)
class Query:
    """PromQL and how its series are called: ``legend`` with ``{{label}}`` in it."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table: the label, or ``Value #A`` for the value of the first query, its head and its unit."""

    source: str
    title: str
    unit: str = ""
    steps: tuple[tuple[float | None, str], ...] = ()


@dataclass(frozen=True)
class Panel:
    """One picture.

    ``unit`` is Grafana's name of it (s, bytes, Bps, ops, percentunit, short, bool_yes_no). ``steps`` are thresholds: a
    colour holds from its value on, None is from the beginning. ``colours`` fixes the colour of series by their name (a
    regular expression). ``states`` says what a value is called, and its colour. ``most`` is the end of the scale.
    """

    title: str
    help: str
    queries: tuple[Query, ...] = ()
    kind: Kind = "graph"
    unit: str = "short"
    width: int = 8
    height: int = 8
    steps: tuple[tuple[float | None, str], ...] = ()
    colours: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()
    decimals: int | None = None
    stacked: bool = False
    logarithmic: bool = False
    most: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Row:
    """Panels side by side, wrapped where the page ends, under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """Something to choose: ``values`` is Grafana's ``label_values(...)``."""

    name: str
    title: str
    values: str


@dataclass(frozen=True)
class Mark:
    """An event shown over every graph where ``expr`` is more than 0."""

    name: str
    expr: str
    colour: str
    text: str


@dataclass(frozen=True)
class Page:
    """A dashboard. ``uid`` is its name in addresses and of its file."""

    uid: str
    title: str
    help: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...]
    marks: tuple[Mark, ...]
